"""Measures of a binary detector from log-odds and labels (1: remote sensing). Classes count alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]
BINS = 15


def auc(scores: Scores, labels: Labels) -> float:
    """Area under the ROC curve: how often a positive outranks a negative; ties count half, NaN without both classes."""
    from scipy.stats import rankdata

    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(scores)[labels == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def rates(scores: Scores, labels: Labels, threshold: float = 0.0) -> tuple[float, float]:
    """(true positive rate, true negative rate) for log-odds above a threshold."""
    said = scores > threshold
    return float(said[labels == 1].mean()), float((~said[labels == 0]).mean())


def balanced_accuracy(scores: Scores, labels: Labels) -> float:
    """The mean of both classes' recall at probability 0.5."""
    return float(np.mean(rates(scores, labels)))


def probabilities(scores: Scores) -> Scores:
    """The logistic function, without overflow."""
    from scipy.special import expit

    return np.asarray(expit(scores), dtype=np.float64)


def class_weights(labels: Labels) -> Scores:
    """Weights that sum to 1, half of it for each class."""
    counts = np.bincount(labels, minlength=2)
    return 1.0 / (np.count_nonzero(counts) * counts[labels])


def log_loss(scores: Scores, labels: Labels) -> float:
    """Negative log-likelihood in nats, classes counted alike."""
    signed = np.where(labels == 1, scores, -scores)
    return float((class_weights(labels) * np.logaddexp(0, -signed)).sum())


def fit_temperature(scores: Scores, labels: Labels) -> float:
    """The T of least log-loss of scores / T (Guo et al. 2017), between 0.05 and 20."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: log_loss(scores / np.exp(log), labels), bounds=(np.log(0.05), np.log(20)), method="bounded"
    )
    return float(np.exp(found.x))


def reliability(scores: Scores, labels: Labels, bins: int = BINS) -> list[dict[str, float]]:
    """Bins of P(rs): mean probability, share of positives and weight; classes counted alike, empty bins left out."""
    chance, weights = probabilities(scores), class_weights(labels)
    at = np.minimum((chance * bins).astype(int), bins - 1)
    rows = []
    for number in np.unique(at):
        inside = at == number
        total = weights[inside].sum()
        rows.append(
            {
                "probability": float((chance * weights)[inside].sum() / total),
                "positives": float((labels * weights)[inside].sum() / total),
                "weight": float(total),
                "count": int(inside.sum()),
            }
        )
    return rows


def calibration_error(scores: Scores, labels: Labels) -> float:
    """Expected calibration error over `BINS` equal bins of P(rs)."""
    return sum(row["weight"] * abs(row["probability"] - row["positives"]) for row in reliability(scores, labels))


def precision_at(scores: Scores, labels: Labels, prevalence: float) -> float:
    """The share of remote sensing among what is called so, in a pool with that share of it (Bayes' rule)."""
    found, refused = rates(scores, labels)
    called = found * prevalence + (1 - refused) * (1 - prevalence)
    return found * prevalence / called if called else float("nan")


def summary(scores: Scores, labels: Labels) -> dict[str, Any]:
    """The figures of a set that holds both classes."""
    found, refused = rates(scores, labels)
    return {
        "images": len(labels),
        "balanced_accuracy": balanced_accuracy(scores, labels),
        "auc": auc(scores, labels),
        "recall_rs": found,
        "recall_other": refused,
        "log_loss": log_loss(scores, labels),
        "calibration_error": calibration_error(scores, labels),
    }
