"""Which rows are twins of which, exactly: survivors by a total order, and components of near-twins.

Rows come in the total order, as integers that are equal where URLs, bytes or hashes are. A row is dropped
when a *kept* row before it has the same URL, the same bytes, or a hash within the radius; its survivor is
the first such row and its reason the strongest match with any such row. So a chain A–B–C, where only
neighbours are near, keeps A and C.

Where a hash alone does not decide, near rows count as one image only if `Doubts` says so; components join them
all the same, which keeps what is nearly alike on one side of a split.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from stages.hamming import distinct

REASONS = ("duplicate_url", "duplicate_bytes", "duplicate_image")
"""Strongest first."""
NONE = -1
"""The id of a URL, digest or hash that is not there; it equals nothing."""

BLOCK = 1 << 16
COMPARED = 64
"""Kept rows after the first that a hash remembers, to compare thumbnails with."""

Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]
HashPairs = tuple[Hashes, Hashes]


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
class Graph:
    """What matches what: pairs of ids, which count from 0."""

    size: int
    """Ids that match themselves, too."""
    left: Ids
    right: Ids
    starts: Ids = field(init=False)
    others: Ids = field(init=False)

    def __post_init__(self) -> None:
        ends = np.concatenate([self.left, self.right])
        order = np.argsort(ends, kind="stable")
        object.__setattr__(self, "others", np.concatenate([self.right, self.left])[order])
        object.__setattr__(self, "starts", np.searchsorted(ends[order], np.arange(self.nodes + 1)))

    @classmethod
    def of(cls, size: int, left: Ids | None = None, right: Ids | None = None) -> Graph:
        """From pairs, or with none."""
        none = np.empty(0, np.int64)
        return cls(size=size, left=none if left is None else left, right=none if right is None else right)

    @property
    def nodes(self) -> int:
        """All ids."""
        return self.size

    @property
    def lonely(self) -> NDArray[np.bool_]:
        """(nodes,) whether nothing else matches."""
        return np.diff(self.starts) == 0

    def touching(self, ids: Ids) -> Ids:
        """Some ids and those that match one of them."""
        given = self._flags(ids)
        near = given.copy()
        near[self.right[given[self.left]]] = True
        near[self.left[given[self.right]]] = True
        return np.flatnonzero(near)

    def _flags(self, ids: Ids) -> NDArray[np.bool_]:
        """(nodes,) whether an id is among some."""
        flags = np.zeros(self.nodes, bool)
        flags[ids] = True
        return flags

    def without(self, ids: Ids) -> Self:
        """The same ids, less the pairs of some."""
        goes = self._flags(ids)
        stays = ~(goes[self.left] | goes[self.right])
        return replace(self, left=self.left[stays], right=self.right[stays])

    def seen(self, ids: Ids) -> Self:
        """The same ids, less the pairs of those that are not among some; NONE is no id."""
        unseen = np.ones(self.nodes + 1, bool)
        unseen[ids] = False  # NONE (−1) is the last
        return self.without(np.flatnonzero(unseen[:-1]))


@dataclass(frozen=True, kw_only=True)
class Near(Graph):
    """Distinct hashes, those of turned images after those of images as they stand, and which match each other."""

    size: int = field(init=False)
    hashes: Hashes
    """Of images as they stand, sorted; ids are positions in it."""
    turned: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    """Of images turned or mirrored, sorted; their ids follow. No pair is of two of them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.hashes))
        super().__post_init__()

    @classmethod
    def among(cls, hashes: Hashes, pairs: HashPairs, turned_pairs: HashPairs) -> Near:
        """From sorted distinct hashes, pairs of them, and pairs of one and a turned image's, given as hashes."""
        turned = distinct(turned_pairs[1])
        one = (np.searchsorted(hashes, side) for side in (pairs[0], turned_pairs[0]))
        other = (np.searchsorted(hashes, pairs[1]), len(hashes) + np.searchsorted(turned, turned_pairs[1]))
        return cls(hashes=hashes, turned=turned, left=np.concatenate([*one]), right=np.concatenate(other))

    @property
    def nodes(self) -> int:
        """Ids, those of turned images' hashes included."""
        return len(self.hashes) + len(self.turned)

    def values(self, ids: Ids) -> Hashes:
        """The hashes of ids."""
        return np.concatenate([self.hashes, self.turned])[ids]


class Doubts(Protocol):
    """Says of rows whose hashes match whether they count as one image."""

    @property
    def of(self) -> NDArray[np.bool_]:
        """(n,) rows that ask; of two others the hashes alone decide."""

    def settle(self, row: int, others: list[int]) -> int | None:
        """The first of some earlier rows that shows the same image as `row`, or None."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Rows by what their images look like: one of the ways to be near each other."""

    ids: Ids
    """(n, views) as `graph` counts them, or NONE."""
    graph: Graph
    doubts: Doubts | None = None
    """Asked where the graph alone does not decide."""


def find_twins(url: Ids, content: Ids, looks: Sequence[Looks], place: Ids | None = None) -> Twins:
    """Decide on rows given in the total order. Rows that match nothing may be left out: they change nothing.

    Args:
        url, content: (n,) ids of the URL and the bytes, equal where those are, or NONE; best dense.
        looks: by hashes (as the image stands and turned), by features.
        place: (n,) ids of the location, or NONE: rows of one place belong to one component.
    """
    survivor, reason = _claim(url, content, looks)
    places = [] if place is None else [place]
    return Twins(survivor=survivor, reason=reason, component=_components([url, content, *places], looks))


def _claim(url: Ids, content: Ids, looks: Sequence[Looks]) -> tuple[Ids, NDArray[np.int8]]:
    """Survivor and reason of each row: kept rows claim their URL, bytes, and all that looks like their image."""
    rows = len(url)
    nobody = rows
    by_url, by_content = (_filled(nobody, _size(ids) + 1) for ids in (url, content))  # NONE (−1) finds the last: nobody
    images = [_Images(look.graph, nobody, look.doubts) for look in looks]
    survivor, reason = np.arange(rows), np.full(rows, NONE, np.int8)
    for row, (u, c, *views) in enumerate(_in_blocks(url, content, *(look.ids for look in looks))):
        same_url, same_content = by_url[u], by_content[c]
        same_image = min([image.first(row, ids) for image, ids in zip(images, views, strict=True)])
        first = min(same_url, same_content, same_image)
        if first != nobody:
            survivor[row] = first
            reason[row] = 0 if same_url != nobody else 1 if same_content != nobody else 2
            continue
        if u != NONE:
            by_url[u] = row
        if c != NONE:
            by_content[c] = row
        for image, ids in zip(images, views, strict=True):
            image.keep(row, ids)
    return survivor, reason


def _in_blocks(*columns: NDArray[np.int64]) -> Iterator[tuple[Any, ...]]:
    """The rows of several arrays, some at a time as Python's numbers, which take four times an array's memory."""
    for start in range(0, len(columns[0]), BLOCK):
        yield from zip(*(column[start : start + BLOCK].tolist() for column in columns), strict=True)


def _filled(value: int, size: int) -> array[int]:
    return array("q", [value]) * size


class _Images:
    """What kept rows claim of looks: the first of them for each id, and where there are doubts those after it."""

    def __init__(self, near: Graph, nobody: int, doubts: Doubts | None) -> None:
        self._upright = near.size
        self._starts, self._others = array("q", near.starts.tobytes()), near.others
        self._nobody = nobody
        self._doubts = doubts
        self._doubtful = [] if doubts is None else doubts.of.tolist()
        self._first = _filled(nobody, near.nodes + 1)
        self._later: dict[int, list[int]] = {}

    def first(self, row: int, views: list[int]) -> int:
        """The first kept row that shows the same image as `row`, or nobody."""
        first = min([self._first[i] for i in views])
        if self._doubts is None or first == self._nobody or not (self._doubtful[row] or self._doubtful[first]):
            return first
        kept = {claim for i in views for claim in (self._first[i], *self._later.get(i, ()))}
        kept.discard(self._nobody)
        settled = self._doubts.settle(row, sorted(kept))
        return self._nobody if settled is None else settled

    def keep(self, row: int, views: list[int]) -> None:
        """Claim the ids that match those of a kept row."""
        for i in views:
            if i != NONE:
                near = self._others[self._starts[i] : self._starts[i + 1]].tolist()
                for claimed in (i, *near) if i < self._upright else near:
                    self._claim(row, claimed)

    def _claim(self, row: int, claimed: int) -> None:
        if self._first[claimed] == self._nobody:
            self._first[claimed] = row
        elif self._doubts is not None:
            later = self._later.setdefault(claimed, [])
            if len(later) < COMPARED:
                later.append(row)


def _components(values: Sequence[Ids], looks: Sequence[Looks]) -> Ids:
    """First row of every row's component: rows with equal `values`, and rows whose looks match."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = len(values[0])
    left, right, nodes = [], [], rows
    for ids in values:
        known = np.flatnonzero(ids != NONE)
        left.append(known)
        right.append(nodes + ids[known])
        nodes += _size(ids)
    for look in looks:
        row, view = np.nonzero(look.ids != NONE)
        left += [row, nodes + look.graph.left]
        right += [nodes + look.ids[row, view], nodes + look.graph.right]
        nodes += look.graph.nodes
    ends = (np.concatenate(left), np.concatenate(right))
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(nodes, nodes))
    labels = connected_components(graph, directed=False)[1][:rows]
    _, first, of_row = np.unique(labels, return_index=True, return_inverse=True)
    return first[of_row].astype(np.int64)


def _size(ids: Ids) -> int:
    return int(ids.max(initial=NONE)) + 1
