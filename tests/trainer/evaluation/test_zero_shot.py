from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation import zero_shot


def test_the_papers_averaging_lets_long_features_count_for_more() -> None:
    features = np.array([[[10.0, 0.0], [0.0, 1.0]]])
    assert zero_shot.class_vectors(features, paper=False)[0] == pytest.approx([2**-0.5, 2**-0.5])
    assert zero_shot.class_vectors(features, paper=True)[0] == pytest.approx(np.array([10, 1]) / 101**0.5)


def test_hits_agree_with_a_loop_and_ties_share_them() -> None:
    rng = np.random.default_rng(0)
    images, classes = (zero_shot.unit_length(rng.normal(size=(size, 8))) for size in (50, 6))
    labels = rng.integers(0, 6, 50)
    found = zero_shot.hits(images, classes, labels)
    plain = [
        float(np.argmax([image @ one for one in classes]) == label) for image, label in zip(images, labels, strict=True)
    ]
    assert found["expected"] == pytest.approx(plain, abs=1e-6)
    twins = zero_shot.hits(classes[:1], np.stack([classes[0], classes[0], classes[1]]), np.array([1]))
    assert [twins[name].tolist() for name in ("expected", "best", "worst")] == [[0.5], [1.0], [0.0]]
