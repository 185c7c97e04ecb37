"""`python -m trainer.detector`: train, judge and describe the detector of remote-sensing images."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.detector.config import Config, load
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.detector.training import Machine

MODEL = "model"
"""The folder under --out that timm loads."""
ELSEWHERE = Path(__file__).with_name("elsewhere.yaml")
"""Sources that packages hold, none of which the shipped config trains on."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one sentence and status 2."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m trainer.detector", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument(
            "--config", type=Path, help="YAML of sources, model and training; default: the shipped detector's"
        )
        return made

    for made in (
        command("train", train, "train, calibrate, save to OUT/model and evaluate; goes on from OUT/checkpoint.pt"),
        command(
            "refit",
            refit,
            "fit the perceptron over descriptors and the temperature again, beside the network of OUT/model",
        ),
        command("leave-out", leave_out, "train without whole sources and judge on them"),
        command("probe", probe_teacher, "a linear classifier on the teacher's features, with sources left out"),
        command("evaluate", evaluate, "figures of OUT/model over the test pictures"),
        command("elsewhere", judge_elsewhere, "figures of OUT/model over sources that no training saw"),
    ):
        made.add_argument("--data", type=Path, required=True, help="folder that the sources' folders lie in")
        made.add_argument("--out", type=Path, required=True, help="folder of results")
        made.add_argument("--seed", type=int, help="in place of the config's")
        made.add_argument("--steps", type=int, help="in place of the config's")
        made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        made.add_argument("--threads", type=int, default=2, help="of torch on the CPU; part of what fixes the result")
        made.add_argument("--workers", type=int, help="processes that prepare batches; default: the cores left")
        if made.prog.endswith("leave-out"):
            made.add_argument("--design", choices=("rotation", "full", "curve"), default="rotation")
        if made.prog.endswith("probe"):
            made.add_argument("--most", type=int, default=300, help="pictures of a source")
        if made.prog.endswith("elsewhere"):
            made.set_defaults(config=ELSEWHERE)
    card = command("card", write_card, "write OUT/README.md, the model card, from the JSON files there")
    card.add_argument("--out", type=Path, required=True)
    card.add_argument("--notes", type=Path, help="Markdown to put into the section on failures")
    shipped = command("ship", ship_model, "copy the model, its figures and its card to one folder")
    shipped.add_argument("--out", type=Path, required=True)
    shipped.add_argument("--to", type=Path, required=True)
    speed = command("speed", tell_speed, "images per second of an architecture on the CPU")
    speed.add_argument("--architecture", action="append", help="in place of the config's; may be repeated")
    speed.add_argument("--threads", type=int, default=1)
    speed.add_argument("--seconds", type=float, default=5.0)
    sheet = command("sheet", write_sheet, "a contact sheet of the drawn negatives")
    sheet.add_argument("--out", type=Path, required=True, help="PNG file")
    return top


def _opened(options: argparse.Namespace) -> tuple[Config, Machine, list[Any]]:
    from trainer.detector.batches import read_pool
    from trainer.detector.training import Machine

    config = load(options.config).with_steps(options.steps)
    if options.seed is not None:
        config = replace(config, seed=options.seed)
    machine = Machine.found(options.device, options.threads, options.workers)
    pool = read_pool(config, options.data)
    print(f"{len(pool)} pictures of {len(config.sources)} sources and the drawn kinds", file=sys.stderr, flush=True)
    return config, machine, pool


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def train(options: argparse.Namespace) -> None:
    """Train to the end, fit the temperature on the validation pictures, save and evaluate."""
    from trainer.detector import training as trainer
    from trainer.detector.batches import chosen
    from trainer.detector.evaluation import counts
    from trainer.detector.finishing import finished
    from trainer.detector.model import save
    from trainer.detector.prepared import FOLDER, prepare

    config, machine, pool = _opened(options)
    validation = chosen(pool, "validation")
    prepared = prepare(chosen(pool, "train"), config, options.out / FOLDER, machine)
    state = trainer.train(prepared, validation, config, options.out, machine)
    detector, temperature = finished(state.average, prepared, validation, config, machine.device)
    save(detector.model, config.model, options.out / MODEL)
    _write(
        options.out / "training.json",
        {
            "config": config.plain(),
            "machine": {key: value for key, value in asdict(machine).items() if key != "workers"},
            "data": counts(pool),
            "parameters": sum(weight.numel() for weight in state.average.parameters()),
            "temperature": temperature,
            "history": state.history,
        },
    )
    _evaluate(pool, options.out, machine)


def refit(options: argparse.Namespace) -> None:
    """Fit what stands beside the saved network again, and the temperature; the network stays."""
    from trainer.detector.batches import chosen
    from trainer.detector.finishing import finished
    from trainer.detector.model import load_network, save
    from trainer.detector.prepared import FOLDER, prepare

    config, machine, pool = _opened(options)
    told, folder = options.out / "training.json", options.out / MODEL
    if not told.is_file():
        raise UserError(f"--out {options.out}: {told.name} is not there; `python -m trainer.detector train` writes it")
    prepared = prepare(chosen(pool, "train"), config, options.out / FOLDER, machine)
    network = load_network(folder, machine.device)
    detector, temperature = finished(network, prepared, chosen(pool, "validation"), config, machine.device)
    save(detector.model, config.model, folder)
    training = json.loads(told.read_text())
    training["config"]["model"] = config.plain()["model"]
    training["temperature"] = temperature
    _write(told, training)
    _evaluate(pool, options.out, machine)


def evaluate(options: argparse.Namespace) -> None:
    """Figures of the saved model."""
    _, machine, pool = _opened(options)
    _evaluate(pool, options.out, machine)


def _evaluate(pool: list[Any], out: Path, machine: Machine) -> None:
    from trainer.detector.evaluation import Detector, draw_reliability
    from trainer.detector.evaluation import evaluate as figures
    from trainer.detector.model import load as load_model

    model, transform = load_model(out / MODEL, machine.device)
    found = figures(Detector(model, transform, machine.device), pool)
    _write(out / "metrics.json", found)
    draw_reliability(found["reliability"], out / "reliability.png")
    print(json.dumps(found["test"], indent=1))


def judge_elsewhere(options: argparse.Namespace) -> None:
    """Figures of the saved model over sources of their own, to OUT/elsewhere.json."""
    from trainer.detector.evaluation import Detector
    from trainer.detector.evaluation import elsewhere as figures
    from trainer.detector.model import load as load_model

    config, machine, pool = _opened(options)
    if {picture.label for picture in pool} != {0, 1}:
        raise UserError(f"--config {options.config}: sources of both classes, 'rs' and 'other', are wanted")
    model, transform = load_model(options.out / MODEL, machine.device)
    found = figures(Detector(model, transform, machine.device), pool)
    _write(options.out / "elsewhere.json", {"config": config.plain()} | found)
    print(json.dumps(found, indent=1))


def leave_out(options: argparse.Namespace) -> None:
    """Runs of a design, each under OUT/leave-out; figures after each to OUT/leave_out.json or OUT/curve.json."""
    from trainer.detector import leave_out as lefts
    from trainer.detector.prepared import FOLDER

    config, machine, pool = _opened(options)
    path = options.out / ("curve.json" if options.design == "curve" else "leave_out.json")
    runs = lefts.leave_out(pool, config, options.design, options.out / "leave-out", options.out / FOLDER, machine)
    for found in runs:
        _write(path, found)
        print(json.dumps(found["overall"], indent=1), flush=True)


def probe_teacher(options: argparse.Namespace) -> None:
    """Figures of the teacher's features on sources left out, to OUT/probe.json."""
    from trainer.detector.probe import probe

    config, machine, pool = _opened(options)
    if not config.teacher.architecture:
        raise UserError("teacher: the config names none, so that there are no features to probe")
    rows = probe(pool, config, machine, options.most)
    _write(options.out / "probe.json", {"config": config.plain(), "most": options.most, "rows": rows})
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if key != "runs"}))


def write_card(options: argparse.Namespace) -> None:
    """Render the card."""
    from trainer.detector.card import render

    notes = options.notes.read_text() if options.notes else ""
    (options.out / "README.md").write_text(render(options.out, notes))


def ship_model(options: argparse.Namespace) -> None:
    """Copy what is to be published."""
    from trainer.detector.card import ship

    ship(options.out, options.to)


def tell_speed(options: argparse.Namespace) -> None:
    """Print images per second as JSON."""
    from trainer.detector.speed import images_per_second

    model = load(options.config).model
    for name in options.architecture or [model.architecture]:
        found = images_per_second(replace(model, architecture=name), options.threads, options.seconds)
        print(json.dumps({"architecture": name} | found))


def write_sheet(options: argparse.Namespace) -> None:
    """Draw the contact sheet."""
    from trainer.detector.negatives import sheet

    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(load(options.config).seed).save(options.out)


if __name__ == "__main__":
    sys.exit(main())
