"""Pairs within a Hamming radius agree with comparing all with all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stages import hamming
from stages.hamming import bands_of, chance_pairs, deal, estimated_seconds, extract_bits, pairs_in_band, pairs_within

RADII = range(9)


def brute_force(hashes: NDArray[np.uint64], radius: int) -> list[tuple[int, int]]:
    """(j, i) of every pair with i < j, by the whole matrix of distances, a stripe at a time."""
    found: list[tuple[int, int]] = []
    for start in range(0, len(hashes), 1000):
        distance = np.bitwise_count(hashes[start : start + 1000, None] ^ hashes[None, :])
        j, i = np.nonzero(distance <= radius)
        later = j + start > i
        found.extend(zip((j[later] + start).tolist(), i[later].tolist(), strict=True))
    return found


def clustered(rng: np.random.Generator, rows: int, centres: int, flips: int) -> NDArray[np.uint64]:
    """Hashes up to `flips` bits away from random centres, unique, in random order."""
    base = rng.integers(0, 2**64, centres, dtype=np.uint64)
    hashes = base[rng.integers(0, centres, rows)]
    for _ in range(flips):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, rows).astype(np.uint64))
    return rng.permutation(np.unique(hashes))


def found(hashes: NDArray[np.uint64], radius: int) -> list[tuple[int, int]]:
    i, j = pairs_within(hashes, radius)
    return list(zip(j.tolist(), i.tolist(), strict=True))


@pytest.mark.parametrize("radius", RADII)
def test_agrees_with_brute_force_on_spread_and_crowded_hashes(radius: int) -> None:
    rng = np.random.default_rng(radius)
    spread = clustered(rng, 3000, centres=300, flips=4)
    crowded = clustered(rng, 1500, centres=1, flips=3)
    few_bits = rng.permutation(np.unique(rng.integers(0, 2**11, 900, dtype=np.uint64) << np.uint64(17)))
    for hashes in (spread, crowded, few_bits):
        assert found(hashes, radius) == brute_force(hashes, radius)


@pytest.mark.parametrize("radius", RADII)
def test_buckets_searched_by_their_other_bits_lose_nothing(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "LARGE_BUCKET", 4)
    monkeypatch.setattr(hamming, "CHUNK", 50)
    rng = np.random.default_rng(100 + radius)
    for hashes in (clustered(rng, 1500, centres=200, flips=4), clustered(rng, 700, centres=1, flips=3)):
        assert found(hashes, radius) == brute_force(hashes, radius)


@pytest.mark.parametrize("radius", RADII)
def test_bands_dealt_to_partitions_find_each_pair_once(radius: int) -> None:
    rng = np.random.default_rng(200 + radius)
    hashes = np.unique(np.concatenate([clustered(rng, 2000, centres=200, flips=4), clustered(rng, 700, 1, flips=3)]))
    pairs = []
    for number, bits in enumerate(bands_of(radius)):
        partition = deal(hashes, bits, 3)
        for part in range(3):
            rows = np.flatnonzero(partition == part)
            i, j = pairs_in_band(hashes[rows], radius, number)
            pairs += list(zip(rows[j].tolist(), rows[i].tolist(), strict=True))
    assert sorted(pairs) == brute_force(hashes, radius)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_tiny_inputs(rows: int) -> None:
    hashes = np.arange(rows, dtype=np.uint64)
    assert found(hashes, 1) == [(1, 0)] * (rows == 2)
    assert found(hashes, 0) == []


def test_one_row_against_its_opposite_is_within_64() -> None:
    assert found(np.array([0, 2**64 - 1], np.uint64), 64) == [(1, 0)]
    assert found(np.array([0, 2**64 - 1], np.uint64), 63) == []


def test_a_hundred_thousand_hashes_around_one_are_no_quadratic_bucket() -> None:
    rng = np.random.default_rng(7)
    crowd = clustered(rng, 100_000, centres=1, flips=6)
    others = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    hashes = np.unique(np.concatenate([crowd, others]))
    begun = time.perf_counter()
    i, j = pairs_within(hashes, 2)
    assert time.perf_counter() - begun < 20, "all against all would compare 5,000,000,000 pairs"
    assert np.all(np.bitwise_count(hashes[i] ^ hashes[j]) <= 2)
    some = rng.choice(len(hashes), 200, replace=False)
    for row in some:
        near = np.bitwise_count(hashes ^ hashes[row]) <= 2
        assert near.sum() - 1 == np.count_nonzero(i == row) + np.count_nonzero(j == row)


def test_a_crowd_whose_pairs_do_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = clustered(np.random.default_rng(1), 3000, centres=1, flips=3)
    pairs = len(found(crowd, 6))
    monkeypatch.setattr(hamming, "MOST_PAIRS", pairs)
    assert len(found(crowd, 6)) == pairs
    monkeypatch.setattr(hamming, "MOST_PAIRS", pairs - 1)
    with pytest.raises(hamming.TooManyPairs, match=r"lower stages\.dedup\.radius"):
        pairs_within(crowd, 6)


def test_as_many_chance_pairs_as_foretold() -> None:
    assert chance_pairs(5_000_000, 8) == pytest.approx(3477, rel=0.001)
    hashes = np.random.default_rng(8).integers(0, 2**64, 300_000, dtype=np.uint64)
    assert chance_pairs(300_000, 8) == pytest.approx(12.5, rel=0.01)
    assert 2 < len(pairs_within(hashes, 8)[0]) < 35


def test_estimates_grow_with_hashes_and_radius() -> None:
    seconds = [[estimated_seconds(rows, radius) for radius in RADII] for rows in (10**4, 10**6, 10**8)]
    assert all(sorted(row) == row for row in seconds)
    assert all(sorted(column) == list(column) for column in zip(*seconds, strict=True))
    assert 0.1 < seconds[1][2] < 3
    assert seconds[2][8] > 3600


def test_extract_bits_puts_them_side_by_side() -> None:
    hashes = np.array([0b1011, 1 << 63, 2**64 - 1], np.uint64)
    assert extract_bits(hashes, (0, 2, 3, 63)).tolist() == [0b0101, 0b1000, 0b1111]


@pytest.mark.skipif("CURATION_REAL_DATA" not in os.environ, reason="CURATION_REAL_DATA is not set")
@pytest.mark.parametrize("radius", [2, 5, 8])
def test_agrees_with_brute_force_on_real_hashes(radius: int) -> None:
    from stages.images import open_rgb
    from stages.phash import phash, thumbnail

    folder = Path(os.environ["CURATION_REAL_DATA"])
    paths = sorted((folder / "rs" / "hurricane").rglob("*.jpeg"))[:600] + sorted(folder.glob("rs/ucm/**/*.*"))
    hashes = [
        phash(thumbnail(open_rgb(path.read_bytes()))) for path in paths if path.suffix in (".jpeg", ".jpg", ".png")
    ]
    known = np.unique(np.array([value for value in hashes if value is not None], np.uint64))
    assert len(known) > 100
    assert found(known, radius) == brute_force(known, radius)
