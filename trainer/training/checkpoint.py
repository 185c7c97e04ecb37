"""Checkpoints: all that a run needs to go on as if nothing had been."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer import adapters
from trainer.data import State
from trainer.errors import Failed, UserError
from trainer.training.model import Clip, replace_with
from trainer.training.step import Average

FOLDER = "checkpoints"
VERSION = 1


@dataclass
class Progress:
    """How far a training has come."""

    clip: Clip
    optimizer: Any
    scaler: Any
    average: Average | None
    step: int = 0
    state: State | None = None
    """With which the loader goes on; None at the beginning."""
    best: float | None = None
    """The figure of the best weights so far, larger being better."""


def newest(out: Path) -> Path | None:
    """The last checkpoint of a folder."""
    return max((out / FOLDER).glob("step-*.pt"), default=None)


def save(progress: Progress, out: Path) -> Path:
    """Write a checkpoint, then remove those that are too many.

    Raises:
        Failed: it cannot be written; those that are there stay.
    """
    path = out / FOLDER / f"step-{progress.step:08d}.pt"
    content = _content(progress)
    with guarded(out, f"checkpoint of step {progress.step}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_with(path, lambda file: torch.save(content, file))
    for old in sorted(path.parent.glob("step-*.pt"))[: -progress.clip.config.keep]:
        old.unlink()
    return path


@contextmanager
def guarded(out: Path, what: str) -> Iterator[None]:
    """Writes within end the run with one sentence where they fail.

    Raises:
        Failed: it names the folder, what was to be written, why not, and the last good checkpoint.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise Failed(f"--out {out}: the {what} cannot be written ({reason}); {told(out)}") from error


def told(out: Path) -> str:
    """Which checkpoint a run can go on from, as a part of a sentence."""
    last = newest(out)
    return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"


def _content(progress: Progress) -> dict[str, Any]:
    assert progress.state is not None
    clip = progress.clip
    return {
        "version": VERSION,
        "config": json.dumps(clip.config.identity()),
        "architecture": architecture(clip),
        "step": progress.step,
        "state": progress.state.to_json(),
        "best": progress.best,
        "weights": adapters.trainable_state(clip.model),
        "optimizer": progress.optimizer.state_dict(),
        "scaler": progress.scaler.state_dict(),
        "average": progress.average.weights if progress.average else None,
    }


def architecture(clip: Clip) -> str:
    """A digest of the weights' names and shapes."""
    shapes = [(name, list(weight.shape)) for name, weight in clip.model.state_dict().items()]
    return hashlib.blake2b(json.dumps(shapes).encode(), digest_size=16).hexdigest()


def restore(progress: Progress, path: Path) -> None:
    """Take up a checkpoint.

    Raises:
        UserError: it cannot be read, or is of another training; it names the first option that differs.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        version = found["version"]
    except Exception as error:  # pickles and zips fail in their own ways
        raise UserError(f"--resume: {path} cannot be read ({' '.join(str(error).split())[:200]})") from error
    if version != VERSION:
        raise UserError(f"--resume: {path} is of version {version}; {VERSION} is accepted")
    _compare(json.loads(found["config"]), progress.clip, found["architecture"], path)
    adapters.load_trainable(progress.clip.model, found["weights"])
    progress.optimizer.load_state_dict(found["optimizer"])
    progress.scaler.load_state_dict(found["scaler"])
    if progress.average:
        for held, kept in zip(progress.average.weights, found["average"], strict=True):
            held.copy_(kept)
    progress.step, progress.best = found["step"], found["best"]
    progress.state = State.from_json(found["state"])


def _compare(was: dict[str, Any], clip: Clip, shapes: str, path: Path) -> None:
    now = json.loads(json.dumps(clip.config.identity()))
    for name in now:
        if was.get(name) != now[name]:
            raise UserError(
                f"--resume: {path} is of another training: {name} was {was.get(name)!r}, now {now[name]!r};"
                " say the same or give another --out"
            )
    if shapes != architecture(clip):
        raise UserError(f"--resume: {path} is of another model than {clip.config.model!r} is now; give another --out")
