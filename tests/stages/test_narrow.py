"""What dedup compares of a row: fixed-width columns that are equal where the texts are."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from stages.errors import UnitError
from stages.narrow import content_halves, key_halves, key_texts, source_numbers

RNG = random.Random(1)


def digests(count: int, digits: int) -> list[str]:
    return [f"{RNG.getrandbits(4 * digits):0{digits}x}" for _ in range(count)]


def test_keys_come_back_and_keep_their_order() -> None:
    keys = digests(500, 32)
    high, low = key_halves(pa.chunked_array([keys[:200], keys[200:]]))
    assert key_texts(high, low).to_pylist() == keys
    numbers = list(zip(high.tolist(), low.tolist(), strict=True))
    assert sorted(range(500), key=lambda n: numbers[n]) == sorted(range(500), key=lambda n: keys[n])


def test_slices_are_read_from_where_they_begin() -> None:
    keys = pa.chunked_array([digests(50, 32)])
    high, low = key_halves(keys.slice(17, 20))
    assert key_texts(high, low).to_pylist() == keys.slice(17, 20).to_pylist()
    assert len(key_halves(keys.slice(0, 0))[0]) == 0


def test_digests_that_differ_anywhere_differ_when_folded() -> None:
    [whole] = digests(1, 64)
    others = [whole[:n] + f"{(int(whole[n], 16) + 1) % 16:x}" + whole[n + 1 :] for n in range(64)]
    folded = content_halves(pa.chunked_array([[whole, *others, whole, "ab" * 32, "cd" * 32]]))
    pairs = list(zip(*(half.tolist() for half in folded), strict=True))
    assert pairs[0] == pairs[65]
    assert len(set(pairs)) == 67


def test_what_is_no_key_is_told() -> None:
    with pytest.raises(UnitError, match="'abc' is not of 32 hex digits"):
        key_halves(pa.chunked_array([["0" * 32, "abc"]]))


def test_sources_count_in_the_recipes_order_and_others_after_them() -> None:
    column = pa.chunked_array([["b", "x", "a"], ["y", "b"]])
    assert source_numbers(column, ["a", "b"]).tolist() == [1, 2, 0, 2, 1]
