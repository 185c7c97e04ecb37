"""Which rows show or say what a test item does: the same bytes, a near hash in any orientation, a verbatim caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.likeness import AGREE, ALONE, Greys, is_plain, likeness
from stages.phash import ORIENTATIONS, SIDE
from stages.turned import pairs_between
from stages.twins import NONE, Hashes, Ids

TEST = pa.schema(
    [
        ("item", pa.string()),
        ("sha256", pa.string()),
        ("hashes", pa.list_(pa.uint64())),
        ("thumbnail", pa.binary()),
        ("captions", pa.list_(pa.string())),
    ]
)
"""A test item: its name; its image's digest, hashes in eight orientations and thumbnail, null where there is none;
its captions in comparable form."""
MATCHES = ("bytes", "image", "embedding", "caption")
"""Kinds of match, strongest first."""
MATCHED = pa.schema([("row", pa.int32()), ("test_item", pa.string()), ("test_match", pa.string())])
LEAST_WORDS = 3
"""Shorter captions say too little to be a test set's own."""
COMPARED = 64
"""Test items of near hashes that a row's thumbnail is compared with at most."""


def comparable_captions(texts: pa.Array) -> pa.Array:
    """Captions in lower case with single spaces; null where there are fewer than `LEAST_WORDS` words."""
    spaced = pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_lower(texts), r"[\s\p{Z}]+", " "))
    words = pc.add(pc.count_substring(spaced, " "), 1)
    return pc.if_else(pc.greater_equal(words, LEAST_WORDS), spaced, None)


class TestItems:
    """The items of all test sets, ready to be matched."""

    __test__ = False

    def __init__(self, tables: Sequence[pa.Table], radius: int) -> None:
        """`tables` as TEST; `radius` in bits of the perceptual hash."""
        table = pa.concat_tables([TEST.empty_table(), *tables])
        self.names = table["item"].combine_chunks()
        self._radius = radius
        self._digests = table["sha256"].combine_chunks()
        captions = table["captions"].combine_chunks()
        self._captions, self._of_caption = pc.list_flatten(captions), pc.list_parent_indices(captions).to_numpy()
        hashed = np.flatnonzero(table["hashes"].is_valid().to_numpy())
        hashes = pc.list_flatten(table["hashes"].combine_chunks()).to_numpy()
        order = np.argsort(hashes, kind="stable")  # equal hashes by item
        self._hashes, self._of_hash = hashes[order], np.repeat(hashed, ORIENTATIONS)[order]
        self._views = dict(zip(hashed.tolist(), hashes.reshape(-1, ORIENTATIONS), strict=True))
        self._greys = table["thumbnail"].combine_chunks()

    def match(self, rows: pa.Table, alike: Ids | None = None) -> pa.Table:
        """MATCHED of the rows (sha256, phash, caption, and if known thumbnail and captions) that match an item.

        `alike` are the (n,) items that rows match by their features, NONE where there is none.
        """
        by_features = np.full(rows.num_rows, NONE) if alike is None else alike
        found = [self._by_bytes(rows), self._by_image(rows), by_features, self._by_caption(rows)]
        kind = np.full(rows.num_rows, NONE)
        item = np.full(rows.num_rows, NONE)
        for number, items in enumerate(found):
            new = (kind == NONE) & (items != NONE)
            kind[new], item[new] = number, items[new]
        row = np.flatnonzero(kind != NONE)
        names = self.names.take(pa.array(item[row]))
        return pa.table([row, names, pa.array(MATCHES).take(pa.array(kind[row]))], names=MATCHED.names).cast(MATCHED)

    def _by_bytes(self, rows: pa.Table) -> Ids:
        return _numbers(pc.index_in(rows["sha256"], self._digests, skip_nulls=True))

    def _by_caption(self, rows: pa.Table) -> Ids:
        """The first item that has one of the row's captions."""
        found = np.full(rows.num_rows, len(self.names))
        _lower(found, np.arange(rows.num_rows), self._saying(rows["caption"].combine_chunks()))
        if "captions" in rows.column_names:
            entries = rows["captions"].combine_chunks()
            texts = pc.struct_field(pc.list_flatten(entries), "text")
            _lower(found, pc.list_parent_indices(entries).to_numpy(), self._saying(texts))
        return np.where(found < len(self.names), found, NONE)

    def _saying(self, texts: pa.Array) -> Ids:
        """The first item with each of the captions, NONE without."""
        place = _numbers(pc.index_in(comparable_captions(texts), self._captions, skip_nulls=True))
        return np.where(place == NONE, NONE, self._of_caption[place] if len(self._of_caption) else NONE)

    def _by_image(self, rows: pa.Table) -> Ids:
        """The first item whose hash is near in some orientation, confirmed by the thumbnails where that is needed."""
        found = np.full(rows.num_rows, NONE)
        known = rows["phash"].is_valid().to_numpy()
        hashes = rows["phash"].fill_null(0).to_numpy()
        left, right = pairs_between(np.unique(hashes[known]), np.unique(self._hashes), self._radius)
        near = np.flatnonzero(known & np.isin(hashes, left))
        greys = _greys(rows, near)
        starts, ends = (np.searchsorted(left, hashes[near], side=side) for side in ("left", "right"))  # type: ignore[call-overload]
        for row, grey, start, end in zip(near.tolist(), greys, starts, ends, strict=True):
            found[row] = self._first_like(hashes[row], grey, self._with_hashes(right[start:end]))
        return found

    def _with_hashes(self, hashes: Hashes) -> Ids:
        """The items that have one of the hashes, in order."""
        starts = np.searchsorted(self._hashes, hashes, side="left")
        ends = np.searchsorted(self._hashes, hashes, side="right")
        return np.unique(np.concatenate([self._of_hash[a:b] for a, b in zip(starts, ends, strict=True)]))

    def _first_like(self, phash: np.uint64, grey: Greys | None, items: Ids) -> int:
        """The first of the items that the hash alone decides for, or the thumbnail agrees with; else NONE."""
        if grey is None:
            return int(items[0])
        items = items[:COMPARED]
        others = np.stack([_grey(self._greys[int(item)].as_py()) for item in items])
        bits = np.bitwise_count(np.stack([self._views[item] for item in items.tolist()]) ^ phash).min(axis=1)
        alone = (bits <= ALONE) & ~is_plain(others) & ~is_plain(grey[None])
        agree = alone | (likeness(grey, others, ORIENTATIONS) >= AGREE)
        return int(items[agree.argmax()]) if agree.any() else NONE


def _greys(rows: pa.Table, places: Ids) -> list[Greys | None]:
    """Thumbnails of some rows; None where they are not known."""
    if "thumbnail" not in rows.column_names:
        return [None] * len(places)
    stored = rows["thumbnail"].take(pa.array(places)).to_pylist()
    return [_grey(octets) if octets else None for octets in stored]


def _grey(octets: bytes) -> Greys:
    return np.frombuffer(octets, np.uint8).reshape(SIDE, SIDE)


def _numbers(found: pa.Array | pa.ChunkedArray) -> Ids:
    """Indices as numbers, NONE for null."""
    numbers: Ids = found.fill_null(NONE).to_numpy().astype(np.int64)
    return numbers


def _lower(least: Ids, rows: Ids, items: Ids) -> None:
    """Lower `least` at `rows` to the items that are there."""
    known = items != NONE
    np.minimum.at(least, rows[known], items[known])
