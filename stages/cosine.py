"""Vectors whose cosine reaches a bound: all of them, or those that lie in cells near each other.

Whether a cosine reaches the bound is decided exactly. float16 numbers are multiples of 2⁻²⁴, so the products that a dot
product of unit vectors sums are multiples of 2⁻⁴⁸, and every partial sum fits the 53 bits of a float64: there the
result is exact, in whatever order a library sums, on any machine. float32 only proposes candidates.

Cells are those of spherical k-means, in float64 for the same reason (the coarse quantizer of Sivic and Zisserman 2003;
multiple probes as in Jégou et al. 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.features import Vectors

SLACK = 2e-3
"""How far below the bound candidates lie: rounded to float16 a norm is off by 2⁻¹¹ at most, float32 sums by less."""
BLOCK = 1024
"""Vectors compared with others at a time."""
CHECKED = 8192
"""Candidates checked at a time."""
ROUNDS = 6
"""Of k-means."""

Ids = NDArray[np.int64]
Pairs = tuple[Ids, Ids]


def similar(left: Vectors, right: Vectors, cosine: float) -> Pairs:
    """Every row of (n, width) `left` and row of (m, width) `right` whose cosine is that large, sorted."""
    wide = right.astype(np.float32).T
    found = [_none()]
    for start in range(0, len(left), BLOCK):
        rows, columns = np.nonzero(left[start : start + BLOCK].astype(np.float32) @ wide >= cosine - SLACK)
        found.append(_checked(left, right, (rows + start, columns), cosine))
    return _joined(found)


def similar_within(vectors: Vectors, cosine: float) -> Pairs:
    """Every two rows of (n, width) whose cosine is that large, the earlier first."""
    found = [_none()]
    for start in range(0, len(vectors), BLOCK):
        rows, columns = similar(vectors[start : start + BLOCK], vectors[start:], cosine)
        later = columns > rows
        found.append((rows[later] + start, columns[later] + start))
    return _joined(found)


def cosines(left: Vectors, right: Vectors) -> NDArray[np.float64]:
    """(n,) cosines of the rows of two (n, width) arrays."""
    one, other = left.astype(np.float64), right.astype(np.float64)
    dots, ones, others = (np.einsum("ij,ij->i", a, b) for a, b in ((one, other), (one, one), (other, other)))
    cosine: NDArray[np.float64] = dots / np.sqrt(np.maximum(ones * others, np.finfo(np.float64).tiny))
    return cosine


def _checked(left: Vectors, right: Vectors, pairs: Pairs, cosine: float) -> Pairs:
    rows, columns = pairs
    reached = np.empty(len(rows), bool)
    for start in range(0, len(rows), CHECKED):
        here = slice(start, start + CHECKED)
        reached[here] = cosines(left[rows[here]], right[columns[here]]) >= cosine
    return rows[reached], columns[reached]


def _joined(found: list[Pairs]) -> Pairs:
    return np.concatenate([rows for rows, _ in found]), np.concatenate([columns for _, columns in found])


def _none() -> Pairs:
    return np.empty(0, np.int64), np.empty(0, np.int64)


def centres(sample: Vectors, cells: int) -> Vectors:
    """(cells, width) unit vectors in the middle of the sample's cells; no more than the sample has rows."""
    found = sample[np.linspace(0, len(sample) - 1, min(cells, len(sample))).astype(np.int64)]
    for _ in range(ROUNDS):
        home = nearest(sample, found, 1)[:, 0]
        order = np.argsort(home, kind="stable")
        starts = np.searchsorted(home[order], np.arange(len(found) + 1))
        for cell in np.flatnonzero(np.diff(starts)):
            total = sample[order[starts[cell] : starts[cell + 1]]].astype(np.float64).sum(axis=0)
            found[cell] = (total / max(np.sqrt((total * total).sum()), np.finfo(np.float64).tiny)).astype(np.float16)
    return found


def nearest(vectors: Vectors, middles: Vectors, count: int) -> Ids:
    """(n, count) numbers of the `middles` with the largest dot products, the largest first; of equal ones the first."""
    count = min(count, len(middles))
    wide = middles.astype(np.float64).T
    found = np.empty((len(vectors), count), np.int64)
    for start in range(0, len(vectors), BLOCK):
        far = -(vectors[start : start + BLOCK].astype(np.float64) @ wide)
        best = np.sort(np.argpartition(far, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(np.take_along_axis(far, best, axis=1), axis=1, kind="stable")
        found[start : start + BLOCK] = np.take_along_axis(best, order, axis=1)
    return found
