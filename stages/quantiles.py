"""The best fraction of rows by a score: an exact count, whatever ties there are."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Rows kept by one score."""

    kept: NDArray[np.bool_]
    """(n,), true for the best; false where the score is NaN."""
    scored: int
    """Rows with a score: what the fraction is of."""
    threshold: float | None
    """The smallest score kept; None when nothing was scored."""


def best(scores: NDArray[np.floating], keys: pa.Array, fraction: float) -> Cut:
    """The `ceil(fraction · n)` rows with the highest scores; of equal scores, those with smaller keys.

    Args:
        scores: (n,), NaN where there is none.
        keys: (n,) unique strings.
        fraction: in (0, 1], taken at its decimal value: 0.1 of 30 rows is 3.
    """
    scored = np.flatnonzero(~np.isnan(scores))
    count = ceil(Fraction(str(fraction)) * len(scored))
    table = pa.table({"score": scores[scored], "key": keys.take(pa.array(scored))})
    order = pc.sort_indices(table, [("score", "descending"), ("key", "ascending")]).to_numpy()[:count]
    kept = np.zeros(len(scores), bool)
    kept[scored[order]] = True
    return Cut(kept=kept, scored=len(scored), threshold=float(scores[scored[order[-1]]]) if count else None)
