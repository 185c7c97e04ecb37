"""Enlarging with OpenCV's Lanczos filter of eight pixels (`INTER_LANCZOS4`), by products of small matrices.

OpenCV sums eight weighted pixels for each level it makes, one by one; matrix products take a third of the time.
Weights are OpenCV's, in the same units; the result is within one level of its. All sums are of whole numbers below
2^24, which float32 holds, so that no order in which a processor adds them changes a bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

TAPS = 8
UNIT = 2048
"""Weights are whole multiples of 1 / UNIT."""
BETWEEN = 8
"""Between columns and rows, levels are whole multiples of 1 / BETWEEN."""
GROUP = 16
"""Lines that are made together: few of the lines they come from are of no use to them."""
LARGEST = 2**20
"""Pixels above which the lines, four bytes a level, would no longer fit a processor's cache, and cost memory."""

Levels = NDArray[np.uint8]
Lines = NDArray[np.float32]


def enlarge(pixels: Levels, size: tuple[int, int]) -> Levels:
    """(height, width) or (height, width, channels) levels at a `size` (width, height) with no side shorter."""
    import cv2

    width, height = size
    channels = pixels.shape[2:]
    tall = _lines(pixels.reshape(len(pixels), -1).astype(np.float32), height)
    tall *= BETWEEN / UNIT
    np.rint(tall, out=tall)
    turned: Any = cv2.transpose(tall.reshape(height, -1, *channels))
    whole = _lines(turned.reshape(len(turned), -1), width)
    whole *= 1 / (BETWEEN * UNIT)
    levels = np.clip(np.rint(whole, out=whole), 0, 255, out=whole).astype(np.uint8)
    done: Any = cv2.transpose(levels.reshape(width, height, *channels))
    return done


def _lines(lines: Lines, count: int) -> Lines:
    """(count, n) lines of (m, n), in units of 1 / UNIT: products so small that no library spreads them over threads."""
    made = np.empty((count, lines.shape[1]), np.float32)
    for targets, used, weights in _filter(len(lines), count):
        np.matmul(weights, lines[used], out=made[targets])
    return made


@lru_cache(maxsize=1024)
def _filter(size: int, count: int) -> list[tuple[slice, slice, Lines]]:
    """By groups of lines to make: which they are, the lines that count for them, and their weights."""
    groups = []
    for start in range(0, count, GROUP):
        targets = range(start, min(start + GROUP, count))
        weights = np.zeros((len(targets), size), np.float32)
        for target in targets:
            before, share = divmod((target + 0.5) * (size / count) - 0.5, 1)
            for tap, weight in enumerate(_weights(share)):
                line = min(max(int(before) + tap - TAPS // 2 + 1, 0), size - 1)
                weights[target - start, line] += weight
        lines = np.flatnonzero(weights.any(axis=0))
        used = slice(lines[0], lines[-1] + 1)
        groups.append((slice(targets.start, targets.stop), used, np.ascontiguousarray(weights[:, used])))
    return groups


def _weights(share: float) -> NDArray[np.float64]:
    """(8,) weights of the pixels around a place that is `share` of a pixel behind the fourth, in units of 1 / UNIT."""
    distances = share + TAPS // 2 - 1 - np.arange(TAPS)
    heights = np.sinc(distances) * np.sinc(distances / (TAPS // 2))
    weights: NDArray[np.float64] = np.rint(heights / heights.sum() * UNIT)
    return weights
