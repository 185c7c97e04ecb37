"""Enlarging beside OpenCV's own."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stages.fetch.lanczos import BETWEEN, TAPS, UNIT, _weights, enlarge
from stages.fetch.resize import _interpolated


@pytest.mark.parametrize("shape", [(5, 7), (1, 1, 3), (3, 100, 3), (255, 200), (128, 128, 3), (97, 256, 3)])
@pytest.mark.parametrize("size", [(256, 256), (257, 300)])
def test_levels_are_within_one_of_opencvs(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    for levels in (rng.integers(0, 2, shape) * 255, rng.integers(0, 256, shape)):
        pixels = levels.astype(np.uint8)
        enlarged = enlarge(pixels, size)
        expected = cv2.resize(pixels, size, interpolation=cv2.INTER_LANCZOS4)
        assert enlarged.shape == (size[1], size[0], *shape[2:])
        assert np.abs(enlarged.astype(np.int16) - expected).max() <= 1
        assert (enlarged != expected).mean() < 0.08


def test_sums_are_whole_numbers_that_float32_holds() -> None:
    loudest = max(np.abs(_weights(share)).sum() for share in np.linspace(0, 1, 1001, endpoint=False)) / UNIT
    assert 255 * BETWEEN * loudest * loudest * UNIT < 2**24


def test_weights_keep_an_even_image_even() -> None:
    assert _weights(0.0).tolist() == [UNIT * (tap == TAPS // 2 - 1) for tap in range(TAPS)]
    for level in (0, 1, 128, 255):
        assert np.ptp(enlarge(np.full((100, 80, 3), level, np.uint8), (256, 256)).astype(np.int16) - level) <= 1


@pytest.mark.parametrize(("shape", "size"), [((600, 600), (1100, 1100)), ((300, 300), (256, 256))])
def test_large_and_smaller_images_are_opencvs_own(shape: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, shape).astype(np.uint8)
    expected = cv2.resize(pixels, size, interpolation=cv2.INTER_LANCZOS4)
    assert np.array_equal(_interpolated(pixels, size, "INTER_LANCZOS4"), expected)
