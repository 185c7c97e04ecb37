from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainer.data import encoded, halves
from trainer.data.images import (
    NORMALISATIONS,
    Augment,
    View,
    _decoded,
    centre_view,
    normalise,
    opened,
    random_view,
    render,
)
from trainer.data.order import generator
from trainer.errors import UserError


def photograph(width: int, height: int) -> Image.Image:
    """Smooth structure of several scales, as aerial images have."""
    rng = np.random.default_rng(3)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 255, (height // d + 2, width // d + 2, 3)).astype(np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            np.float32,
        )
        for d in (4, 16, 64)
    ]
    return Image.fromarray(np.mean(layers, 0).astype(np.uint8))


def shown(image: Image.Image, view: View, size: int, encoding: str = "PNG") -> np.ndarray:
    return render(opened(encoded(image, encoding)), view, size).astype(int)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (300, 500), (120, 90)])
def test_the_centre_view_is_pillows(width: int, height: int) -> None:
    image = photograph(width, height)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    cropped = image.crop((left, top, left + side, top + side))
    expected = np.asarray(cropped.resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(shown(image, centre_view(width, height, 224), 224) - expected)
    assert difference.mean() < 0.1
    assert difference.max() <= 3


def test_jpegs_decoded_at_a_smaller_scale_are_close_to_whole_ones() -> None:
    image = photograph(1024, 768)
    assert _decoded(opened(encoded(image, "JPEG")), 300, 224).shape == (384, 512, 3)
    found = shown(image, centre_view(1024, 768, 224), 224, "JPEG")
    with Image.open(io.BytesIO(encoded(image, "JPEG"))) as whole:
        expected = whole.crop((128, 0, 896, 768)).resize((224, 224), Image.Resampling.BICUBIC)
    assert np.abs(found - np.asarray(expected).astype(int)).mean() < 1.5


@pytest.mark.parametrize(("wanted", "found"), [(500, 500), (251, 500), (250, 250), (126, 250), (63, 125), (10, 63)])
def test_a_jpeg_is_never_decoded_below_what_is_needed(wanted: int, found: int) -> None:
    assert _decoded(opened(encoded(photograph(500, 500), "JPEG")), wanted, wanted).shape == (found, found, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_decoded_pixels_are_pillows(mode: str, scale: int) -> None:
    held = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    photograph(333, 250).convert(mode).save(held, "JPEG", quality=80, exif=turned)
    expected = Image.open(io.BytesIO(held.getvalue()))
    if scale > 1:
        expected.draft(mode, (333 // scale, 250 // scale))
    found = _decoded(opened(held.getvalue()), 333 // scale, 250 // scale)
    assert np.array_equal(found, np.asarray(expected.convert("RGB")))


def test_a_turn_that_resizes_is_close_to_a_resize_and_a_turn() -> None:
    image = photograph(256, 240)
    view = View(10, 5, 240, 232, 224, 33.0, True)
    base = image.resize((224, 224), Image.Resampling.BICUBIC, box=(10, 5, 250, 237))
    expected = base.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(33, Image.Resampling.BILINEAR)
    difference = np.abs(shown(image, view, 224) - np.asarray(expected).astype(int))[20:-20, 20:-20]
    assert difference.mean() < 1.5


def test_mirroring_and_turning() -> None:
    image = halves(64, 64)
    plain = shown(image, View(0, 0, 64, 64, 64), 64)
    assert plain[:, :28].min() > 240
    mirrored = shown(image, View(0, 0, 64, 64, 64, mirrored=True), 64)
    assert np.array_equal(mirrored, plain[:, ::-1])
    for angle, mirror in ((90.0, False), (90.0, True), (180.0, False), (270.0, True)):
        expected = np.rot90(plain[:, ::-1] if mirror else plain, round(angle / 90))
        assert np.abs(shown(image, View(0, 0, 64, 64, 64, angle, mirror), 64) - expected).max() <= 1


@pytest.mark.parametrize("mirror", [False, True])
def test_any_angle_agrees_with_pillow(mirror: bool) -> None:
    image = photograph(128, 128)
    base = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image
    expected = np.asarray(base.rotate(33, Image.Resampling.BILINEAR)).astype(int)
    found = shown(image, View(0, 0, 128, 128, 128, 33.0, mirror), 128)
    inside = np.hypot(*(np.indices((128, 128)) - 63.5)) < 60
    assert np.abs(found - expected)[inside].mean() < 1


def test_no_corner_is_black_unless_that_is_wanted() -> None:
    white = Image.new("RGB", (150, 130), (255, 255, 255))
    for corners, darkest in (("none", 255), ("black", 0)):
        augment = Augment(corners=corners, flip=0.5)
        views = [random_view(150, 130, 64, augment, generator(number)) for number in range(40)]
        assert min(shown(white, view, 64).min() for view in views) == darkest
        assert {view.mirrored for view in views} == {True, False}
        assert min(view.angle for view in views) < 40 < 320 < max(view.angle for view in views)


def test_crops_hold_the_drawn_share_of_the_area() -> None:
    views = [random_view(300, 280, 224, Augment(), generator(number)) for number in range(200)]
    shares = [view.width * view.height / (300 * 280) for view in views]
    assert 0.89 < min(shares) < 0.93
    assert 0.97 < max(shares) <= 1
    assert all(0 <= view.left <= 300 - view.width and 0 <= view.top <= 280 - view.height for view in views)
    narrow = random_view(1000, 100, 224, Augment(), generator(1))
    assert (narrow.width, narrow.height, narrow.left) == (133, 100, 433)


def test_upright_images_draw_the_same_crop_and_are_not_turned() -> None:
    turned, upright = (random_view(300, 280, 224, Augment(), generator(7), up) for up in (False, True))
    assert (turned.left, turned.top, turned.width, turned.height) == (
        upright.left,
        upright.top,
        upright.width,
        upright.height,
    )
    assert upright.is_upright
    assert not turned.is_upright
    assert math.isclose(upright.source_pixels, math.sqrt(upright.width * upright.height) / 224)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 50), 128 << 8, np.uint16))
    else:
        image = halves(50, 40).convert(mode)
    found = shown(image, centre_view(50, 40, 32), 32, "TIFF" if mode == "CMYK" else "PNG")
    assert found.shape == (32, 32, 3)
    assert found.max() > 100


def test_a_truncated_image_is_an_error() -> None:
    data = encoded(photograph(200, 200), "JPEG")
    with pytest.raises(OSError, match="truncated"):
        render(opened(data[: len(data) // 2]), centre_view(200, 200, 64), 64)
    with pytest.raises(OSError, match="cannot identify"):
        opened(b"%PDF-1.4")


def test_normalisations_give_the_published_statistics_no_mean_and_one_deviation() -> None:
    pixels = np.asarray(photograph(16, 16))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    assert set(NORMALISATIONS) >= {"clip", "imagenet", "rs5m", "pub11", "rs3"}
    for name, (mean, deviation) in NORMALISATIONS.items():
        expected = (pixels / 255 - np.array(mean)) / np.array(deviation)
        assert np.allclose(normalise(tensor, name)[0].permute(1, 2, 0), expected, atol=1e-5)
    held = normalise(tensor, "clip")
    assert normalise(255 - tensor, "rs3", out=held).data_ptr() == held.data_ptr()
    assert torch.equal(held, normalise(255 - tensor, "rs3"))
    assert normalise(tensor, "clip", torch.bfloat16).dtype is torch.bfloat16
    with pytest.raises(UserError, match="'rs4m' is unknown; accepted: clip, imagenet"):
        normalise(tensor, "rs4m")


def test_senseless_augmentation_is_refused() -> None:
    for wrong, match in (
        ({"corners": "white"}, "corners is 'white'"),
        ({"scale": (0.9, 1.2)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"flip": 2.0}, "flip is 2.0"),
    ):
        with pytest.raises(UserError, match=match):
            Augment(**wrong)  # type: ignore[arg-type]
