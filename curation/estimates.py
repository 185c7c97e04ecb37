"""Precision and recall of a selection, estimated from labels of a stratified sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 20_000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Rows that were sampled together."""

    rows: int
    """In the whole table."""
    labelled: int
    positive: int
    is_kept: bool


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A share and the interval that holds it with probability `LEVEL`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def precision_and_recall(strata: Mapping[str, Stratum], seed: int) -> tuple[Estimate, Estimate]:
    """Weighted by the strata's sizes; intervals from the posterior of each share under Jeffreys' prior.

    Args:
        strata: by name; those with rows must have labels.
        seed: of the draws.
    """
    present = [stratum for stratum in strata.values() if stratum.rows]
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.beta(s.positive + 0.5, s.labelled - s.positive + 0.5, DRAWS) for s in present])
    observed = np.array([[s.positive / s.labelled] for s in present])
    sizes = np.array([[s.rows] for s in present])
    kept = np.array([s.is_kept for s in present])
    return (
        _estimate(_precision(observed, sizes, kept), _precision(drawn, sizes, kept)),
        _estimate(_recall(observed, sizes, kept), _recall(drawn, sizes, kept)),
    )


def share(positive: int, labelled: int) -> Estimate | None:
    """The share of positives, with the interval of its posterior under Jeffreys' prior; None without any label.

    None or all positive: the interval's end is 0 or 1 itself (Brown, Cai and DasGupta, Statistical Science 2001).
    """
    from scipy.stats import beta

    if not labelled:
        return None
    low, high = beta.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], positive + 0.5, labelled - positive + 0.5)
    ends = 0.0 if positive == 0 else float(low), 1.0 if positive == labelled else float(high)
    return Estimate(value=positive / labelled, low=ends[0], high=ends[1])


Shares = NDArray[np.float64]


def _precision(shares: Shares, sizes: NDArray[np.int64], kept: NDArray[np.bool_]) -> Shares:
    """Positive rows among those kept."""
    return np.asarray((shares * sizes)[kept].sum(axis=0) / max(sizes[kept].sum(), 1))


def _recall(shares: Shares, sizes: NDArray[np.int64], kept: NDArray[np.bool_]) -> Shares:
    """Kept rows among those that are positive; 1 when none is."""
    positive = shares * sizes
    total = positive.sum(axis=0)
    return np.divide(positive[kept].sum(axis=0), total, out=np.ones_like(total), where=total > 0)


def _estimate(value: Shares, draws: Shares) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=float(value[0]), low=float(low), high=float(high))
