"""`python -m experiments.proof`: make the world, run the pipeline for every arm, train and judge, and tell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.proof import plan
from trainer.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one sentence and status 2."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (UserError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m experiments.proof", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("--out", type=Path, required=True, help="folder of everything that is made")
        return made

    prepare = command("prepare", _prepare, "split the images, write the pools, curate every arm")
    prepare.add_argument("--data", type=Path, required=True, help="folder with rs/aid, photo/… and text/…")
    prepare.add_argument("--detector", type=Path, help="timm folder; default: the shipped one, which has seen AID")
    prepare.add_argument("--unseen-detector", type=Path, help="timm folder of one that never saw AID: an arm more")
    train = command("train", _train, "train and judge what has no result yet")
    train.add_argument("--seeds", type=int, default=5)
    train.add_argument("--samples", type=int, default=6_400, help="seen by every model of an arm")
    train.add_argument("--processes", type=int, default=1)
    train.add_argument("--only", action="append", choices=sorted(plan.EXPERIMENTS), help="may be repeated")
    report = command("report", _report, "tables and plots of the results that are there")
    report.add_argument("--plots", type=Path, help="folder of the plots; default: OUT")
    report.add_argument("--page", type=Path, help="Markdown file whose tables are written anew, between its marks")
    return top


def _prepare(options: argparse.Namespace) -> None:
    plan.prepare(options.data, options.out, options.detector, options.unseen_detector)


def _train(options: argparse.Namespace) -> None:
    from experiments.proof.trainings import train_all

    runs = plan.runs(options.out, options.seeds, options.samples, options.only or sorted(plan.EXPERIMENTS))
    train_all(runs, options.out, options.processes)


def _report(options: argparse.Namespace) -> None:
    from experiments.proof import report

    rows: list[dict[str, Any]] = [
        json.loads(path.read_text()) for path in sorted((options.out / "results").glob("*.json"))
    ]
    told = report.write(rows, options.plots or options.out)
    if options.page:
        report.fill(options.page, told)
    print(told)


if __name__ == "__main__":
    sys.exit(main())
