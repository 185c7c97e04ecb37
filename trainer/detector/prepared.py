"""Altered pictures with the teacher's features and their descriptors, made once: many steps draw on them, and runs
without some sources."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector.batches import Batches
from trainer.detector.config import Config
from trainer.detector.images import Picture
from trainer.detector.model import normalised
from trainer.detector.teacher import Features
from trainer.detector.views import askew, greyed, resized, turned, zoomed
from trainer.errors import UserError

FOLDER = "prepared"
CLIP = 4.0
"""Standardised features are held within so many deviations."""


@dataclass(frozen=True)
class Prepared:
    """Altered pictures; those of sources left out are there, but never drawn."""

    images: NDArray[np.uint8]
    """(n, size, size, 3), memory-mapped."""
    labels: NDArray[np.int64]
    features: Features | None
    """(n, width) of the teacher, memory-mapped; each column of mean 0 and deviation 1."""
    described: NDArray[np.float32] | None
    """(2, n, descriptors.WIDTH), memory-mapped: of the pictures as they are, and altered once more."""
    rows: NDArray[np.int64]
    """Of the pictures that may be drawn."""
    digest: str
    """Of all that the arrays and the rows depend on."""

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Rows of a batch, half of them of each class."""
        half = count // 2
        of_class = [self.rows[self.labels[self.rows] == label] for label in (0, 1)]
        return np.concatenate([rng.choice(of_class[0], count - half), rng.choice(of_class[1], half)])


def prepare(
    pool: Sequence[Picture], config: Config, folder: Path, machine: Any, without: Collection[str] = ()
) -> Prepared:
    """Make `training.prepared` batches of the pictures in `folder`, or take those that are there.

    Raises:
        UserError: a class has no picture, or the teacher cannot be loaded.
    """
    if {picture.label for picture in pool if picture.source not in without} != {0, 1}:
        raise UserError("sources: pictures of both classes, 'rs' and 'other', are wanted in the training split")
    digest, done = _digest(pool, config, machine.device), folder / "made.json"
    if not done.exists() or json.loads(done.read_text())["digest"] != digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _make(pool, config, folder, machine)
        done.write_text(json.dumps({"digest": digest}) + "\n")
    picks = np.load(folder / "picks.npy")
    allowed = np.array([picture.source not in without for picture in pool])
    named = hashlib.sha256(f"{digest} {sorted(without)}".encode())
    return Prepared(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=np.array([picture.label for picture in pool], dtype=np.int64)[picks],
        features=np.load(folder / "features.npy", mmap_mode="r") if config.teacher.architecture else None,
        described=np.load(folder / "described.npy", mmap_mode="r") if config.model.descriptors else None,
        rows=np.flatnonzero(allowed[picks]),
        digest=named.hexdigest(),
    )


def _digest(pool: Sequence[Picture], config: Config, device: str) -> str:
    """Of all that the arrays depend on but the pixels, for which source and name stand."""
    of = config.training
    plain = [config.seed, config.model.size, of.batch, of.prepared, of.balance, of.harder, of.plain, config.drawn.share]
    plain += [config.drawn.positives, config.model.descriptors]
    plain += [source.weight for source in config.sources.values()]
    named = hashlib.sha256(json.dumps([*plain, config.teacher.architecture, config.teacher.size, device]).encode())
    for picture in pool:
        named.update(f"{picture.source}\0{picture.name}\0{picture.label}\n".encode())
    return named.hexdigest()


def _make(pool: Sequence[Picture], config: Config, folder: Path, machine: Any) -> None:
    batches = Batches(pool, config)
    total = len(batches) * config.training.batch
    shape = (total, config.model.size, config.model.size, 3)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    told = _Teaching(config, folder, total, machine.device) if config.teacher.architecture else None
    picks = np.zeros(total, dtype=np.int64)
    numbers = _Describing(config, folder, total) if config.model.descriptors else None
    began = time.monotonic()
    for number, (batch, chosen) in enumerate(batches.loader(machine.workers)):
        at = slice(number * len(batch), (number + 1) * len(batch))
        images[at], picks[at] = batch.numpy(), chosen.numpy()
        if told:
            told.add(batch, at)
        if numbers:
            numbers.add(batch, at)
        if (number + 1) % 100 == 0:
            rate = at.stop / (time.monotonic() - began)
            print(f"prepared {at.stop} of {total} pictures, {rate:.0f} images/s", file=sys.stderr, flush=True)
    if told:
        told.standardise()
    images.flush()
    np.save(folder / "picks.npy", picks)


class _Teaching:
    """The teacher's features of all batches, in a file."""

    def __init__(self, config: Config, folder: Path, total: int, device: str) -> None:
        from trainer.detector import teacher

        self._device, self._size = device, config.teacher.size
        self._model = teacher.load(config.teacher, device)
        shape = (total, self._model.head_hidden_size)
        self._features = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=np.float16, shape=shape)

    def add(self, batch: Any, at: slice) -> None:
        import torch

        from trainer.detector import teacher

        inputs = normalised(batch.to(self._device)).contiguous(memory_format=torch.channels_last)
        self._features[at] = teacher.features(self._model, inputs, self._device, self._size).cpu().numpy()

    def standardise(self) -> None:
        """Each column to mean 0 and deviation 1, in place, column by column blocks."""
        for first in range(0, self._features.shape[1], 64):
            block = self._features[:, first : first + 64].astype(np.float32)
            scaled = (block - block.mean(0)) / (block.std(0) + 1e-3)
            self._features[:, first : first + 64] = np.clip(scaled, -CLIP, CLIP)
        self._features.flush()


class _Describing:
    """The descriptors of all batches, as they are and altered once more, in a file."""

    def __init__(self, config: Config, folder: Path, total: int) -> None:
        from descriptors import WIDTH

        self._seed, shape = config.seed, (2, total, WIDTH)
        self._found = np.lib.format.open_memmap(folder / "described.npy", mode="w+", dtype=np.float32, shape=shape)

    def add(self, batch: Any, at: slice) -> None:
        from descriptors import describe

        pixels = batch.permute(0, 3, 1, 2).float() / 255
        self._found[0, at] = describe(pixels).numpy()
        self._found[1, at] = describe(self._altered(batch, at.start)).numpy()

    def _altered(self, batch: Any, first: int) -> Any:
        """Turned, by any angle mostly; at times a part of it, or grey. (n, 3, side, side) in 0-1, in steps of 1/255."""
        rng = np.random.default_rng([self._seed, first, 2])
        pixels = turned(batch, rng).permute(0, 3, 1, 2).float() / 255
        if rng.random() < 0.5:
            pixels = zoomed(pixels, rng, 0.7)
        if rng.random() < 0.7:
            pixels = askew(pixels, float(rng.uniform(-45, 45)))
        pixels = greyed(resized(pixels, batch.shape[1]), rng, 0.35)
        return (pixels.clamp(0, 1) * 255).round() / 255
