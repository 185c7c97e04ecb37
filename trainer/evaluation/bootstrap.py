"""Confidence intervals by bootstrap over images, and paired differences of two models.

Every figure is a ratio of sums over images (hits over queries), or a mean of such ratios: so a resampling is a matrix
product with the weights that it gives to images. An image takes its texts with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

REPLICATES = 2000
CELLS = 1 << 22
"""Weights held at a time."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What each image adds to each figure."""

    units: Sequence[str]
    """Names of the images, for pairing."""
    names: Sequence[str]
    """Names of the figures, a path with `/` ("i2t/R@1")."""
    sums: Floats
    """(images, figures)."""
    counts: Floats
    """(images, figures): queries behind each sum."""
    means: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Figures that are means of others: {"mR": ["i2t/R@1", …]}."""

    @property
    def all_names(self) -> list[str]:
        """Figures, then means of figures."""
        return [*self.names, *self.means]

    def values(self, weights: Floats | None = None) -> Floats:
        """(…, figures and means) for weights of shape (…, images); all 1 by default."""
        weights = np.ones(len(self.sums)) if weights is None else weights
        ratios = (weights @ self.sums) / np.maximum(weights @ self.counts, 1e-300)
        at = {name: number for number, name in enumerate(self.names)}
        means = [ratios[..., [at[part] for part in parts]].mean(-1, keepdims=True) for parts in self.means.values()]
        return np.concatenate([ratios, *means], axis=-1)

    def only(self, keep: Sequence[int]) -> Tally:
        """The same of some images, in their order."""
        rows = np.asarray(keep, dtype=np.int64)
        return Tally(
            units=[self.units[row] for row in rows],
            names=self.names,
            sums=self.sums[rows],
            counts=self.counts[rows],
            means=self.means,
        )


def replicates(tallies: Sequence[Tally], seed: int, times: int = REPLICATES) -> list[Floats]:
    """For each tally (times, figures), all under the same resamplings; the tallies share their images."""
    images = len(tallies[0].units)
    rng = np.random.default_rng(seed)
    rows = max(1, CELLS // max(1, images))
    parts: list[list[Floats]] = [[] for _ in tallies]
    for start in range(0, times, rows):
        drawn = rng.integers(0, images, (min(rows, times - start), images))
        weights = np.stack([np.bincount(one, minlength=images) for one in drawn]).astype(np.float64)
        for part, tally in zip(parts, tallies, strict=True):
            part.append(tally.values(weights))
    return [np.concatenate(part) for part in parts]


def intervals(values: Floats) -> Floats:
    """(figures, 2): the central 95 % of (times, figures)."""
    return np.percentile(values, [2.5, 97.5], axis=0).T


def summary(tally: Tally, seed: int, scale: float = 1.0) -> tuple[dict[str, float], dict[str, list[float]]]:
    """({figure: value}, {figure: [low, high]}) of a tally, multiplied by `scale`."""
    found = tally.values() * scale
    spread = intervals(replicates([tally], seed)[0]) * scale
    return (
        {name: float(value) for name, value in zip(tally.all_names, found, strict=True)},
        {name: [float(low), float(high)] for name, (low, high) in zip(tally.all_names, spread, strict=True)},
    )


def compare(first: Tally, second: Tally, seed: int, scale: float = 1.0) -> dict[str, dict[str, Any]]:
    """For each figure of both: the two values, second less first, and its 95 % interval over the images of both."""
    shared = sorted(set(first.units) & set(second.units))
    tallies = []
    for tally in (first, second):
        at = {unit: number for number, unit in enumerate(tally.units)}
        tallies.append(tally.only([at[unit] for unit in shared]))
    before, after = (tally.values() * scale for tally in tallies)
    one, other = replicates(tallies, seed)
    spread = intervals((other - one) * scale)
    return {
        name: {
            "first": float(before[number]),
            "second": float(after[number]),
            "difference": float(after[number] - before[number]),
            "ci95": [float(bound) for bound in spread[number]],
            "images": len(shared),
        }
        for number, name in enumerate(tallies[0].all_names)
    }


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"i2t/R@1": x, "mR": y} as {"i2t": {"R@1": x}, "mR": y}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return tree
