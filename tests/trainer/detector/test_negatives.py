from __future__ import annotations

import numpy as np
import pytest

from trainer.detector.negatives import KINDS, draw, sheet


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_draws_the_same_from_a_seed_and_something_else_from_the_next(kind: str) -> None:
    first, again, second = draw(kind, 1, 0), draw(kind, 1, 0), draw(kind, 1, 1)
    assert (first == again).all()
    assert first.shape != second.shape or (first != second).any()
    assert 160 <= min(first.shape[:2]) <= max(first.shape[:2]) <= 384


def test_kinds_differ_in_colour_and_detail() -> None:
    facts = {}
    for kind in KINDS:
        grey = draw(kind, 0, 0).mean(axis=2)
        facts[kind] = (grey.mean(), np.abs(np.diff(grey, axis=1)).mean())
    means, details = np.array(list(facts.values())).T
    assert np.ptp(means) > 150
    assert details.max() > 10 * max(details.min(), 0.5)


def test_the_sheet_has_a_row_for_every_kind() -> None:
    page = sheet(0, columns=1, cell=16)
    assert page.size == (16, 16 * len(KINDS))
