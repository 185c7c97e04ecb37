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
from stages.doubts import Judge
from stages.embeddings import AlikeRows
from stages.hamming import distinct
from stages.narrow import (
    HAS_CONTENT,
    HAS_PHASH,
    HAS_PLACE,
    HAS_THUMBNAIL,
    HAS_URL,
    IS_TESTED,
    TURNED,
    Halves,
    NarrowRows,
    content_halves,
    key_texts,
)
from stages.twins import NONE, Hashes, HashPairs, Ids, Looks, Near

BLOCKLISTED, TEST_SET_IMAGE = "blocklisted", "test_set_image"
REASONS = (BLOCKLISTED, TEST_SET_IMAGE)
"""Why rows are dropped before any twin is looked for, strongest first."""
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
    barred: Ids
    """Positions of the rows that are dropped before any twin is looked for."""
    barred_reason: NDArray[np.int8]
    """Index into REASONS."""
    near_pairs: int
    alike_pairs: int | None
    """Of images by their features, where those were compared."""

    def summary(self, narrow: NarrowRows, sources: Sequence[str]) -> dict[str, Any]:
        """For the manifest: clusters by size, the largest ones' survivors, and what stood for each source's rows."""
        sizes = np.bincount(self.survivor, minlength=len(self.rows))
        shared = np.flatnonzero(sizes > 1)
        largest = shared[np.lexsort((shared, -sizes[shared]))[:LARGEST]]
        names = key_texts(self.keys[0][largest], self.keys[1][largest]).to_pylist()
        by_features = {} if self.alike_pairs is None else {"alike_pairs": self.alike_pairs}
        return {
            "near_pairs": self.near_pairs,
            **by_features,
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
        kept = rows - twins_of.sum(axis=1) - np.bincount(source[self.barred], minlength=len(names))
        return {
            name: {
                "kept": int(kept[n]),
                "twins_of": {other: int(twins_of[n, m]) for m, other in enumerate(names) if twins_of[n, m]},
            }
            for n, name in enumerate(names)
            if rows[n]
        }


@dataclass(frozen=True, kw_only=True)
class Links:
    """The rows that have a hash in common or near, in any of the orientations looked at."""

    views: Sequence[Shared]
    """Rows and ids of the hash as it stands, then of the turned ones."""
    near: Near
    """What the ids index."""

    @property
    def rows(self) -> Ids:
        """All of them, ascending."""
        return distinct(np.concatenate([view.rows for view in self.views]))

    def of(self, rows: Ids) -> Ids:
        """(n, views) ids of other rows."""
        return np.stack([view.of(rows) for view in self.views], axis=1)


def link(narrow: NarrowRows, pairs: HashPairs, turned_pairs: HashPairs, listed: Blocklist) -> Links:
    """Rows by their hashes.

    Args:
        pairs: every two distinct hashes within the radius, the blocklist's among them.
        turned_pairs: every hash, and every turned image's within the radius of it.
    """
    known = narrow.column("known")
    hashes = np.concatenate([*pairs, turned_pairs[0], np.array(sorted(listed.phash), np.uint64)])
    upright, hashes = equal_hashes(narrow.column("phash"), known & HAS_PHASH, hashes)
    near = Near.among(hashes, pairs, turned_pairs)
    views = [upright]
    if len(near.turned):
        turnable = (known & (HAS_PHASH | HAS_THUMBNAIL)) == HAS_PHASH | HAS_THUMBNAIL
        views += [_turned(narrow.column(name), turnable, near) for name in TURNED.names]
    return Links(views=views, near=near)


def _turned(values: Hashes, known: NDArray[np.bool_], near: Near) -> Shared:
    """The rows whose turned hash is near some image's."""
    place = np.minimum(np.searchsorted(near.turned, values), len(near.turned) - 1)
    rows = np.flatnonzero(known & (near.turned[place] == values))
    return Shared(rows=rows, ids=len(near.hashes) + place[rows])


def decide(
    narrow: NarrowRows, links: Links, listed: Blocklist, judge: Judge | None = None, alike: AlikeRows | None = None
) -> Decided:
    """Decide on all rows.

    Args:
        links: rows with near hashes; the radius is theirs.
        listed: rows of its digests, and of hashes within the radius of its hashes, stand for nobody.
        judge: settles where near hashes alone do not decide.
        alike: rows whose images' features are alike.
    """
    known = narrow.column("known")
    url = equal_values(narrow, "url", known & HAS_URL)
    content = equal_values(narrow, "content", known & HAS_CONTENT)
    blocked = np.zeros(len(known), bool)
    blocked[_listed(narrow, known & HAS_CONTENT, listed)] = True
    listed_ids = np.searchsorted(links.near.hashes, np.array(sorted(listed.phash), np.uint64))
    for view in links.views:
        blocked[view.rows[np.isin(view.ids, links.near.touching(listed_ids))]] = True
    barred = blocked | (known & IS_TESTED > 0)
    place = _places(narrow, known)
    rows = distinct(np.concatenate([url.rows, content.rows, place.rows, links.rows, *([alike.rows] if alike else [])]))
    rows, keys = _in_total_order(narrow, rows[~barred[rows]])
    images = links.of(rows)
    near = links.near.seen(images)
    images[:, 1:][near.lonely[images[:, 1:]]] = NONE  # a turned hash is nothing to others that share it
    places = place.of(rows)
    doubts = judge.doubts(narrow, rows, places) if judge else None
    looks = [Looks(ids=images, graph=near, doubts=doubts)]
    if alike:
        looks.append(alike.looks(rows, doubts.about_views() if doubts else None))
    found = twins.find_twins(url.of(rows), content.of(rows), looks, places)
    return Decided(
        rows=rows,
        survivor=found.survivor,
        component=found.component,
        reason=found.reason,
        keys=keys,
        barred=np.flatnonzero(barred),
        barred_reason=np.where(blocked[barred], REASONS.index(BLOCKLISTED), REASONS.index(TEST_SET_IMAGE)),
        near_pairs=len(links.near.left),
        alike_pairs=len(alike.graph.left) if alike else None,
    )


def _places(narrow: NarrowRows, known: NDArray[Any]) -> Shared:
    """The rows whose location another row has, too."""
    if not (known & HAS_PLACE).any():
        return Shared(rows=np.empty(0, np.int64), ids=np.empty(0, np.int64))
    return equal_values(narrow, "place", known & HAS_PLACE)


def equal_values(narrow: NarrowRows, name: str, known: NDArray[Any]) -> Shared:
    """The rows whose 128-bit value another row has, too; `known` is zero where a row has none."""
    rows = _with_equal(narrow.column(f"{name}_high"), known)
    high, low = (narrow.column(f"{name}_{half}")[rows] for half in ("high", "low"))
    order = np.lexsort((low, high))
    rows, high, low = rows[order], high[order], low[order]
    new = np.ones(len(rows), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    ids = np.cumsum(new) - 1
    shared = np.bincount(ids, minlength=1)[ids] > 1
    return _by_row(rows[shared], ids[shared])


def _with_equal(values: NDArray[np.uint64], known: NDArray[Any]) -> Ids:
    """Rows whose value stands more than once."""
    order = np.argsort(values)
    order = order[_repeated(values[order])]
    return order[known[order] > 0]


def _repeated(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a sorted array's value stands more than once."""
    same = np.zeros(len(ordered) + 1, bool)
    same[1:-1] = ordered[1:] == ordered[:-1]
    return same[1:] | same[:-1]


def _by_row(rows: Ids, ids: Ids) -> Shared:
    order = np.argsort(rows)
    return Shared(rows=rows[order], ids=ids[order])


def equal_hashes(phash: Hashes, known: NDArray[Any], wanted: Hashes) -> tuple[Shared, Hashes]:
    """The rows whose hash is another row's or wanted; and those hashes, sorted, which their ids index."""
    order = np.argsort(phash)
    ordered = phash[order]
    repeated = order[_repeated(ordered)]
    hashes = distinct(np.concatenate([phash[repeated[known[repeated] > 0]], wanted]))
    first = np.searchsorted(ordered, hashes, side="left")
    count = np.searchsorted(ordered, hashes, side="right") - first
    rows = order[np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())]
    ids = np.repeat(np.arange(len(hashes)), count)
    here = known[rows] > 0
    return _by_row(rows[here], ids[here]), hashes


def _listed(narrow: NarrowRows, known: NDArray[Any], listed: Blocklist) -> Ids:
    """The rows with listed bytes."""
    if not listed.sha256:
        return np.empty(0, np.int64)
    digests = content_halves(pa.chunked_array([sorted(listed.sha256)], pa.string()))
    wanted = set(zip(*(half.tolist() for half in digests), strict=True))
    rows = np.flatnonzero((known > 0) & np.isin(narrow.column("content_high"), digests[0]))
    halves = (narrow.column(f"content_{half}")[rows].tolist() for half in ("high", "low"))
    return rows[[pair in wanted for pair in zip(*halves, strict=True)]]


def _in_total_order(narrow: NarrowRows, rows: Ids) -> tuple[Ids, Halves]:
    """Rows by source precedence, more pixels, longer caption, smaller key; and their keys."""
    high, low = (narrow.column(f"key_{half}")[rows] for half in ("high", "low"))
    before = [-narrow.column(name)[rows].astype(np.int64) for name in ("caption_length", "pixels")]
    order = np.lexsort((low, high, *before, narrow.column("source")[rows]))
    return rows[order], (high[order], low[order])
