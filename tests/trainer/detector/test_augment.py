from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.detector import augment as module
from trainer.detector.augment import MODALITIES, augment, encoded, perspective, rotated


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(32, 32), (150, 150), (256, 400), (20, 90)])
def test_every_picture_comes_out_at_the_models_size(shape: tuple[int, int]) -> None:
    for seed in range(40):
        out = augment(pixels(*shape), np.random.default_rng(seed), 64)
        assert out.shape == (64, 64, 3)
        assert out.dtype == np.uint8


def test_a_seed_gives_the_same_treatment_and_another_a_different_one() -> None:
    one = pixels(60, 80)
    first, again, other = (augment(one, np.random.default_rng(seed), 32) for seed in (5, 5, 6))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("modality", [m for m in dict.fromkeys(MODALITIES) if m is not module.tiled])
def test_a_modality_keeps_the_shape_and_changes_the_picture(modality: Callable[..., NDArray[np.float32]]) -> None:
    values = pixels(40, 50).astype(np.float32)
    out = modality(values.copy(), np.random.default_rng(1))
    assert out.shape == values.shape
    assert np.isfinite(out).all()
    assert np.abs(out - values).max() > 1


def test_harder_pictures_are_mostly_grey() -> None:
    pixels = np.full((40, 50, 3), (30, 160, 60), np.uint8)

    def greyish(harder: float) -> int:
        made = [augment(pixels, np.random.default_rng(seed), 16, harder) for seed in range(40)]
        return sum(int(np.ptp(picture.mean((0, 1))) < 45) for picture in made)

    assert greyish(1.0) > 32 > 16 > greyish(0.0)


def test_a_plain_picture_stays_close_to_itself() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 80, dtype=np.uint8)[:, None, None], (80, 80, 3))
    made = {plain: [augment(ramp, np.random.default_rng(n), 32, 0.3, plain) for n in range(60)] for plain in (0.0, 1.0)}
    spread = {plain: np.std([picture.mean() for picture in pictures]) for plain, pictures in made.items()}
    assert spread[1.0] < 10 < spread[0.0]


def test_a_framed_picture_is_whole_in_the_middle_and_toned_at_the_corners() -> None:
    grey = Image.new("RGB", (80, 80), (128, 128, 128))
    for seed in range(20):
        framed = np.asarray(module._framed(grey, np.random.default_rng(seed)))
        middle, beyond = framed[len(framed) // 2, framed.shape[1] // 2], (framed == 0) | (framed == 255)
        assert middle.tolist() == [128, 128, 128]
        assert beyond.mean() < 0.8
    assert beyond.any()


def test_grey_and_radar_have_no_colour() -> None:
    for modality in (module.grey, module.speckle):
        out = modality(pixels(30, 30).astype(np.float32), np.random.default_rng(0))
        assert (out[..., 0] == out[..., 1]).all()
        assert (out[..., 1] == out[..., 2]).all()


def test_wedges_leave_nodata_at_a_border_only() -> None:
    out = module.wedges(np.full((64, 64, 3), 128, np.float32), np.random.default_rng(3))
    assert set(np.unique(out)) <= {0.0, 128.0, 255.0}
    assert 0.05 < (out != 128).mean() < 0.9


def test_a_turned_picture_shows_no_corners() -> None:
    white = Image.new("RGB", (90, 60), (255, 255, 255))
    for angle in (-45, -20, 7, 30, 45):
        assert np.asarray(rotated(white, angle)).min() > 200


def test_perspective_takes_the_corners_where_they_should_go() -> None:
    box = [(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)]
    source = [(2.0, 1.0), (9.0, 0.0), (10.0, 10.0), (0.0, 9.0)]
    a, b, c, d, e, f, g, h = perspective(box, source)
    for (x, y), (u, v) in zip(box, source, strict=True):
        scale = g * x + h * y + 1
        assert ((a * x + b * y + c) / scale, (d * x + e * y + f) / scale) == pytest.approx((u, v))


def test_a_lower_quality_is_further_from_the_original() -> None:
    image = Image.fromarray(pixels(64, 64))
    errors = [
        np.abs(np.asarray(encoded(image, quality), float) - np.asarray(image, float)).mean() for quality in (30, 95)
    ]
    assert errors[0] > errors[1] > 0
