"""`python -m demo`: make an offline world, run the main job over it, and look for every planted answer."""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from demo import answers, web, world
from demo.corpus import SEED, build

MARK = ".demo"
"""A file that says a folder is the demo's own and may be emptied."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when every planted answer was found, 1 when not, 2 when it cannot start."""
    args = parser().parse_args(argv)
    root: Path = args.root
    try:
        prepare(root, keep=args.keep)
        port = web.free_port()
    except OSError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print(f"making the demo world in {root}", flush=True)
    corpus = build(SEED, port)
    recipe = world.make(corpus, root)
    with web.serving(corpus.web):
        if args.serve:
            return serve(recipe, root)
        began = time.monotonic()
        command = [sys.executable, "-m", "curation.run", str(recipe), "--root", str(root / "run")]
        print("running:", " ".join(["python", *command[1:]]), flush=True)
        code = subprocess.run(command, check=False).returncode  # noqa: S603
    if code != 0:
        print(f"demo: the run failed with exit code {code}", file=sys.stderr)
        return 1
    print(f"{len(corpus.rows):,} rows of metadata became shards in {time.monotonic() - began:.0f} s", flush=True)
    problems = answers.wrong(corpus, root / "run")
    return conclude(problems, len(answers.answers(corpus)))


def prepare(root: Path, *, keep: bool) -> None:
    """Make the folder, and empty it of an earlier run unless that is to be continued.

    Raises:
        FileExistsError: it has files of somebody else's.
    """
    if root.exists() and any(root.iterdir()) and not (root / MARK).exists():
        raise FileExistsError(f"{root} is not empty and was not made by the demo; name another folder with --root")
    root.mkdir(parents=True, exist_ok=True)
    (root / MARK).touch()
    if not keep:
        shutil.rmtree(root / "run", ignore_errors=True)


def serve(recipe: Path, root: Path) -> int:
    """Keep the web up until interrupted."""
    print(f"serving; in another terminal: python -m curation.run {recipe} --root {root / 'run'}", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        print()
    return 0


def conclude(problems: Sequence[str], total: int) -> int:
    """Say whether every answer was found; the exit code."""
    if not problems:
        print(f"every planted answer was found ({total:,} of {total:,})")
        return 0
    print(f"{len(problems):,} of {total:,} planted answers were not found:", file=sys.stderr)
    for problem in problems[:40]:
        print(f"  {problem}", file=sys.stderr)
    if len(problems) > 40:
        print(f"  … and {len(problems) - 40:,} more", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    made.add_argument("--root", type=Path, default=Path("demo-run"), help="folder for the world and the run")
    made.add_argument("--keep", action="store_true", help="continue the run that is there instead of starting anew")
    made.add_argument("--serve", action="store_true", help="only make the world and serve its web until interrupted")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
