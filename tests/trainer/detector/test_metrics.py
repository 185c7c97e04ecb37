from __future__ import annotations

import numpy as np
import pytest

from trainer.detector import metrics


def drawn(temperature: float, size: int = 40_000) -> tuple[metrics.Scores, metrics.Labels]:
    """Calibrated log-odds multiplied by a temperature, and labels drawn by the calibrated chance."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, size)
    labels = (rng.random(size) < metrics.probabilities(scores)).astype(np.int64)
    return scores * temperature, labels


def test_auc_counts_pairs_and_half_of_ties() -> None:
    scores, labels = np.array([0.1, 0.4, 0.4, 0.9, 0.2]), np.array([0, 1, 0, 1, 0])
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert metrics.auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert np.isnan(metrics.auc(scores, np.ones(5, np.int64)))


def test_classes_count_alike() -> None:
    scores = np.array([1.0] * 90 + [-1.0] * 10 + [-1.0] * 5 + [1.0] * 5)
    labels = np.array([1] * 100 + [0] * 10)
    assert metrics.rates(scores, labels) == pytest.approx((0.9, 0.5))
    assert metrics.balanced_accuracy(scores, labels) == pytest.approx(0.7)
    assert metrics.class_weights(labels)[labels == 0].sum() == pytest.approx(0.5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_again(temperature: float) -> None:
    assert metrics.fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.05)


def test_the_calibration_error_tells_calibrated_from_overconfident() -> None:
    good, bad = (metrics.calibration_error(*drawn(temperature)) for temperature in (1.0, 4.0))
    assert good < 0.01
    assert bad > 0.08


def test_precision_follows_from_the_rates_and_the_prevalence() -> None:
    scores = np.array([1.0] * 9 + [-1.0] + [1.0] + [-1.0] * 9)
    labels = np.array([1] * 10 + [0] * 10)
    assert metrics.precision_at(scores, labels, 0.5) == pytest.approx(0.9)
    assert metrics.precision_at(scores, labels, 0.75) == pytest.approx(0.675 / (0.675 + 0.025))


def test_extreme_log_odds_stay_finite() -> None:
    scores, labels = np.array([900.0, -900.0]), np.array([1, 0])
    found = metrics.summary(scores, labels)
    assert found["log_loss"] == 0
    assert found["auc"] == 1
