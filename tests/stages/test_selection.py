"""Selection by stored scores: fractions, counts and bounds, over all rows or by source, all rules or any."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.options import build
from stages.errors import UserError
from stages.outliers import OutliersConfig
from stages.selection import Keep, Rule, select


def chosen(
    keep: Keep, sources: list[str] | None = None, **scores: Sequence[float | None]
) -> tuple[list[str | None], dict[str, dict[str, Any]]]:
    rows = len(next(iter(scores.values())))
    columns = {name: pa.array(values, pa.float32()) for name, values in scores.items()}
    keys = pa.array([f"{row:03}" for row in range(rows)])
    reasons, cuts = select(columns, keys, pa.array(sources or ["web"] * rows), keep)
    return reasons.to_pylist(), cuts


def test_ties_at_the_quantile_go_to_the_smaller_keys() -> None:
    reasons, cuts = chosen(Keep(vlm=0.6), vlm_score=[0.5, 0.5, 0.5, 0.5, 0.9])
    assert reasons == [None, None, "low_vlm_score", "low_vlm_score", None]
    assert cuts == {"vlm": {"keep": 0.6, "threshold": 0.5, "scored": 5, "kept": 3}}


def test_a_fraction_is_taken_at_its_decimal_value() -> None:
    assert 0.1 * 30 > 3 - 1e-9
    reasons, _ = chosen(Keep(vlm=0.1), vlm_score=list(np.arange(30.0)))
    assert reasons.count(None) == 3


def test_a_bound_is_a_bound() -> None:
    reasons, cuts = chosen(Keep(vlm=Rule(at_least=0.25)), vlm_score=[0.2, 0.25, 0.3, None])
    assert reasons == ["low_vlm_score", None, None, "unscorable"]
    assert cuts["vlm"] == {"keep": {"at_least": 0.25}, "threshold": 0.25, "scored": 3, "kept": 2}


def test_the_detectors_bound_is_a_probability() -> None:
    logits = [log(p / (1 - p)) for p in (0.69, 0.71, 0.999)]
    reasons, _ = chosen(Keep(detector=Rule(at_least=0.7)), detector_logit=logits)
    assert reasons == ["low_detector_score", None, None]


def test_so_many_best_of_each_source() -> None:
    keep = Keep(vlm=Rule(top=1), per="source")
    reasons, cuts = chosen(keep, ["a", "a", "b", "b", "b"], vlm_score=[0.1, 0.2, 0.7, 0.9, 0.8])
    assert [reason is None for reason in reasons] == [False, True, False, True, False]
    assert cuts["vlm"]["threshold"] is None
    assert cuts["vlm"]["thresholds"] == pytest.approx({"a": 0.2, "b": 0.9})
    assert chosen(Keep(vlm=Rule(top=10)), vlm_score=[0.1, 0.2])[0] == [None, None]


def test_every_rule_or_any() -> None:
    scores: dict[str, Any] = {"vlm_score": [0.1, 0.9, 0.1], "detector_logit": [5.0, -5.0, -5.0]}
    rules: dict[str, Any] = {"vlm": Rule(at_least=0.5), "detector": Rule(at_least=0.5)}
    assert chosen(Keep(**rules), **scores)[0] == ["low_vlm_score", "low_detector_score", "low_vlm_score"]
    assert chosen(Keep(**rules, combine="or"), **scores)[0] == [None, None, "low_vlm_score"]


def test_a_row_without_a_caption_is_not_judged_by_it() -> None:
    keep = Keep(vlm=None, similarity=0.5)
    reasons, _ = chosen(keep, vlm_score=[0.1, 0.2, 0.3], caption_similarity=[0.1, None, 0.2])
    assert reasons == ["low_similarity", None, None]


@pytest.mark.parametrize("value", [0, -0.1, 1.5])
def test_fractions_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="vlm: a fraction above 0 and up to 1"):
        Keep(vlm=value)


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        ({"vlm": {"fraktion": 0.5}}, r"keep\.vlm\.fraktion: unknown option \(did you mean 'fraction'\?\)"),
        ({"vlm": {"fraction": 0.5, "top": 3}}, r"keep\.vlm: one of fraction, top and at_least is wanted"),
        ({"vlm": {"top": 0}}, r"top: a whole number from 1 on is wanted, found 0"),
        ({"vlm": "most"}, r"keep\.vlm: a number is wanted, found 'most'"),
        ({"detector": {"at_least": 1.0}}, r"detector\.at_least: a probability between 0 and 1 is wanted, found 1\.0"),
        ({"per": "host"}, r"keep\.per: 'host' is not accepted; accepted: all, source"),
    ],
)
def test_mistakes_are_sentences(keep: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(OutliersConfig, {"vlm": {"model": "ViT-B-32"}, "keep": keep}, "stages.outliers")
