"""Do two thumbnails show the same picture? Where a hash alone may err, pairs are confirmed by this.

A perceptual hash is 64 signs of low frequencies. Two unrelated pictures agree in nearly all of them by chance the
sooner, the more bits may differ, and when there is little to see: over calm water or bare ground the signs are
those of faint shading. So a pair is confirmed when its hashes differ by more than `ALONE` bits, or when either
picture has little texture.

The measure is the correlation of the thumbnails' gradients: differences of neighbouring grey levels, to the right
and downwards. Brightness, contrast and colour do not touch it, and unlike the grey levels themselves, whose
correlation is that of the few frequencies the hash has seen already, it asks the fine structure. All sums are of
whole numbers, so no processor or library decides differently (docs/dedup.md has the measurements).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.phash import SIDE

ALONE = 3
"""Bits by which hashes of textured pictures may differ and still decide alone."""
TEXTURE = 10.0
"""Standard deviation of a thumbnail's grey levels (0–255) below which a picture has little texture."""
AGREE = 0.3
"""Least correlation of gradients of two copies: where the measure is in doubt, the hash decides."""

Greys = NDArray[np.uint8]


def is_plain(greys: Greys) -> NDArray[np.bool_]:
    """(n,) whether (n, 32, 32) thumbnails have little texture."""
    pixels = greys.reshape(len(greys), SIDE * SIDE).astype(np.int64)
    count = pixels.shape[1]
    variance = count * (pixels * pixels).sum(axis=1) - pixels.sum(axis=1) ** 2  # times count²
    return variance < (TEXTURE * count) ** 2


def likeness(grey: Greys, others: Greys, orientations: int = 1) -> NDArray[np.float64]:
    """(n,) correlations, −1 to 1, of one (32, 32) thumbnail's gradients with those of (n, 32, 32) others.

    With 8 orientations the greatest over the turned and mirrored views of the first. Without any gradient in
    one of two thumbnails: 0.
    """
    views = oriented(grey)[:orientations]
    mine = _gradients(views)
    theirs = _gradients(others)
    products = theirs @ mine.T
    squares = np.outer((theirs * theirs).sum(axis=1), (mine * mine).sum(axis=1))
    found: NDArray[np.float64] = (products / np.sqrt(np.maximum(squares, 1))).max(axis=1)
    return found


def oriented(grey: Greys) -> Greys:
    """(8, 32, 32): a thumbnail in its eight orientations, in the order of `phash.orientation_hashes`."""
    views = []
    for view in (grey, grey.T):
        views += [view, view[:, ::-1], view[::-1], view[::-1, ::-1]]
    return np.stack(views)


def _gradients(greys: Greys) -> NDArray[np.int64]:
    """(n, 2 · 31 · 31) differences to the right and downwards."""
    levels = greys.reshape(len(greys), SIDE, SIDE).astype(np.int64)
    right, down = np.diff(levels, axis=2)[:, :-1], np.diff(levels, axis=1)[:, :, :-1]
    return np.concatenate([right, down], axis=1).reshape(len(greys), -1)
