"""Batches of altered pictures: half of each class, sources balanced within it; batch n is the same whoever makes it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector import positives
from trainer.detector.augment import augment
from trainer.detector.config import LABELS, Config
from trainer.detector.images import SPLITS, Picture, read_sources, split_of
from trainer.detector.negatives import KINDS, draw

DRAWN = "drawn/"
"""Prefix of the source names of drawn negatives."""
LAND = "land/"
"""Prefix of the source names of drawn positives."""


def read_pool(config: Config, data: Path) -> list[Picture]:
    """Every picture of the sources and of the drawn kinds, in a fixed order."""
    return read_sources(config, data) + draw_negatives(config) + draw_positives(config)


def draw_negatives(config: Config) -> list[Picture]:
    """`drawn.per_kind` pictures of every kind, each a group of its own."""
    return [
        Picture(
            source=f"{DRAWN}{kind}",
            label=LABELS.index("other"),
            split=split_of(f"{kind}/{number}", config.split, config.seed),
            name=str(number),
            pixels=draw(kind, config.seed, number),
        )
        for kind in KINDS
        for number in range(config.drawn.per_kind)
    ]


def draw_positives(config: Config) -> list[Picture]:
    """`drawn.per_kind` pictures of every kind of land from above; all to train on: drawings are no proof of recall."""
    if not config.drawn.positives:
        return []
    return [
        Picture(
            source=f"{LAND}{kind}",
            label=LABELS.index("rs"),
            split="train",
            name=str(number),
            pixels=positives.draw(kind, config.seed, number),
        )
        for kind in positives.KINDS
        for number in range(config.drawn.per_kind)
    ]


def chosen(pool: Sequence[Picture], split: str, without: Collection[str] = ()) -> list[Picture]:
    """The pictures of a part of the split, some sources left out."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    return [picture for picture in pool if picture.split == split and picture.source not in without]


@dataclass
class Batches:
    """Batch n as (images uint8 (batch, size, size, 3), their numbers among the pictures); a map-style dataset."""

    pictures: Sequence[Picture]
    config: Config
    chances: NDArray[np.float64] = field(init=False, repr=False)
    """Of each picture, to be drawn; they compare within a class."""
    _labels: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._labels = np.array([picture.label for picture in self.pictures], dtype=np.int64)
        self.chances = _chances(self.pictures, self.config)

    def __len__(self) -> int:
        return self.config.training.prepared

    def __getitem__(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        rng = np.random.default_rng([self.config.seed, number])
        indices = self._picks(rng)
        size, of = self.config.model.size, self.config.training
        altered = [augment(self.pictures[index].pixels, rng, size, of.harder, of.plain) for index in indices]
        return np.stack(altered), indices

    def _picks(self, rng: np.random.Generator) -> NDArray[np.int64]:
        half = self.config.training.batch // 2
        counts = (self.config.training.batch - half, half)
        picks = []
        for label, count in enumerate(counts):
            of_class = np.flatnonzero(self._labels == label)
            chances = self.chances[of_class]
            picks.append(of_class[rng.choice(len(of_class), count, p=chances / chances.sum())])
        return np.concatenate(picks)

    def loader(self, workers: int) -> Iterator[tuple[Any, Any]]:
        """All batches, as tensors, in order, made by so many processes."""
        from torch.utils.data import DataLoader

        return iter(
            DataLoader(
                self,  # type: ignore[arg-type]
                batch_size=None,
                shuffle=False,
                num_workers=workers,
                prefetch_factor=4 if workers else None,
            )
        )


def _chances(pictures: Sequence[Picture], config: Config) -> NDArray[np.float64]:
    """A picture's chance: its source's share over its count. Shares are weight · count^balance; drawn kinds alike."""
    counts: dict[str, int] = {}
    for picture in pictures:
        counts[picture.source] = counts.get(picture.source, 0) + 1
    weights = {
        source: 1.0
        if source.startswith((DRAWN, LAND))
        else config.sources[source].weight * count**config.training.balance
        for source, count in counts.items()
    }
    labels = {picture.source: picture.label for picture in pictures}
    for label, prefix, share in ((0, DRAWN, config.drawn.share), (1, LAND, config.drawn.positives)):
        of_class = [source for source in weights if labels[source] == label]
        drawn = [source for source in of_class if source.startswith(prefix)]
        found = [source for source in of_class if not source.startswith(prefix)]
        for group, part in ((drawn, share if found else 1.0), (found, 1 - share if drawn else 1.0)):
            total = sum(weights[source] for source in group)
            weights |= {source: weights[source] * part / total for source in group}
    return np.array([weights[picture.source] / counts[picture.source] for picture in pictures])
