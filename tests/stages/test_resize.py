from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.fetch.resize import INTERPOLATIONS, MODES, OPTIONS, Resize, check
from stages.images import Limits, inspect
from tests.stages.test_images import encoded, files, needs_real_data, picture

LIMITS = Limits()


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16)


def theirs(options: dict[str, Any], data: bytes) -> bytes:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.resizer import Resizer

    required = {name: OPTIONS[name] for name in ("image_size", "resize_mode", "resize_only_if_bigger")}
    resized = Resizer(**(required | options))(io.BytesIO(data))[0]
    assert isinstance(resized, bytes)
    return resized


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (64, 40), (64, 64), (1000, 90)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bigger", [False, True])
def test_sizes_are_those_of_img2dataset(mode: str, size: tuple[int, int], bigger: bool) -> None:
    options = {"image_size": 64, "resize_mode": mode, "resize_only_if_bigger": bigger}
    data = encoded(picture(*size), "PNG")
    verdict, ours = Resize(options)(data, LIMITS)
    other = pixels(theirs(options, data))
    assert pixels(ours).shape == other.shape == (verdict.height, verdict.width, 3)
    assert np.abs(pixels(ours) - other).mean() < 0.5


@pytest.mark.parametrize("interpolation", sorted(INTERPOLATIONS))
def test_interpolations_are_those_of_img2dataset(interpolation: str) -> None:
    data = encoded(picture(150, 100), "PNG")
    for side, name in ((90, "downscale_interpolation"), (210, "upscale_interpolation")):
        options = {"image_size": side, "encode_format": "png", "encode_quality": 6, name: interpolation}
        assert np.abs(pixels(Resize(options)(data, LIMITS)[1]) - pixels(theirs(options, data))).max() <= 1


def real_images() -> Iterator[bytes]:
    for path in files("rs/aid", "*.jpg")[::200] + files("photo/imagenet", "*.JPEG")[::3] + files("dedup", "*.jpg"):
        data = path.read_bytes()
        if inspect(data).reason is None and Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) == 1:
            yield data


@needs_real_data
@pytest.mark.parametrize("mode", MODES)
def test_pixels_of_real_images_are_close_to_img2dataset(mode: str) -> None:
    options = {"image_size": 128, "resize_mode": mode}
    some = list(real_images())
    assert len(some) > 40
    differences = []
    for data in some:
        ours, other = pixels(Resize(options)(data, LIMITS)[1]), pixels(theirs(options, data))
        assert ours.shape == other.shape
        differences.append(np.abs(ours - other).mean())
    assert np.median(differences) < 2.5
    assert max(differences) < 8


def test_the_verdict_is_that_of_the_resized_image() -> None:
    verdict, data = Resize({"image_size": 64})(encoded(picture(300, 200), "JPEG"), LIMITS)
    again = inspect(data)
    assert (verdict.sha256, verdict.bytes, verdict.format) == (again.sha256, len(data), "jpeg")
    assert (verdict.width, verdict.height) == (again.width, again.height) == (64, 64)
    assert verdict.phash is not None
    assert again.phash is not None
    assert (verdict.phash ^ again.phash).bit_count() <= 4


def test_the_image_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    verdict, data = Resize({"image_size": 64, "resize_mode": "keep_ratio"})(
        encoded(picture(800, 400), "JPEG", exif=exif), LIMITS
    )
    assert (verdict.width, verdict.height) == (64, 128) == Image.open(io.BytesIO(data)).size


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html>", "not_an_image"),
        (encoded(picture(900, 900), "JPEG")[:-300], "truncated"),
        (encoded(picture(5001, 5000), "GIF"), "too_many_pixels"),
    ],
)
def test_what_is_no_image_is_not_resized(data: bytes, reason: str) -> None:
    verdict, resized = Resize({"image_size": 32})(data, Limits(max_pixels=25_000_000))
    assert (verdict.reason, resized) == (reason, b"")


def test_bytes_stay_when_nothing_is_to_be_done() -> None:
    resize = Resize({"image_size": 64, "resize_only_if_bigger": True, "skip_reencode": True})
    small = encoded(picture(60, 40), "JPEG")
    verdict, data = resize(small, LIMITS)
    assert (verdict.sha256, verdict.format, verdict.width, data) == (inspect(small).sha256, "jpeg", 60, small)
    verdict, data = resize(encoded(picture(60, 40), "PNG"), LIMITS)
    assert (verdict.format, verdict.width, data[:2]) == ("jpeg", 60, b"\xff\xd8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encode_format": "png"}, "resize.encode_quality is 95; accepted: a whole number from 0 to 9"),
        ({"encode_format": "gif"}, "resize.encode_format is 'gif'; accepted: jpg, png, webp"),
        ({"upscale_interpolation": "best"}, "resize.upscale_interpolation is 'best'"),
        ({"image_size": True}, "resize.image_size is True"),
    ],
)
def test_options_that_are_not_accepted(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(options)
    check({})
