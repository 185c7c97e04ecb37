from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.evaluation import retrieval
from trainer.evaluation.retrieval import Pairs, Side
from trainer.evaluation.zero_shot import unit_length


def plain_hit(scores: NDArray[np.floating], right: set[int], k: int) -> tuple[float, float, float]:
    """Expected, best and worst hit by trying every order of every tie: the definition, written out."""
    hits = []
    for order in permutations(range(len(scores))):
        ranked = sorted(order, key=lambda item: -scores[item])
        hits.append(float(any(item in right for item in ranked[:k])))
    return float(np.mean(hits)), max(hits), min(hits)


@pytest.mark.parametrize("seed", range(6))
def test_hits_are_those_of_every_order_of_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gallery = Side(features=rng.integers(0, 2, (4, 2)).astype(np.float32), of=rng.integers(0, 4, 6))
    queries = Side(features=rng.integers(0, 2, (3, 2)).astype(np.float32), of=np.array([0, 1, 2, 1]))
    right = [set(rng.choice(6, size=rng.integers(1, 4), replace=False).tolist()) for _ in range(4)]
    pairs = Pairs.of(
        np.array([query for query, items in enumerate(right) for _ in items]),
        np.array([item for items in right for item in items]),
    )
    found = retrieval.hits(queries, gallery, pairs, ks=(1, 2, 4))
    for query in range(4):
        scores = (gallery.features @ queries.features[queries.of[query]])[gallery.of]
        for column, k in enumerate((1, 2, 4)):
            wanted = plain_hit(scores, right[query], k)
            got = (found.expected[query, column], found.best[query, column], found.worst[query, column])
            assert got == pytest.approx(wanted, abs=1e-12)


def straightforward(images: NDArray[np.float32], texts: NDArray[np.float32], text_image: NDArray[np.int64]) -> float:
    """mR by a full sort in float64, for scores without ties."""
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    recalls = []
    for k in (1, 5, 10):
        order = np.argsort(-scores, axis=1)[:, :k]
        recalls.append(np.mean([(text_image[row] == image).any() for image, row in enumerate(order)]))
        order = np.argsort(-scores.T, axis=1)[:, :k]
        recalls.append(np.mean([text_image[text] in row for text, row in enumerate(order)]))
    return float(100 * np.mean(recalls))


def test_recalls_agree_with_a_full_sort_in_blocks_of_any_size() -> None:
    rng = np.random.default_rng(1)
    text_image = np.repeat(np.arange(60), 5)
    images = unit_length(rng.normal(size=(60, 16)))
    texts = unit_length(images[text_image] + 0.5 * rng.normal(size=(300, 16)))
    sides = Side(features=images, of=np.arange(60)), Side(features=texts, of=np.arange(300))
    there, back = Pairs.of(text_image, np.arange(300)), Pairs.of(np.arange(300), text_image)
    for cells in (1, 700, 1 << 20):
        to_text = retrieval.hits(*sides, there, cells=cells).expected
        to_image = retrieval.hits(sides[1], sides[0], back, cells=cells).expected
        mean = 100 * np.mean([to_text.mean(0), to_image.mean(0)])
        assert mean == pytest.approx(straightforward(images, texts, text_image), abs=1e-6)


def test_duplicates_impose_a_ceiling_that_the_perfect_model_meets() -> None:
    text_image = np.array([0, 0, 1, 1, 2, 2])
    text_ids = np.array([0, 0, 0, 1, 2, 2])
    perfect = unit_length(np.eye(3))
    texts = np.stack([perfect[0], perfect[1], perfect[2]])
    to_image = retrieval.hits(
        Side(features=texts, of=text_ids), Side(features=perfect, of=np.arange(3)), Pairs.of(np.arange(6), text_image)
    ).expected
    assert to_image[:, 0].mean() == pytest.approx(5 / 6)
    assert retrieval.ceiling_text_to_image(text_ids, text_image) == pytest.approx([5 / 6, 1, 1])
    assert retrieval.ceiling_image_to_text(text_ids, text_image, 3) == pytest.approx([(2 / 3 + 1 + 1) / 3, 1, 1])


def test_the_same_text_is_right_in_the_duplicate_aware_protocol() -> None:
    images, texts = retrieval.same_text_pairs(np.array([0, 1, 0, 2]), np.array([0, 0, 1, 1]))
    found = sorted(zip(images.query.tolist(), images.item.tolist(), images.copies.tolist(), strict=True))
    assert found == [(0, 0, 2), (0, 1, 1), (1, 0, 2), (1, 3, 1)]
    assert sorted(zip(texts.query.tolist(), texts.item.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (2, 1)]


def test_copies_behind_a_pair_count_as_pairs_of_their_own() -> None:
    rng = np.random.default_rng(2)
    gallery = Side(features=unit_length(rng.integers(0, 3, (5, 2)) + 0.5), of=np.array([0, 1, 1, 1, 2, 3, 4, 4]))
    queries = Side(features=unit_length(rng.normal(size=(4, 2))), of=np.arange(4))
    short = Pairs.of(np.array([0, 1, 2, 3]), np.array([1, 6, 1, 0]), np.array([3.0, 2.0, 3.0, 1.0]))
    long = Pairs.of(np.array([0, 0, 0, 1, 1, 2, 2, 2, 3]), np.array([1, 2, 3, 6, 7, 1, 2, 3, 0]))
    for k in (1, 2, 5):
        assert np.array_equal(
            retrieval.hits(queries, gallery, short, ks=(k,)).expected,
            retrieval.hits(queries, gallery, long, ks=(k,)).expected,
        )
