"""Pairs by cosine: equal to comparing all with all in exact arithmetic, whatever the order of sums."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from stages import cosine
from stages.features import Vectors


def unit_vectors(rows: int, width: int, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def crowded(rows: int, width: int, seed: int = 0, spread: float = 0.25) -> Vectors:
    """Unit vectors around a few directions."""
    middles = unit_vectors(rows // 10, width, seed).astype(np.float64)
    rng = np.random.default_rng(seed + 1)
    vectors = middles[rng.integers(0, len(middles), rows)] + rng.normal(size=(rows, width)) * spread / np.sqrt(width)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("bound", [0.5, 0.9, 0.95, 1.0])
def test_agrees_with_comparing_all_with_all(bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosine, "BLOCK", 37)
    monkeypatch.setattr(cosine, "CHECKED", 11)
    vectors = crowded(300, 16)
    vectors[7] = vectors[250]
    everything = vectors.astype(np.float64)
    norms = (everything**2).sum(axis=1)
    near = everything @ everything.T / np.sqrt(norms[:, None] * norms) >= bound
    left, right = cosine.similar_within(vectors, bound)
    expected = np.argwhere(np.triu(near, 1))
    assert np.array_equal(np.stack([left, right], axis=1), expected)
    left, right = cosine.similar(vectors[:90], vectors, bound)
    assert np.array_equal(np.stack([left, right], axis=1), np.argwhere(near[:90]))


def test_dot_products_of_unit_vectors_are_exact() -> None:
    one, other = unit_vectors(5, 768, 1), unit_vectors(5, 768, 2)
    for a, b in zip(one, other, strict=True):
        exact = sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True))
        shuffled = np.random.default_rng(0).permutation(768)
        assert Fraction(float(a.astype(np.float64) @ b.astype(np.float64))) == exact
        assert Fraction(float(a[shuffled].astype(np.float64) @ b[shuffled].astype(np.float64))) == exact


def test_nearest_orders_by_product_and_then_by_number() -> None:
    middles = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]], np.float16)
    found = cosine.nearest(np.array([[1, 0], [0.6, 0.8]], np.float16), middles, 3)
    assert found.tolist() == [[0, 2, 1], [1, 0, 2]]
    assert cosine.nearest(middles, middles, 9).shape == (4, 4)


def test_centres_are_unit_vectors_in_the_middle_of_crowds() -> None:
    vectors = crowded(400, 32, spread=0.1)
    middles = cosine.centres(vectors, 40)
    home = cosine.nearest(vectors, middles, 1)[:, 0]
    assert np.abs(np.linalg.norm(middles.astype(np.float64), axis=1) - 1).max() < 1e-3
    assert np.median(cosine.cosines(vectors, middles[home])) > 0.98
    assert len(cosine.centres(vectors[:3], 10)) == 3
