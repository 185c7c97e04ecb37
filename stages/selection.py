"""Which rows a stage keeps by their scores: the best fraction, the best so many, or all from a score on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, log
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.base import semantic

CUTS = {"vlm": "vlm_score", "detector": "detector_logit", "similarity": "caption_similarity"}
"""Column that each rule of `keep` is about; the logit orders as the probability does, without its ties."""
REASONS = {"vlm": "low_vlm_score", "detector": "low_detector_score", "similarity": "low_similarity"}
UNSCORABLE = "unscorable"

Scores = NDArray[np.floating]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the rows kept by one score are told: exactly one of these."""

    fraction: float | None = semantic(None, help="the best fraction of rows, above 0 and up to 1")
    top: int | None = semantic(None, help="so many best rows")
    at_least: float | None = semantic(None, help="rows from this score on; a probability for the detector")

    def __post_init__(self) -> None:
        """Raise ValueError for what no type can tell."""
        if sum(value is not None for value in (self.fraction, self.top, self.at_least)) != 1:
            raise ValueError("one of fraction, top and at_least is wanted")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"a fraction above 0 and up to 1 is wanted, found {self.fraction}")
        if self.top is not None and self.top < 1:
            raise ValueError(f"top: a whole number from 1 on is wanted, found {self.top}")

    def count(self, scored: int) -> int:
        """Rows to keep of `scored`; a fraction is taken at its decimal value: 0.1 of 30 rows is 3."""
        if self.top is not None:
            return min(self.top, scored)
        return ceil(Fraction(str(self.fraction)) * scored)


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What is kept by each score; null keeps all. By default the paper's quantiles."""

    vlm: Rule | float | None = semantic(0.90, help="fraction kept by VLM score, or {fraction, top or at_least}")
    detector: Rule | float | None = semantic(0.80, help="the same by detector score")
    similarity: Rule | float | None = semantic(None, help="the same by similarity of image and caption")
    per: Literal["all", "source"] = semantic("all", help="fractions and tops are of all rows, or of each source's")
    combine: Literal["and", "or"] = semantic("and", help="whether a row must pass every rule, or any")

    def __post_init__(self) -> None:
        """Raise ValueError for what no type can tell."""
        for name in CUTS:
            self.rule(name)
        chance = self.rule("detector")
        if chance and chance.at_least is not None and not 0 < chance.at_least < 1:
            raise ValueError(f"detector.at_least: a probability between 0 and 1 is wanted, found {chance.at_least}")

    def rule(self, name: str) -> Rule | None:
        """The rule of a score."""
        value = getattr(self, name)
        try:
            return Rule(fraction=value) if isinstance(value, float | int) else value
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def select(
    scores: Mapping[str, pa.Array], keys: pa.Array, sources: pa.Array, keep: Keep
) -> tuple[pa.Array, dict[str, dict[str, Any]]]:
    """The reason of each row (null when kept), and the cuts.

    A row is kept when it passes each rule (or any, where `combine` says so): every cut is over all rows that have
    the score, none over what another left (arXiv 2306.11300 §III-A). A row without a caption is not judged by its
    similarity; one whose image has no score is `unscorable`.

    Args:
        scores: float32 columns by name, null where there is none.
        keys: unique strings.
        sources: the source of each row.
        keep: the rules.
    """
    groups = _groups(sources, keep.per)
    failed: dict[str, Mask] = {}
    cuts: dict[str, dict[str, Any]] = {}
    passed, judged = np.zeros(len(keys), bool), np.zeros(len(keys), bool)
    for name, column in CUTS.items():
        rule = keep.rule(name)
        if rule is None or column not in scores:
            continue
        values = scores[column].fill_null(np.nan).to_numpy(zero_copy_only=False)
        kept = _kept(name, rule, values, keys, groups)
        scored = ~np.isnan(values)
        failed[name] = scored & ~kept
        passed |= kept
        judged |= scored
        cuts[name] = _describe(getattr(keep, name), values, kept, groups)
    reasons = _reasons(failed, passed if keep.combine == "or" else np.zeros(len(keys), bool))
    for name in ("vlm_score", "detector_logit"):
        if name in scores:
            reasons[scores[name].is_null().to_numpy(zero_copy_only=False)] = UNSCORABLE
    return pa.array(reasons, pa.string()), dict(sorted(cuts.items()))


def _groups(sources: pa.Array, per: str) -> dict[str | None, NDArray[np.int64]]:
    """Rows that are ranked together: all under None, or those of each source under its name."""
    if per == "all":
        return {None: np.arange(len(sources))}
    names = sorted(pc.unique(sources).to_pylist())
    return {name: np.flatnonzero(pc.equal(sources, name).to_numpy(zero_copy_only=False)) for name in names}


def _kept(name: str, rule: Rule, values: Scores, keys: pa.Array, groups: Mapping[Any, NDArray[np.int64]]) -> Mask:
    if rule.at_least is not None:
        bound = log(rule.at_least / (1 - rule.at_least)) if name == "detector" else rule.at_least
        return np.asarray(values >= np.float32(bound))
    kept = np.zeros(len(values), bool)
    for rows in groups.values():
        kept[rows] = best(values[rows], keys.take(pa.array(rows)), rule.count)
    return kept


def best(scores: Scores, keys: pa.Array, count: Callable[[int], int]) -> Mask:
    """(n,), true for the rows with the highest scores; of equal scores, those with smaller keys.

    Args:
        scores: (n,), NaN where there is none: such rows are not kept.
        keys: (n,) unique strings.
        count: how many to keep of so many scored rows.
    """
    scored = np.flatnonzero(~np.isnan(scores))
    table = pa.table({"score": scores[scored], "key": keys.take(pa.array(scored))})
    order = pc.sort_indices(table, [("score", "descending"), ("key", "ascending")]).to_numpy()
    kept = np.zeros(len(scores), bool)
    kept[scored[order[: count(len(scored))]]] = True
    return kept


def _reasons(failed: Mapping[str, Mask], excused: Mask) -> NDArray[np.object_]:
    """The first rule that a row fails, in the order of CUTS."""
    reasons = np.full(len(excused), None, dtype=object)
    for name in reversed(list(failed)):
        reasons[failed[name] & ~excused] = REASONS[name]
    return reasons


def _describe(
    wanted: Rule | float, values: Scores, kept: Mask, groups: Mapping[str | None, NDArray[np.int64]]
) -> dict[str, Any]:
    """What the manifest says of a cut; the threshold is the smallest score kept, of each source where those differ."""
    said = (
        {name: value for name, value in vars(wanted).items() if value is not None}
        if isinstance(wanted, Rule)
        else wanted
    )
    lowest = {name: _lowest(values[rows][kept[rows]]) for name, rows in groups.items()}
    described = {"keep": said, "threshold": lowest.get(None), "scored": int(np.sum(~np.isnan(values)))}
    return described | {"kept": int(kept.sum())} | ({} if None in groups else {"thresholds": lowest})


def _lowest(values: Scores) -> float | None:
    return float(values.min()) if len(values) else None
