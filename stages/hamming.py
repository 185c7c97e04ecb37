"""All pairs of 64-bit hashes within a Hamming radius, exactly.

Multi-index hashing (Norouzi, Punjani and Fleet, "Fast exact search in Hamming space with multi-index
hashing", 2014): the bits are cut into m bands; two hashes within radius r = m·a + b differ by at most a
in one of the first b+1 bands or by at most a−1 in one of the others. Each band is sorted once, and only
hashes whose bands are that close are compared. m follows from an estimate of the work; bits are dealt to
bands by how much they vary; a bucket too large to compare all against all is searched again by the bits
that remain. Memory is proportional to the hashes and to the pairs found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import UnitError

BITS = 64
LARGE_BUCKET = 2048
"""Hashes of one bucket, or geometric mean of two, beyond which the bucket is searched by its other bits."""
CHUNK = 1 << 21
"""Candidate pairs compared at a time."""
TABLE_BITS = 24
"""Widest band that is looked up in a table instead of by bisection."""
MOST_BANDS = 128
COMPARE = 0.15
"""Work of comparing a pair where all are compared with all, in the units of `_cost`."""
SAMPLE = 1 << 16

MOST_PAIRS = 1 << 28
"""Pairs that one search may find: 16 bytes of memory each, some four times over."""

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]
Pairs = tuple[Indices, Indices]


class TooManyPairs(UnitError):
    """So many hashes are near each other that their pairs do not fit memory."""

    def __init__(self, count: int) -> None:
        super().__init__(
            f"more than {count:,} pairs of hashes are within the radius of each other: a crowd of images is almost "
            "alike; lower stages.dedup.radius"
        )


def pairs_within(hashes: Hashes, radius: int) -> Pairs:
    """All pairs of distinct rows at most `radius` bits apart, each once.

    Args:
        hashes: (n,) uint64. Equal ones are pairs too, so give unique hashes or expect their square.
        radius: 0 to 64; practical to 8.

    Returns:
        (i, j), int64, i < j, sorted by (j, i).

    Raises:
        TooManyPairs: there are more than MOST_PAIRS.
    """
    hashes = np.ascontiguousarray(hashes, dtype=np.uint64)
    return _joined(_search(hashes, tuple(range(BITS)), radius, radius))


def _joined(chunks: Iterable[Pairs]) -> Pairs:
    """All chunks as one, smaller row first, sorted."""
    found: list[Pairs] = []
    count = 0
    for chunk in chunks:
        found.append(chunk)
        count += len(chunk[0])
        if count > MOST_PAIRS:
            raise TooManyPairs(count)
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    left = np.concatenate([np.minimum(i, j) for i, j in found])
    right = np.concatenate([np.maximum(i, j) for i, j in found])
    order = np.lexsort((left, right))
    return left[order], right[order]


def pairs_in_band(hashes: Hashes, radius: int, number: int) -> Pairs:
    """The pairs of `pairs_within` that agree in all of `bands_of(radius)[number]` and in no band before it.

    Two hashes within the radius agree in one of radius + 1 bands at least, so over all bands each pair
    comes once, and a band's pairs can be looked for among hashes that agree in it (`deal`).
    """
    hashes = np.ascontiguousarray(hashes, dtype=np.uint64)
    earlier = [_Band(bits, 0) for bits in bands_of(radius)[:number]]
    found = _search_bands(hashes, tuple(range(BITS)), _within_band(hashes, radius, number), radius, radius)
    return _joined((i[new], j[new]) for i, j in found for new in [_not_found_by(earlier, hashes[i] ^ hashes[j])])


def _within_band(hashes: Hashes, radius: int, number: int) -> list[_Band]:
    """The cheapest bands that meet every pair within the radius that agrees in a given band."""
    agreed = bands_of(radius)[number]
    rest = tuple(bit for bit in range(BITS) if bit not in agreed)
    entropy = _entropy(hashes)
    best = [_Band(agreed, 0)]
    buckets = 2.0 ** float(entropy[list(agreed)].sum())
    least = len(hashes) * 10 + buckets * _least_cost(rest, radius, entropy, max(1, int(len(hashes) / buckets)))
    for bands in _cuts(rest, radius, entropy):
        if not any(band.limit for band in bands):
            bands = [_Band(agreed + band.bits, 0) for band in bands]
            cost = sum(_cost(band, entropy, len(hashes)) for band in bands)
            if cost < least:
                best, least = bands, cost
    return best


def bands_of(radius: int) -> list[tuple[int, ...]]:
    """The 64 bits dealt in turn to radius + 1 bands."""
    return [tuple(range(band, BITS, radius + 1)) for band in range(radius + 1)]


def deal(hashes: Hashes, bits: tuple[int, ...], partitions: int) -> Indices:
    """The partition, 0 to partitions − 1, of each hash; equal where the hashes agree in `bits`."""
    mixed = extract_bits(hashes, bits) * np.uint64(0x9E3779B97F4A7C15)  # spreads neighbouring values
    return ((mixed >> np.uint64(32)) % np.uint64(partitions)).astype(np.int64)


def distinct(values: NDArray[Any]) -> NDArray[Any]:
    """All different values, sorted: for 64-bit numbers a hundred times as fast as `np.unique`, which hashes them."""
    ordered = np.sort(values)
    return ordered[_first_of_run(ordered)]


def _first_of_run(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a value of a sorted array stands for the first time."""
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def chance_pairs(rows: int, radius: int) -> float:
    """Pairs within the radius that `rows` random hashes have on average."""
    return rows * (rows - 1) / 2 * sum(comb(BITS, bits) for bits in range(radius + 1)) / 2.0**BITS


def estimated_seconds(rows: int, radius: int) -> float:
    """Time that `pairs_within` would take for random hashes on one core of 2020's servers; within a factor of two."""
    return _least_cost(tuple(range(BITS)), radius, np.ones(BITS), rows) * 1e-8


@dataclass(frozen=True)
class _Band:
    bits: tuple[int, ...]
    limit: int
    """Bits by which a pair may differ in this band to be compared."""

    @property
    def mask(self) -> np.uint64:
        return np.uint64(sum(1 << bit for bit in self.bits))

    def flips(self) -> Iterator[np.uint64]:
        """The band keys' non-zero differences of at most `limit` bits."""
        for weight in range(1, self.limit + 1):
            for positions in combinations(range(len(self.bits)), weight):
                yield np.uint64(sum(1 << position for position in positions))


def _search(hashes: Hashes, bits: tuple[int, ...], near: int, radius: int) -> Iterator[Pairs]:
    """Pairs within `radius` that differ by at most `near` in `bits`; each once, in chunks."""
    if len(hashes) < 2:
        return
    entropy = _entropy(hashes)
    bands = _choose_bands(bits, near, entropy, len(hashes))
    if not bands:
        yield from _within_runs(hashes, np.zeros(1, np.int64), np.array([len(hashes)]), radius)
        return
    yield from _search_bands(hashes, bits, bands, near, radius)


def _search_bands(hashes: Hashes, bits: tuple[int, ...], bands: list[_Band], near: int, radius: int) -> Iterator[Pairs]:
    """Pairs within `radius` that differ by at most `near` in `bits` and are met in a band, each once."""
    for number, band in enumerate(bands):
        for i, j in _search_band(hashes, bits, band, near, radius):
            first = _not_found_by(bands[:number], hashes[i] ^ hashes[j])
            yield i[first], j[first]


def _not_found_by(bands: list[_Band], difference: Hashes) -> NDArray[np.bool_]:
    """Where no earlier band has met the pair."""
    new = np.ones(len(difference), bool)
    for band in bands:
        new &= np.bitwise_count(difference & band.mask) > band.limit
    return new


def _entropy(hashes: Hashes) -> NDArray[np.float64]:
    """Bits of information in each of the 64 bits, from an even sample of the hashes."""
    step = max(1, len(hashes) // SAMPLE)
    sample = np.ascontiguousarray(hashes[::step]).astype("<u8")
    ones = np.unpackbits(sample.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").mean(axis=0)
    share = np.clip(np.stack([ones, 1 - ones]), 1e-12, 1)
    return -(share * np.log2(share)).sum(axis=0)


def _choose_bands(bits: tuple[int, ...], near: int, entropy: NDArray[np.float64], rows: int) -> list[_Band]:
    """The cheapest cut of `bits` into bands; empty when comparing all with all is cheaper still."""
    best: list[_Band] = []
    least = COMPARE * rows * rows
    for bands in _cuts(bits, near, entropy):
        cost = sum(_cost(band, entropy, rows) for band in bands)
        if cost < least:
            best, least = bands, cost
    return best


def _cuts(bits: tuple[int, ...], near: int, entropy: NDArray[np.float64]) -> Iterator[list[_Band]]:
    """Lists of bands, in each of which a pair within `near` is met at least once.

    Either m bands and up to near // m flips in them, or blocks of which so many are compared at once that
    a pair must agree in all of some.
    """
    if len(bits) <= near:
        return
    spread = sorted(bits, key=lambda bit: (-entropy[bit], bit))
    for count in range(1, min(near + 1, len(bits)) + 1):
        whole, rest = divmod(near, count)
        limits = [whole if n <= rest else whole - 1 for n in range(count)]
        yield [_Band(tuple(spread[n::count]), limit) for n, limit in enumerate(limits) if limit >= 0]
    for agree in range(2, len(bits) - near + 1):
        count = near + agree
        if comb(count, agree) > MOST_BANDS:
            return
        blocks = [spread[n::count] for n in range(count)]
        yield [_Band(tuple(chain(*chosen)), 0) for chosen in combinations(blocks, agree)]


def _cost(band: _Band, entropy: NDArray[np.float64], rows: int) -> float:
    """Estimated work of searching a band, in units of about ten nanoseconds."""
    probes = sum(comb(len(band.bits), weight) for weight in range(band.limit + 1))
    lookup = 1.0 if len(band.bits) <= TABLE_BITS else 30.0
    bucket = rows / 2.0 ** float(entropy[list(band.bits)].sum())
    return rows * (10 + (probes - 1) * lookup + probes * bucket)


def _least_cost(bits: tuple[int, ...], near: int, entropy: NDArray[np.float64], rows: int) -> float:
    """Estimated work of `_search`, in the units of `_cost`."""
    bands = _choose_bands(bits, near, entropy, rows)
    return sum(_cost(band, entropy, rows) for band in bands) if bands else COMPARE * rows * rows


def _search_band(hashes: Hashes, bits: tuple[int, ...], band: _Band, near: int, radius: int) -> Iterator[Pairs]:
    """Pairs within `radius` whose band keys differ by at most the band's limit."""
    keys = extract_bits(hashes, band.bits)
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.flatnonzero(_first_of_run(keys))
    buckets = _Buckets(hashes[order], keys[starts], starts, np.append(starts[1:], len(order)))
    rest = tuple(bit for bit in bits if bit not in band.bits)
    for i, j in buckets.pairs(band, rest, near, radius):
        yield order[i], order[j]


@dataclass(frozen=True)
class _Buckets:
    """Hashes sorted by band key: bucket b has key `keys[b]` and the rows `starts[b]` to `ends[b]`."""

    hashes: Hashes
    keys: Hashes
    starts: Indices
    ends: Indices

    def pairs(self, band: _Band, rest: tuple[int, ...], near: int, radius: int) -> Iterator[Pairs]:
        """Pairs within buckets, then between buckets whose keys differ by one of the band's flips."""
        yield from self._within(rest, near, radius)
        if not band.limit:
            return
        sizes = self.ends - self.starts
        find = _finder(self.keys, len(band.bits))
        for flip in band.flips():
            left, right = find(flip)
            large = sizes[left] * sizes[right] > LARGE_BUCKET**2
            yield from self._between(left[~large], right[~large], radius)
            for a, b in zip(left[large], right[large], strict=True):
                yield from self._between_large(a, b, rest, near - int(flip.bit_count()), radius)

    def _within(self, rest: tuple[int, ...], near: int, radius: int) -> Iterator[Pairs]:
        sizes = self.ends - self.starts
        large = sizes > LARGE_BUCKET
        small = (sizes > 1) & ~large
        yield from _within_runs(self.hashes, self.starts[small], self.ends[small], radius)
        for bucket in np.flatnonzero(large):
            rows = np.arange(self.starts[bucket], self.ends[bucket])
            for i, j in _search(self.hashes[rows], rest, near, radius):
                yield rows[i], rows[j]

    def _between(self, left: Indices, right: Indices, radius: int) -> Iterator[Pairs]:
        """Pairs with one row in bucket `left[n]`, the other in `right[n]`."""
        widths = self.ends[right] - self.starts[right]
        products = (self.ends[left] - self.starts[left]) * widths
        for begin, end in _chunks(products):
            count = products[begin:end]
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            width = np.repeat(widths[begin:end], count)
            i = np.repeat(self.starts[left[begin:end]], count) + within // width
            j = np.repeat(self.starts[right[begin:end]], count) + within % width
            near = np.bitwise_count(self.hashes[i] ^ self.hashes[j]) <= radius
            yield i[near], j[near]

    def _between_large(self, a: int, b: int, rest: tuple[int, ...], near: int, radius: int) -> Iterator[Pairs]:
        """The same for two buckets too large to compare all with all: searched by the other bits."""
        middle = self.ends[a] - self.starts[a]
        rows = np.concatenate([np.arange(self.starts[a], self.ends[a]), np.arange(self.starts[b], self.ends[b])])
        for i, j in _search(self.hashes[rows], rest, near, radius):
            across = (i < middle) != (j < middle)
            yield rows[i[across]], rows[j[across]]


def _within_runs(hashes: Hashes, starts: Indices, ends: Indices, radius: int) -> Iterator[Pairs]:
    """Pairs within `radius` inside each run of rows: every row against the next, the one after it, …"""
    sizes = ends - starts
    row = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    end = np.repeat(ends, sizes)
    step = 0
    while len(row):
        step += 1
        open_ = row + step < end
        row, end = row[open_], end[open_]
        near = np.bitwise_count(hashes[row] ^ hashes[row + step]) <= radius
        if near.any():
            yield row[near], row[near] + step


def _finder(keys: Hashes, width: int) -> Callable[[np.uint64], Pairs]:
    """A function from a flip to the bucket pairs whose keys differ by exactly that, smaller key first."""
    table = None
    if width <= TABLE_BITS:
        table = np.full(1 << width, -1, np.int32)
        table[keys] = np.arange(len(keys), dtype=np.int32)

    def find(flip: np.uint64) -> Pairs:
        target = keys ^ flip
        left = np.flatnonzero(target > keys)
        if table is not None:
            right = table[target[left]].astype(np.int64)
            known = right >= 0
        else:
            right = np.minimum(np.searchsorted(keys, target[left]), len(keys) - 1)
            known = keys[right] == target[left]
        return left[known], right[known]

    return find


def _chunks(products: Indices) -> Iterator[tuple[int, int]]:
    """Ranges of entries whose products sum to about CHUNK."""
    total = np.cumsum(products)
    begin = 0
    while begin < len(products):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + CHUNK, side="right")))
        yield begin, end
        begin = end


def extract_bits(hashes: Hashes, bits: tuple[int, ...]) -> Hashes:
    """The given bits of each hash side by side: bit k of the result is bit `bits[k]` of the hash."""
    result = np.zeros(len(hashes), np.uint64)
    octets = hashes.astype("<u8").view(np.uint8).reshape(-1, 8)
    values = np.arange(256, dtype=np.uint64)
    for octet in range(8):
        table = np.zeros(256, np.uint64)
        for position, bit in enumerate(bits):
            if bit // 8 == octet:
                table |= ((values >> np.uint64(bit % 8)) & np.uint64(1)) << np.uint64(position)
        if table.any():
            result |= table[octets[:, octet]]
    return result
