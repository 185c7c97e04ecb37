"""`python -m curation.report --root DIR`: write the report from the manifests alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from curation.console import exit_code
from curation.recipe import root_store
from curation.report import build


def main(argv: Sequence[str] | None = None) -> int:
    """Build the report and print the funnel and where the report lies."""
    parser = argparse.ArgumentParser(
        prog="python -m curation.report",
        description="Write report/: index.html, report.md, report.json and charts, from what is finished.",
    )
    parser.add_argument("--root", required=True, metavar="DIR", help="the run's folder or fsspec URL")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return exit_code(lambda: _build(args.root), debug=args.debug)


def _build(root: str) -> int:
    print(build(root_store(root)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
