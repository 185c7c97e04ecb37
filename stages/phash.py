"""The perceptual hash: 64 bits of the low frequencies of a 32 × 32 grey thumbnail.

As `imagehash.phash` (hash_size 8, highfreq_factor 4) of the image under the RGB rule (`stages.images.to_rgb`):
convert to grey, shrink with Lanczos to 32 × 32, two unnormalised DCT-II (columns, then rows), the 8 × 8 lowest
frequencies row by row, each bit set where the coefficient exceeds their median; the first bit is the highest
of the integer. Coefficients are rounded to `DIGITS`, so that the bits of ties do not depend on a processor.

The thumbnail is kept beside the hash: it tells how much texture there is, and what the hash would be had the
image been turned or mirrored. Pillow computes its filter anew for every image, and sums pixel by pixel; for the sizes
that most images have here two products of matrices give the same grey levels, to the last bit.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 32
LOW = 8
DIGITS = 6
FLAT_DEVIATION = 3.0
"""Below this standard deviation of the thumbnail's grey levels (0–255) the bits would be those of noise."""
ORIENTATIONS = 8
LOBES = 3
"""Of the Lanczos filter."""
UNIT = 2**22
"""Pillow rounds a filter's weights to multiples of 1 / UNIT, and sums whole numbers."""
GROUP = 8
"""Pixels of the thumbnail that are computed together."""
USUAL = range(100, 401)
"""Sides of images that are shrunk by matrices: larger ones would want large matrices."""

Grey = NDArray[np.uint8]


def thumbnail(image: Image) -> Grey:
    """(32, 32) grey levels of an image of mode L or RGB."""
    from PIL.Image import Resampling

    grey = image if image.mode == "L" else image.convert("L")
    width, height = grey.size
    # of tall and tiny images some versions of Pillow shrink the columns first
    if width in USUAL and height in USUAL and height < 1.5 * width:
        return _shrunk(np.asarray(grey))
    return np.asarray(grey.resize((SIDE, SIDE), Resampling.LANCZOS))


def _shrunk(grey: Grey) -> Grey:
    """As Pillow's Lanczos, rows first: sums of whole numbers below 2^53, so that no order of theirs rounds."""
    rows = _lines_shrunk(grey.astype(np.float64))
    return _lines_shrunk(rows.T).T.astype(np.uint8)


def _lines_shrunk(lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 32) grey levels of (n, size): products so small that no library spreads them over threads."""
    sums = np.empty((len(lines), SIDE))
    for targets, pixels, weights in _filter(lines.shape[1]):
        np.matmul(lines[:, pixels], weights, out=sums[:, targets])
    return _rounded(sums)


def _rounded(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Grey levels of sums in units of 1 / UNIT, in place."""
    sums += UNIT / 2
    sums *= 1 / UNIT
    np.floor(sums, out=sums)
    np.maximum(sums, 0, out=sums)
    return np.minimum(sums, 255, out=sums)


@cache
def _filter(size: int) -> list[tuple[slice, slice, NDArray[np.float64]]]:
    """By groups of targets: which they are, the pixels of the line that count, and their weights."""
    weights = _weights(size)
    groups = []
    for start in range(0, SIDE, GROUP):
        targets = slice(start, start + GROUP)
        used = np.flatnonzero(weights[:, targets].any(axis=1))
        pixels = slice(used[0], used[-1] + 1)
        groups.append((targets, pixels, np.ascontiguousarray(weights[pixels, targets])))
    return groups


def _weights(size: int) -> NDArray[np.float64]:
    """(size, 32) weights of the pixels of a line in those it is shrunk to, in units of 1 / UNIT."""
    scale = size / SIDE
    weights = np.zeros((size, SIDE))
    for target in range(SIDE):
        middle, reach = (target + 0.5) * scale, LOBES * scale
        first, end = max(int(middle - reach + 0.5), 0), min(int(middle + reach + 0.5), size)
        heights = [_lanczos((pixel - middle + 0.5) * (1 / scale)) for pixel in range(first, end)]
        whole = sum(heights)
        weights[first:end, target] = [round(height / whole * UNIT) for height in heights]
    return weights


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / LOBES) if -LOBES <= x < LOBES else 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


def phash(grey: Grey) -> int | None:
    """The hash of a thumbnail as an unsigned 64-bit integer; None when the image is too flat to hash."""
    levels = grey.astype(np.float64)
    flat = levels.ravel()
    if flat.size * (flat @ flat) - flat.sum() ** 2 < (FLAT_DEVIATION * flat.size) ** 2:  # whole numbers: exact
        return None
    low = np.round(_dct() @ levels @ _dct().T, DIGITS).ravel()
    # above the median of 64 is above the lower one of its middle two
    return int.from_bytes(np.packbits(low > np.partition(low, 31)[31]).tobytes(), "big")


def orientation_hashes(greys: Grey) -> NDArray[np.uint64]:
    """(n, 8) hashes of (n, 32, 32) thumbnails in their eight orientations, as they stand first; flat ones too."""
    low = np.round(_dct() @ greys @ _dct().T, DIGITS)
    sign = np.where(np.arange(LOW) % 2, -1.0, 1.0)  # mirroring negates every second frequency
    turned = []
    for block in (low, low.swapaxes(1, 2)):
        turned += [block, block * sign, block * sign[:, None], block * sign * sign[:, None]]
    blocks = np.stack(turned, axis=1).reshape(len(greys), ORIENTATIONS, LOW * LOW)
    bits = np.packbits(blocks > np.median(blocks, axis=2, keepdims=True), axis=2)
    return bits.view(">u8")[:, :, 0].astype(np.uint64)


@cache
def _dct() -> NDArray[np.float64]:
    """(8, 32): the lowest frequencies of the unnormalised DCT-II."""
    steps = np.outer(np.arange(LOW), 2 * np.arange(SIDE) + 1)
    return 2 * np.cos(np.pi / (2 * SIDE) * steps)
