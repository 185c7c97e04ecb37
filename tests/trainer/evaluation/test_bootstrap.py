from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation import bootstrap
from trainer.evaluation.bootstrap import Tally


def tally(share: float, seed: int, images: int = 400) -> Tally:
    hits = (np.random.default_rng(seed).random((images, 1)) < share).astype(float)
    return Tally(
        units=[str(number) for number in range(images)], names=["top1"], sums=hits, counts=np.ones((images, 1))
    )


def test_the_interval_is_the_binomial_one() -> None:
    made = tally(0.3, 0)
    value, spread = bootstrap.summary(made, seed=1, scale=100)
    share = value["top1"] / 100
    half = 196 * np.sqrt(share * (1 - share) / 400)
    assert spread["top1"] == pytest.approx([value["top1"] - half, value["top1"] + half], abs=0.6)


def test_means_weigh_figures_and_images_take_their_queries_along() -> None:
    made = Tally(
        units=["a", "b"],
        names=["i2t/R@1", "t2i/R@1"],
        sums=np.array([[1.0, 2.0], [0.0, 3.0]]),
        counts=np.array([[1.0, 5.0], [1.0, 3.0]]),
        means={"mR": ["i2t/R@1", "t2i/R@1"]},
    )
    assert made.values() == pytest.approx([0.5, 5 / 8, 9 / 16])
    assert made.values(np.array([0.0, 2.0])) == pytest.approx([0, 1, 0.5])
    assert bootstrap.nested(dict(zip(made.all_names, [1, 2, 3], strict=True))) == {
        "i2t": {"R@1": 1},
        "t2i": {"R@1": 2},
        "mR": 3,
    }


def test_a_paired_comparison_is_narrower_than_two_intervals() -> None:
    one = tally(0.5, 0)
    better = one.sums.copy()
    better[:12] = 1
    other = Tally(units=one.units, names=one.names, sums=better, counts=one.counts)
    found = bootstrap.compare(one, other, seed=0, scale=100)["top1"]
    assert found["difference"] == pytest.approx(100 * (better.mean() - one.sums.mean()))
    assert found["ci95"][0] > 0
    assert found["ci95"][1] - found["ci95"][0] < 4
    shuffled = other.only(np.random.default_rng(0).permutation(400).tolist())
    assert bootstrap.compare(one, shuffled, seed=0, scale=100)["top1"] == found
