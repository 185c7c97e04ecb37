"""The console script `curation`: the same verbs as the modules, `curation run`, `curation report` …"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from curation import __version__
from stages.errors import did_you_mean

VERBS = {
    "run": "run a recipe: metadata to shards",
    "report": "write the statistics report from the manifests alone",
    "explain": "one sample's passport: why it was kept or dropped",
    "verify": "re-read what the manifests promise",
    "probe": "what the keywords miss: a sample of rejected rows, fetched and scored",
    "audit": "a sheet of samples to label, and the precision and recall that follow",
    "export": "tars as an image folder with metadata.jsonl, for diffusers",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to the verb's own `main`."""
    args = list(sys.argv[1:] if argv is None else argv)
    verb = args[0] if args else "--help"
    if verb in ("-h", "--help"):
        print("usage: curation VERB …\n\n" + "\n".join(f"  {name:<9}{text}" for name, text in VERBS.items()))
        print("\n`curation VERB --help` says more.")
        return 0 if args else 2
    if verb == "--version":
        print(__version__)
        return 0
    if verb not in VERBS:
        print(f"error: {verb!r} is no verb{did_you_mean(verb, VERBS)}; verbs: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"curation.{verb}" if verb != "report" else "curation.report.__main__")
    return int(module.main(args[1:]))
