"""Near hashes between images as they stand and other images turned or mirrored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stages import hamming
from stages.twins import Hashes, HashPairs


def pairs_between(left: Hashes, right: Hashes, radius: int) -> HashPairs:
    """Every hash of `left` with every one of `right` at most `radius` bits away, sorted; equal ones are pairs, too.

    Args:
        left, right: (n,) and (m,) sorted distinct hashes.
    """
    return _between(left, right, lambda hashes: hamming.pairs_within(hashes, radius) if radius else _NO_PAIRS)


def pairs_between_in_band(left: Hashes, right: Hashes, radius: int, band: int) -> HashPairs:
    """The pairs of `pairs_between` that `hamming.pairs_in_band` gives to a band; the first has the equal ones."""
    found = _between(left, right, lambda hashes: hamming.pairs_in_band(hashes, radius, band))
    differ = (found[0] != found[1]) | (band == 0)
    return found[0][differ], found[1][differ]


_NO_PAIRS = (np.empty(0, np.int64), np.empty(0, np.int64))


def _between(left: Hashes, right: Hashes, search: Callable[[Hashes], hamming.Pairs]) -> HashPairs:
    if not len(left) or not len(right):
        return left[:0], right[:0]
    hashes = hamming.distinct(np.concatenate([left, right]))
    in_left, in_right = _among(left, hashes), _among(right, hashes)
    i, j = search(hashes)
    forth, back = in_left[i] & in_right[j], in_left[j] & in_right[i]
    equal = np.flatnonzero(in_left & in_right)
    one = hashes[np.concatenate([i[forth], j[back], equal])]
    other = hashes[np.concatenate([j[forth], i[back], equal])]
    order = np.lexsort((other, one))
    return one[order], other[order]


def _among(some: Hashes, hashes: Hashes) -> NDArray[np.bool_]:
    """Which of the hashes are among sorted ones."""
    place = np.minimum(np.searchsorted(some, hashes), len(some) - 1)
    found: NDArray[np.bool_] = some[place] == hashes
    return found
