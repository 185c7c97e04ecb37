"""Which rows are twins of which, exactly: survivors by a total order, and components of near-twins.

Rows come in the total order, as integers that are equal where URLs, bytes or hashes are. A row is dropped
when a *kept* row before it has the same URL, the same bytes, or a hash within the radius; its survivor is
the first such row and its reason the strongest match with any such row. So a chain A–B–C, where only
neighbours are near, keeps A and C.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from stages.hamming import pairs_within

REASONS = ("duplicate_url", "duplicate_bytes", "duplicate_image")
"""Strongest first."""
NONE = -1
"""The id of a URL, digest or hash that is not there; it equals nothing."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Twins:
    """For each row of the total order: what it is a twin of."""

    survivor: Ids
    """Row that stands for it; itself when kept."""
    reason: NDArray[np.int8]
    """Index into REASONS, or NONE when kept."""
    component: Ids
    """First row of its connected component over all matches, whether the rows between were kept or not."""


@dataclass(frozen=True, kw_only=True)
class Near:
    """Distinct hashes and which of them are within the radius of each other."""

    hashes: NDArray[np.uint64]
    """Sorted; ids are positions in it."""
    left: Ids
    right: Ids
    starts: Ids = field(init=False)
    others: Ids = field(init=False)

    def __post_init__(self) -> None:
        ends = np.concatenate([self.left, self.right])
        order = np.argsort(ends, kind="stable")
        object.__setattr__(self, "others", np.concatenate([self.right, self.left])[order])
        object.__setattr__(self, "starts", np.searchsorted(ends[order], np.arange(len(self.hashes) + 1)))

    @property
    def degree(self) -> Ids:
        """Neighbours of each hash."""
        return np.diff(self.starts)

    def touching(self, hashes: NDArray[np.uint64]) -> Ids:
        """Ids of the given hashes (all known here) and of those within the radius of one."""
        ids = np.searchsorted(self.hashes, hashes)
        near_left, near_right = np.isin(self.left, ids), np.isin(self.right, ids)
        return np.unique(np.concatenate([ids, self.right[near_left], self.left[near_right]]))

    def without(self, ids: Ids) -> Near:
        """The same hashes, less the pairs of some."""
        stays = ~(np.isin(self.left, ids) | np.isin(self.right, ids))
        return Near(hashes=self.hashes, left=self.left[stays], right=self.right[stays])

    def of(self, hash_id: int) -> list[int]:
        """Ids within the radius of one, itself left out."""
        return self.others[self.starts[hash_id] : self.starts[hash_id + 1]].tolist()


def near_hashes(hashes: NDArray[np.uint64], radius: int) -> Near:
    """The distinct hashes among (n,) uint64 and their pairs within `radius` bits."""
    unique = np.unique(hashes)
    left, right = pairs_within(unique, radius)
    return Near(hashes=unique, left=left, right=right)


def find_twins(url: Ids, content: Ids, image: Ids, near: Near) -> Twins:
    """Decide on rows given in the total order.

    Args:
        url, content, image: (n,) ids of the URL, the bytes and the hash, equal where those are, or NONE;
            `image` indexes `near.hashes`.
        near: the hashes' pairs within the radius.
    """
    rows = np.flatnonzero(_shared(url) | _shared(content) | _shared(image) | _has_near(image, near))
    survivor = np.arange(len(url), dtype=np.int64)
    reason = np.full(len(url), NONE, np.int8)
    claims = _Claims(near)
    ids = zip(url[rows].tolist(), content[rows].tolist(), image[rows].tolist(), strict=True)
    for row, (u, c, i) in zip(rows.tolist(), ids, strict=True):
        match = claims.match(u, c, i)
        if match is None:
            claims.keep(row, u, c, i)
        else:
            survivor[row], reason[row] = match
    return Twins(survivor=survivor, reason=reason, component=_components(rows, url, content, image, near))


class _Claims:
    """What the kept rows so far have claimed: the first of them for every URL, content and near hash."""

    def __init__(self, near: Near) -> None:
        self._near = near
        self._by_url: dict[int, int] = {}
        self._by_content: dict[int, int] = {}
        self._by_image: dict[int, int] = {}

    def match(self, url: int, content: int, image: int) -> tuple[int, int] | None:
        """(first kept row that matches, strongest match), or None."""
        found = (self._by_url.get(url), self._by_content.get(content), self._by_image.get(image))
        rows = [row for row in found if row is not None]
        if not rows:
            return None
        return min(rows), next(strength for strength, row in enumerate(found) if row is not None)

    def keep(self, row: int, url: int, content: int, image: int) -> None:
        if url != NONE:
            self._by_url[url] = row
        if content != NONE:
            self._by_content[content] = row
        if image != NONE:
            for claimed in chain((image,), self._near.of(image)):
                self._by_image.setdefault(claimed, row)


def _shared(ids: Ids) -> NDArray[np.bool_]:
    """Where another row has the same id."""
    counts = np.bincount(ids[ids != NONE], minlength=1)
    return (ids != NONE) & (counts[np.maximum(ids, 0)] > 1)


def _has_near(image: Ids, near: Near) -> NDArray[np.bool_]:
    if not len(near.hashes):
        return np.zeros(len(image), bool)
    return (image != NONE) & (near.degree[np.maximum(image, 0)] > 0)


def _components(rows: Ids, url: Ids, content: Ids, image: Ids, near: Near) -> Ids:
    """First row of every row's component; `rows` are those with any match."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    component = np.arange(len(url), dtype=np.int64)
    if not len(rows):
        return component
    left, right, nodes = [], [], len(rows)
    for ids in (url[rows], content[rows], image[rows]):
        known = np.flatnonzero(ids != NONE)
        left.append(known)
        right.append(nodes + ids[known])
        offset = nodes
        nodes += int(ids.max(initial=NONE)) + 1
    joined = (near.left < nodes - offset) & (near.right < nodes - offset)
    left.append(offset + near.left[joined])
    right.append(offset + near.right[joined])
    ends = (np.concatenate(left), np.concatenate(right))
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(nodes, nodes))
    labels = connected_components(graph, directed=False)[1][: len(rows)]
    _, first, of_row = np.unique(labels, return_index=True, return_inverse=True)
    component[rows] = rows[first[of_row]]
    return component
