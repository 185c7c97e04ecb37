"""Which rows are twins of which, exactly: survivors by a total order, and components of near-twins.

Rows come in the total order, as integers that are equal where URLs, bytes or hashes are. A row is dropped
when a *kept* row before it has the same URL, the same bytes, or a hash within the radius; its survivor is
the first such row and its reason the strongest match with any such row. So a chain A–B–C, where only
neighbours are near, keeps A and C.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

REASONS = ("duplicate_url", "duplicate_bytes", "duplicate_image")
"""Strongest first."""
NONE = -1
"""The id of a URL, digest or hash that is not there; it equals nothing."""

Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]


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

    hashes: Hashes
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

    @classmethod
    def among(cls, hashes: Hashes, left: Hashes, right: Hashes) -> Near:
        """From sorted distinct hashes and pairs of them, given as hashes."""
        return cls(hashes=hashes, left=np.searchsorted(hashes, left), right=np.searchsorted(hashes, right))

    def touching(self, hashes: Hashes) -> Ids:
        """Ids of the given hashes (all known here) and of those within the radius of one."""
        ids = np.searchsorted(self.hashes, hashes)
        near_left, near_right = np.isin(self.left, ids), np.isin(self.right, ids)
        return np.unique(np.concatenate([ids, self.right[near_left], self.left[near_right]]))

    def without(self, ids: Ids) -> Near:
        """The same hashes, less the pairs of some."""
        stays = ~(np.isin(self.left, ids) | np.isin(self.right, ids))
        return Near(hashes=self.hashes, left=self.left[stays], right=self.right[stays])


def find_twins(url: Ids, content: Ids, image: Ids, near: Near) -> Twins:
    """Decide on rows given in the total order. Rows that match nothing may be left out: they change nothing.

    Args:
        url, content, image: (n,) ids of the URL, the bytes and the hash, equal where those are, or NONE;
            `image` indexes `near.hashes`. The others had better be dense.
        near: the hashes' pairs within the radius.
    """
    survivor, reason = _claim(url, content, image, near)
    return Twins(survivor=survivor, reason=reason, component=_components(url, content, image, near))


def _claim(url: Ids, content: Ids, image: Ids, near: Near) -> tuple[Ids, NDArray[np.int8]]:
    """Survivor and reason of each row: kept rows claim their URL, bytes, hash and the hashes near it."""
    rows = len(url)
    nobody = rows
    sizes = (_size(url), _size(content), len(near.hashes))
    by_url, by_content, by_image = ([nobody] * (size + 1) for size in sizes)  # NONE (−1) finds the last, never claimed
    starts, others = near.starts.tolist(), near.others
    survivor, reason = list(range(rows)), [NONE] * rows
    for row, (u, c, i) in enumerate(zip(url.tolist(), content.tolist(), image.tolist(), strict=True)):
        same_url, same_content, same_image = by_url[u], by_content[c], by_image[i]
        first = min(same_url, same_content, same_image)
        if first != nobody:
            survivor[row] = first
            reason[row] = 0 if same_url != nobody else 1 if same_content != nobody else 2
            continue
        if u != NONE:
            by_url[u] = row
        if c != NONE:
            by_content[c] = row
        if i != NONE:
            by_image[i] = row
            for other in others[starts[i] : starts[i + 1]].tolist():
                if by_image[other] == nobody:
                    by_image[other] = row
    return np.array(survivor, np.int64), np.array(reason, np.int8)


def _components(url: Ids, content: Ids, image: Ids, near: Near) -> Ids:
    """First row of every row's component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right, nodes = [], [], len(url)
    for ids, size in ((url, _size(url)), (content, _size(content)), (image, len(near.hashes))):
        known = np.flatnonzero(ids != NONE)
        left.append(known)
        right.append(nodes + ids[known])
        offset, nodes = nodes, nodes + size
    left.append(offset + near.left)
    right.append(offset + near.right)
    ends = (np.concatenate(left), np.concatenate(right))
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(nodes, nodes))
    labels = connected_components(graph, directed=False)[1][: len(url)]
    _, first, of_row = np.unique(labels, return_index=True, return_inverse=True)
    return first[of_row].astype(np.int64)


def _size(ids: Ids) -> int:
    return int(ids.max(initial=NONE)) + 1
