from __future__ import annotations

import numpy as np
import pytest

from trainer.detector.positives import KINDS, draw


@pytest.mark.parametrize("kind", KINDS)
def test_land_is_drawn_the_same_from_a_seed_and_otherwise_from_the_next(kind: str) -> None:
    first, again, second = draw(kind, 1, 0), draw(kind, 1, 0), draw(kind, 1, 1)
    assert first.shape == again.shape
    assert (first == again).all()
    assert first.shape != second.shape or (first != second).any()
    assert 96 <= first.shape[0] == first.shape[1] < 200


@pytest.mark.parametrize("kind", KINDS)
def test_land_has_structure_in_every_part(kind: str) -> None:
    """No picture is a single tone: what is nearly flat would be of no class."""
    for number in range(8):
        grey = draw(kind, 0, number).mean(axis=2)
        assert grey.std() > 2


def test_radar_has_no_colour_and_much_speckle() -> None:
    for number in range(4):
        pixels = draw("radar", 0, number).astype(float)
        assert np.ptp(pixels, axis=2).max() == 0
        assert np.abs(np.diff(pixels[..., 0], axis=1)).mean() > 1
