"""The model card, rendered from the figures that training and evaluation wrote."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from shutil import copyfile
from typing import Any

from trainer.detector.config import LABELS
from trainer.errors import UserError

WEAKEST = 8
WEIGHTS = ("model/model.safetensors", "model.safetensors")
SHIPPED = ("model/config.json", "model/model.safetensors", "training.json", "metrics.json")
ALSO = (
    "leave_out.json",
    "curve.json",
    "elsewhere.json",
    "model/descriptors.safetensors",
    "reliability.png",
    "README.md",
)


def _read(path: Path, needed: bool) -> dict[str, Any]:
    if not path.exists():
        if needed:
            raise UserError(
                f"--out {path.parent}: {path.name} is not there; `python -m trainer.detector train` writes it"
            )
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def render(folder: Path, notes: str = "") -> str:
    """The card's text, from `training.json` and `metrics.json`, and the figures of other runs (`ALSO`) that are there.

    Raises:
        UserError: one of the first two is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    training, measured = (_read(folder / name, True) for name in ("training.json", "metrics.json"))
    left, curve, elsewhere = (_read(folder / name, False) for name in ALSO[:3])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=False
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.2f} %"
    text = environment.get_template("card.md.j2").render(
        config=training["config"],
        training=training,
        parameters=training["parameters"],
        metrics=measured,
        leave_out=left,
        curve=curve,
        elsewhere=elsewhere,
        labels=LABELS,
        weakest=weakest(measured, left),
        weights=_weights(folder),
        notes=notes.strip(),
    )
    return text.rstrip() + "\n"


def _weights(folder: Path) -> dict[str, Any]:
    """Size and digest of the file that the card speaks of, in a training's folder or a shipped one."""
    held = next(path for path in (folder / name for name in WEIGHTS) if path.exists()).read_bytes()
    return {"bytes": len(held), "sha256": sha256(held).hexdigest()}


def ship(folder: Path, to: Path) -> None:
    """Copy the model, its figures and its card, side by side, in place of what an earlier model left there.

    Raises:
        UserError: the model or its figures are missing.
    """
    missing = [name for name in SHIPPED if not (folder / name).exists()]
    if missing:
        raise UserError(f"--out {folder}: {missing[0]} is not there; `python -m trainer.detector train` writes it")
    to.mkdir(parents=True, exist_ok=True)
    for name in (*SHIPPED, *ALSO):
        target = to / Path(name).name
        if (folder / name).exists():
            copyfile(folder / name, target)
        else:
            target.unlink(missing_ok=True)  # of a model that was shipped before


def weakest(measured: dict[str, Any], left: dict[str, Any]) -> list[tuple[str, float, str]]:
    """(source, accuracy, seen or unseen) of the least accurate sources."""
    rows = [(name, row["accuracy"], "seen") for name, row in measured["sources"].items()]
    if left:
        rows += [(name, accuracy, "unseen") for name, accuracy in left["overall"]["least_by_source"].items()]
    return sorted(rows, key=lambda row: (row[1], row[0], row[2]))[:WEAKEST]
