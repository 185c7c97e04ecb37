"""What becomes of every row: equal URLs, bytes and hashes are found by sorting, then twins among those rows alone.

A row that shares nothing with another is kept and is its own cluster and component: all that is held per such
row is the column being sorted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages import twins
from stages.blocklist import Blocklist
from stages.narrow import HAS_CONTENT, HAS_PHASH, HAS_URL, Halves, NarrowRows, content_halves, key_texts
from stages.twins import NONE, Hashes, Ids, Near

LARGEST = 20
"""Clusters that the summary names."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Rows that share a value with another, and which."""

    rows: Ids
    """Positions in the input, ascending."""
    ids: Ids
    """Equal where the values are."""

    def of(self, rows: Ids) -> Ids:
        """The ids of other rows, NONE where they share nothing."""
        found = np.full(len(rows), NONE, np.int64)
        if len(self.rows):
            place = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
            same = self.rows[place] == rows
            found[same] = self.ids[place[same]]
        return found


@dataclass(frozen=True, kw_only=True)
class Decided:
    """Survivors, reasons and components. All but `blocked` is about rows that share something, in the total order."""

    rows: Ids
    """Positions in the input."""
    survivor: Ids
    """Index into `rows` of the one that stands for it; its own when kept."""
    component: Ids
    """Index into `rows` of its component's first."""
    reason: NDArray[np.int8]
    """Index into `twins.REASONS`, or NONE when kept."""
    keys: Halves
    blocked: Ids
    """Positions of the rows that the blocklist drops."""
    near_pairs: int

    def summary(self, narrow: NarrowRows, sources: Sequence[str]) -> dict[str, Any]:
        """For the manifest: clusters by size, the largest ones' survivors, and what stood for each source's rows."""
        sizes = np.bincount(self.survivor, minlength=len(self.rows))
        shared = np.flatnonzero(sizes > 1)
        largest = shared[np.lexsort((shared, -sizes[shared]))[:LARGEST]]
        names = key_texts(self.keys[0][largest], self.keys[1][largest]).to_pylist()
        return {
            "near_pairs": self.near_pairs,
            "clusters": len(shared),
            "components": len(narrow) - len(self.rows) + len(np.unique(self.component)),
            "cluster_sizes": {str(size): count for size, count in sorted(Counter(sizes[shared].tolist()).items())},
            "largest": [[name, int(sizes[n])] for name, n in zip(names, largest, strict=True)],
            "between": self._between(narrow.column("source"), [*sources, "others"]),
        }

    def _between(self, source: NDArray[np.int16], names: Sequence[str]) -> dict[str, Any]:
        """`{source: {"kept": rows, "twins_of": {source: rows}}}` for each source with rows."""
        own = source[self.rows].astype(np.int64)
        pairs = np.where(self.reason == NONE, -1, own * len(names) + own[self.survivor])
        twins_of = np.bincount(pairs[pairs >= 0], minlength=len(names) ** 2).reshape(len(names), -1)
        rows = np.bincount(source, minlength=len(names))
        kept = rows - twins_of.sum(axis=1) - np.bincount(source[self.blocked], minlength=len(names))
        return {
            name: {
                "kept": int(kept[n]),
                "twins_of": {other: int(twins_of[n, m]) for m, other in enumerate(names) if twins_of[n, m]},
            }
            for n, name in enumerate(names)
            if rows[n]
        }


def decide(narrow: NarrowRows, pairs: tuple[Hashes, Hashes], listed: Blocklist) -> Decided:
    """Decide on all rows.

    Args:
        pairs: every two distinct hashes within the radius, the blocklist's among them.
        listed: rows of its digests, and of hashes within the radius of its hashes, stand for nobody.
    """
    known = narrow.column("known")
    url = equal_values(narrow.halves("url"), known & HAS_URL)
    halves = narrow.halves("content")
    content = equal_values(halves, known & HAS_CONTENT)
    blocked = np.zeros(len(known), bool)
    blocked[np.flatnonzero(known & HAS_CONTENT)[_among(halves, known & HAS_CONTENT, listed)]] = True
    del halves
    listed_hashes = np.array(sorted(listed.phash), np.uint64)
    image, near = equal_hashes(narrow.column("phash"), known & HAS_PHASH, pairs, listed_hashes)
    blocked[image.rows[np.isin(image.ids, near.touching(listed_hashes))]] = True
    rows = np.unique(np.concatenate([url.rows, content.rows, image.rows]))
    rows, keys = _in_total_order(narrow, rows[~blocked[rows]])
    images = image.of(rows)
    near_here = near.without(np.setdiff1d(np.arange(len(near.hashes)), images))
    found = twins.find_twins(url.of(rows), content.of(rows), images, near_here)
    return Decided(
        rows=rows,
        survivor=found.survivor,
        component=found.component,
        reason=found.reason,
        keys=keys,
        blocked=np.flatnonzero(blocked),
        near_pairs=len(near.left),
    )


def equal_values(values: Halves, known: NDArray[Any]) -> Shared:
    """The rows whose 128-bit value another row has, too; `known` is zero where a row has none."""
    high, low = values
    rows = np.flatnonzero(known)
    order = np.argsort(high[rows])
    rows = rows[order][_repeated(high[rows][order])]
    order = np.lexsort((low[rows], high[rows]))  # only rows whose higher halves meet get here
    rows = rows[order]
    new = np.ones(len(rows), bool)
    new[1:] = (high[rows][1:] != high[rows][:-1]) | (low[rows][1:] != low[rows][:-1])
    ids = np.cumsum(new) - 1
    shared = np.bincount(ids, minlength=1)[ids] > 1
    return _by_row(rows[shared], ids[shared])


def _repeated(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a sorted array's value stands more than once."""
    same = np.zeros(len(ordered) + 1, bool)
    same[1:-1] = ordered[1:] == ordered[:-1]
    return same[1:] | same[:-1]


def _by_row(rows: Ids, ids: Ids) -> Shared:
    order = np.argsort(rows)
    return Shared(rows=rows[order], ids=ids[order])


def equal_hashes(
    phash: Hashes, known: NDArray[Any], pairs: tuple[Hashes, Hashes], listed: Hashes
) -> tuple[Shared, Near]:
    """The rows whose hash is another row's, near one, or listed; and those hashes, which their ids index."""
    rows = np.flatnonzero(known)
    order = np.argsort(phash[rows])
    rows = rows[order]
    ordered = phash[rows]
    hashes = np.unique(np.concatenate([ordered[_repeated(ordered)], *pairs, listed]))
    first = np.searchsorted(ordered, hashes, side="left")
    count = np.searchsorted(ordered, hashes, side="right") - first
    places = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    return _by_row(rows[places], np.repeat(np.arange(len(hashes)), count)), Near.among(hashes, *pairs)


def _among(values: Halves, known: NDArray[Any], listed: Blocklist) -> NDArray[np.bool_]:
    """Which of the rows with known bytes have listed ones."""
    rows = np.flatnonzero(known)
    digests = content_halves(pa.chunked_array([sorted(listed.sha256)], pa.string()))
    wanted = set(zip(*(half.tolist() for half in digests), strict=True))
    found = np.isin(values[0][rows], digests[0])
    near = np.flatnonzero(found)
    found[near] = [pair in wanted for pair in zip(*(half[rows[near]].tolist() for half in values), strict=True)]
    return found


def _in_total_order(narrow: NarrowRows, rows: Ids) -> tuple[Ids, Halves]:
    """Rows by source precedence, more pixels, longer caption, smaller key; and their keys."""
    high, low = (half[rows] for half in narrow.halves("key"))
    before = [-narrow.column(name)[rows].astype(np.int64) for name in ("caption_length", "pixels")]
    order = np.lexsort((low, high, *before, narrow.column("source")[rows]))
    return rows[order], (high[order], low[order])
