"""`python -m curation.probe RECIPE --root DIR`: what do the keywords miss?

Draws rows that no keyword hit, fetches their images as the recipe's download stage would, and scores them with the
detector. Prints the share of remote-sensing images among them by source, with 95 % intervals, and writes it to
DIR/report/probe.json. What was fetched and scored stays in DIR/probe: a larger sample adds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from curation import finished, lock
from curation.console import exit_code, set_up_logging
from curation.estimates import Estimate, share
from curation.recipe import Recipe, load, root_store
from stages.base import KEPT
from stages.errors import UserError
from stages.storage import Store

RESULT = "report/probe.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Probe a recipe; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m curation.probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("--root", required=True, metavar="DIR", help="the run's folder or fsspec URL")
    parser.add_argument("--rows", type=int, default=2000, help="rows drawn of each source (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--detector", metavar="MODEL", help="instead of the recipe's detector")
    parser.add_argument(
        "--at-least", type=float, default=0.5, help="probability that counts as positive (default: 0.5)"
    )
    parser.add_argument("--set", metavar="a.b.c=value", action="append", default=[], help="override a recipe's value")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    set_up_logging(debug=args.debug)
    return exit_code(lambda: probe(args), debug=args.debug)


def probe(args: argparse.Namespace) -> int:
    """Draw, fetch, score, count."""
    recipe = derived(load(args.recipe, args.set), args)
    store = root_store(args.root, recipe)
    run(recipe, root_store(f"{store.url.rstrip('/')}/probe", recipe), debug=args.debug)
    found = collect(finished.load(root_store(f"{store.url.rstrip('/')}/probe", recipe)))
    found |= {"seed": args.seed, "at_least": args.at_least}
    store.write(RESULT, json.dumps(found, indent=1).encode())
    print(table(found))
    print(f"\nreport: {store.url}/{RESULT}")
    return 0


def derived(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe's sources through three stages: rows that its keywords miss, its download, its detector.

    Raises:
        UserError: it has no keywords, or names no detector.
    """
    stages = recipe.written["stages"]
    if "keywords" not in stages:
        raise UserError("stages: the recipe has no keywords, so there is nothing that they could miss")
    detector = dict((stages.get("outliers") or {}).get("detector") or {})
    if args.detector:
        detector["model"] = args.detector
    if "model" not in detector:
        raise UserError("stages.outliers.detector: the recipe names none; name one with --detector MODEL")
    written = {
        **recipe.written,
        "stages": {
            "missed": {**(stages["keywords"] or {}), "rows": args.rows, "seed": args.seed},
            "download": stages.get("download") or {},
            "outliers": {"detector": detector, "keep": {"vlm": None, "detector": {"at_least": args.at_least}}},
        },
    }
    return _loaded(written)


def _loaded(written: Mapping[str, Any]) -> Recipe:
    """A recipe from its values; the file between, which may hold secrets, is this user's alone."""
    number, path = tempfile.mkstemp(suffix=".yaml")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            yaml.safe_dump(dict(written), file, sort_keys=False)
        return load(path)
    finally:
        Path(path).unlink()


def run(recipe: Recipe, store: Store, *, debug: bool) -> None:
    """Bring the probe's stages up to date, as `curation.run` does."""
    from curation import cluster, execute
    from curation.progress import Display
    from curation.run import bring_up_to_date

    with lock.held(store):
        execute.start_ray(debug=debug)
        cluster.prove_shared(store, recipe)
        store.write("recipe.yaml", yaml.safe_dump(recipe.effective(), sort_keys=False, allow_unicode=True).encode())
        display = Display()
        settings = argparse.Namespace(force=[], allow_stale=False, retry_failed=False)
        for stage in recipe.stages:
            bring_up_to_date(recipe, store, stage.name, settings, display)


def collect(root: finished.Finished) -> dict[str, Any]:
    """`{sources: [{source, rejected, drawn, scored, positive, share, low, high}]}`."""
    manifests = root.manifests
    rejected = manifests["missed"].summary["rejected"]
    scored = _scored(root)
    found = []
    for source in root.sources:
        mine = scored.filter(pc.equal(scored["source"], source))
        judged = mine.num_rows - mine["detector_score"].null_count
        positive = int(pc.sum(pc.equal(mine["status"], KEPT)).as_py() or 0)
        drawn = manifests["missed"].counts.get(source, {}).get("kept", 0)
        counted = {"source": source, "rejected": rejected.get(source, 0), "drawn": drawn, "scored": judged}
        estimate = share(positive, judged)
        found.append(counted | {"positive": positive} | _numbers(estimate))
    return {"sources": found}


def _scored(root: finished.Finished) -> pa.Table:
    """`source, status, detector_score` of every image."""
    schema = pa.schema([("source", pa.string()), ("status", pa.string()), ("detector_score", pa.float32())])
    parts = [finished.batches(root.store, file, schema.names) for file in root.parts("outliers")]
    return pa.Table.from_batches([batch for part in parts for _, batch in part], schema)


def _numbers(estimate: Estimate | None) -> dict[str, float | None]:
    """Null without a single image."""
    if estimate is None:
        return {"share": None, "low": None, "high": None}
    return {"share": estimate.value, "low": estimate.low, "high": estimate.high}


def table(found: Mapping[str, Any]) -> str:
    """The counts for a terminal."""
    lines = [f"{'source':<16}{'no keyword':>16}{'drawn':>9}{'scored':>9}{'positive':>10}  share of RS images (95 %)"]
    for entry in found["sources"]:
        numbers = f"{entry['rejected']:>16,}{entry['drawn']:>9,}{entry['scored']:>9,}{entry['positive']:>10,}"
        known = entry["share"] is not None
        said = str(Estimate(value=entry["share"], low=entry["low"], high=entry["high"])) if known else "unknown"
        lines.append(f"{entry['source']:<16}{numbers}  {said}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
