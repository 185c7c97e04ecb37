"""Recall at k where equal scores share their ranks: the expected hit over all orders of ties, and the extremes.

A hit is at least one positive among the first k (the usual protocol of image-text retrieval). Copies of a text or an
image are scored once, so that they tie exactly; which copy a sort would put first is then nobody's luck.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KS = (1, 5, 10)
CELLS = 1 << 22
"""Scores held at a time: 16 MiB in float32, and 32 MiB for what they are compared with."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """Queries or gallery: items, and the distinct vectors behind them."""

    features: NDArray[np.float32]
    """(distinct, d), each of length 1."""
    of: Ints
    """(items,): the distinct vector of each item."""

    @property
    def counts(self) -> Floats:
        """(distinct,): items of each vector."""
        return np.bincount(self.of, minlength=len(self.features)).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Which gallery items are right for which queries, sorted by query; every query has one at least."""

    query: Ints
    item: Ints
    copies: Floats
    """Items of the same vector as `item` that are right as well, it included."""

    @classmethod
    def of(cls, query: Ints, item: Ints, copies: Floats | None = None) -> Pairs:
        """Sorted by query; each item stands for itself by default."""
        order = np.argsort(query, kind="stable")
        copies = np.ones(len(item)) if copies is None else copies
        return cls(query=query[order], item=item[order], copies=copies[order])

    def part(self, start: int, stop: int) -> Pairs:
        """The pairs of a run of queries, counted from its first."""
        low, high = np.searchsorted(self.query, [start, stop])
        return Pairs(query=self.query[low:high] - start, item=self.item[low:high], copies=self.copies[low:high])


@dataclass(frozen=True, kw_only=True)
class Hits:
    """(queries, len(KS)) each: the chance of a hit over orders of ties, and the hit in the best and the worst order."""

    expected: Floats
    best: Floats
    worst: Floats

    @classmethod
    def joined(cls, parts: Sequence[Hits]) -> Hits:
        """Blocks of queries, one after the other."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__annotations__})


def hits(queries: Side, gallery: Side, right: Pairs, ks: Sequence[int] = KS, cells: int = CELLS) -> Hits:
    """Hits of every query at every k; memory is bounded by `cells` scores, whatever the gallery."""
    counts = gallery.counts
    parts = [
        _block(scores, gallery.of, counts, pairs, ks)
        for scores, pairs in _blocks(queries, gallery, right, max(1, cells // max(1, len(gallery.features))))
    ]
    return Hits.joined(parts)


def _blocks(queries: Side, gallery: Side, right: Pairs, rows: int) -> Iterator[tuple[NDArray[np.float32], Pairs]]:
    """(scores of a run of queries against distinct gallery vectors, their pairs counted from the run's first query)."""
    for start in range(0, len(queries.of), rows):
        distinct, back = np.unique(queries.of[start : start + rows], return_inverse=True)
        scores = (queries.features[distinct] @ gallery.features.T)[back]
        yield scores, right.part(start, start + rows)


def _block(scores: NDArray[np.float32], of: Ints, counts: Floats, right: Pairs, ks: Sequence[int]) -> Hits:
    found = scores[right.query, of[right.item]]
    top = np.full(len(scores), -np.inf, dtype=scores.dtype)
    np.maximum.at(top, right.query, found)
    above = (scores > top[:, None]) @ counts
    tied = (scores == top[:, None]) @ counts
    good = np.zeros(len(scores))
    np.add.at(good, right.query, right.copies * (found == top[right.query]))
    slots = np.asarray(ks, dtype=np.float64)[None, :] - above[:, None]
    wrong = (tied - good)[:, None]
    return Hits(
        expected=chance_of_hit(slots, wrong, good[:, None]),
        best=(slots > 0).astype(np.float64),
        worst=(slots > wrong).astype(np.float64),
    )


def chance_of_hit(slots: Floats, wrong: Floats, good: Floats) -> Floats:
    """The chance that one of `good` is among the first `slots` of `good + wrong` items in random order.

    It is 1 - C(wrong, slots) / C(wrong + good, slots), the hypergeometric law; 0 without slots.
    """
    slots, wrong, good = np.broadcast_arrays(slots, wrong, good)
    miss = np.ones(slots.shape)
    for step in range(int(max(0, slots.max(initial=0)))):
        left = wrong - step
        factor = np.where(left > 0, left, 0) / np.maximum(left + good, 1)
        miss = np.where(step < slots, miss * factor, miss)
    return 1.0 - miss


def ceiling_text_to_image(text_ids: Ints, text_image: Ints, ks: Sequence[int] = KS) -> Floats:
    """(len(ks),): the share of texts for which a hit is possible at all, a text having one ranking of the images.

    Args:
        text_ids: (texts,), equal for equal texts.
        text_image: (texts,), the image that each text describes.
        ks: The depths.

    The best ranking for a text puts its images in order of how many of its copies belong to each.
    """
    pairs, copies = np.unique(np.stack([text_ids, text_image]), axis=1, return_counts=True)
    order = np.lexsort((-copies, pairs[0]))
    ids, copies = pairs[0][order], copies[order]
    first = np.searchsorted(ids, ids)
    place = np.arange(len(ids)) - first
    return np.array([copies[place < k].sum() / len(text_ids) for k in ks])


def ceiling_image_to_text(text_ids: Ints, text_image: Ints, images: int, ks: Sequence[int] = KS) -> Floats:
    """(len(ks),): the mean over images of the best expected hit, equal texts being tied.

    An image does best with one of its own texts first: the one of which its own copies are the larger share.
    """
    pairs, own = np.unique(np.stack([text_ids, text_image]), axis=1, return_counts=True)
    copies = np.bincount(text_ids)[pairs[0]]
    chances = chance_of_hit(
        np.asarray(ks, dtype=np.float64)[None, :],
        (copies - own)[:, None].astype(np.float64),
        own[:, None].astype(np.float64),
    )
    best = np.zeros((images, len(ks)))
    np.maximum.at(best, pairs[1], chances)
    return best.mean(axis=0)


def same_text_pairs(text_ids: Ints, text_image: Ints) -> tuple[Pairs, Pairs]:
    """What is right in the duplicate-aware protocol: for images, all copies of their texts; for distinct texts, images.

    Returns:
        (image, text) pairs, of the first text of each kind with the number of its copies; (distinct text, image) pairs.
    """
    _, first, copies = np.unique(text_ids, return_index=True, return_counts=True)
    distinct, images = np.unique(np.stack([text_ids, text_image]), axis=1)
    return Pairs.of(images, first[distinct], copies[distinct].astype(np.float64)), Pairs.of(distinct, images)
