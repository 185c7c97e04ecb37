from __future__ import annotations

import hashlib
import io
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from stages import images
from stages.images import FORMATS, Limits, inspect, open_rgb, to_png
from stages.phash import phash, thumbnail

REAL = os.environ.get("CURATION_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="CURATION_REAL_DATA is not set")


def picture(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def files(folder: str, *patterns: str) -> list[Path]:
    assert REAL
    return sorted(p for pattern in patterns for p in Path(REAL, folder).rglob(pattern) if p.is_file())


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_each_format_of_the_whitelist_is_kept(kind: str) -> None:
    data = encoded(picture(), kind)
    verdict = inspect(data)
    assert (verdict.reason, verdict.format) == (None, FORMATS[kind])
    assert (verdict.width, verdict.height, verdict.bytes) == (60, 40, len(data))
    assert verdict.sha256 == hashlib.sha256(data).hexdigest()
    assert verdict.phash is not None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_body"),
        (b"<!doctype html><html>gone</html>", "not_an_image"),
        (b'{"error": 404}', "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_format"),
        (b'<?xml version="1.0"?><svg xmlns="x"></svg>', "unsupported_format"),
        (encoded(picture(), "PPM"), "unsupported_format"),
        (encoded(picture(), "ICO"), "unsupported_format"),
        (encoded(picture(), "JPEG2000"), "unsupported_format"),
        (encoded(picture(), "JPEG")[:-300], "truncated"),
        (encoded(picture(), "PNG")[:-300], "truncated"),
        (encoded(picture(), "JPEG")[:3], "corrupt"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "corrupt"),
    ],
)
def test_bodies_that_are_no_image_have_a_reason(data: bytes, reason: str) -> None:
    verdict = inspect(data)
    assert verdict.reason == reason
    assert verdict.reason in images.REASONS


def test_pixels_are_counted_before_they_are_decoded() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    verdict = inspect(bomb, Limits(max_pixels=1_000_000))
    assert (verdict.reason, verdict.width, verdict.height) == ("too_many_pixels", 20_000, 20_000)
    assert inspect(encoded(picture(), "PNG"), Limits(max_pixels=2400)).reason is None
    assert inspect(encoded(picture(), "PNG"), Limits(max_pixels=2399)).reason == "too_many_pixels"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_counts_in_sizes_and_hash(orientation: int, kind: str) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = picture()
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    verdict = inspect(encoded(stored, kind, exif=exif))
    wanted = phash(thumbnail(upright))
    assert wanted is not None
    assert verdict.phash is not None
    assert (verdict.width, verdict.height) == (60, 40)
    assert (verdict.phash ^ wanted).bit_count() <= (0 if kind in ("PNG", "TIFF") else 4)


def test_transparency_is_white() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert open_rgb(encoded(clear, "PNG")).getpixel((1, 1)) == (255, 255, 255)
    half = Image.new("LA", (4, 4), (0, 128))
    assert open_rgb(encoded(half, "PNG")).getpixel((1, 1)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    assert open_rgb(encoded(palette, "PNG", transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert open_rgb(encoded(palette, "GIF")).getpixel((0, 0)) == (50, 60, 70)
    keyed = Image.new("RGB", (4, 4), (1, 2, 3))
    assert open_rgb(encoded(keyed, "PNG", transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)


def test_deep_samples_become_eight_bits() -> None:
    deep = Image.fromarray(np.array([[0, 256, 65535]], np.uint16))
    assert [open_rgb(encoded(deep, "PNG")).getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (1,) * 3, (255,) * 3]
    real = Image.fromarray(np.array([[-1.0, 0.0, 1.0, np.nan]], np.float32))
    assert [open_rgb(encoded(real, "TIFF")).getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 0]  # type: ignore[index]


def test_cmyk_and_lab_are_converted() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = open_rgb(encoded(cmyk, "JPEG", quality=100)).getpixel((8, 8))
    assert isinstance(red, tuple)
    assert red[0] > 250
    assert max(red[1:]) < 5
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.new("RGB", (16, 16), (200, 100, 50)), transform)
    assert lab is not None
    back = np.asarray(open_rgb(encoded(lab, "TIFF")), int)[8, 8]
    assert np.abs(back - [200, 100, 50]).max() <= 4


def test_png_conversion_is_deterministic_and_exact() -> None:
    data = encoded(picture(), "GIF")
    assert to_png(data) == to_png(data)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(to_png(data)))), np.asarray(open_rgb(data)))


def test_undecodable_bytes_raise_value_error() -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        open_rgb(encoded(picture(), "PNG")[:-300])


def test_flat_images_have_no_hash() -> None:
    assert inspect(encoded(Image.new("RGB", (64, 64), (10, 90, 40)), "PNG")).phash is None
    assert inspect(encoded(Image.new("RGB", (64, 64), (10, 90, 40)), "PNG")).reason is None


def test_hash_is_bit_equal_to_imagehash() -> None:
    import imagehash

    for seed in range(50):
        image = picture(97, 71, seed)
        assert phash(thumbnail(image)) == int(str(imagehash.phash(image)), 16)


def test_thumbnails_of_any_size_are_pillows_to_the_last_bit() -> None:
    """Also at the bounds between the two ways to shrink, and where the filter's overshoot is cut off."""
    noise = (np.random.default_rng(4).random((700, 700)) < 0.5).astype(np.uint8) * 255
    sides = [*range(31, 36), 64, *range(98, 103), 127, 128, 150, 193, 255, 256, 300, *range(398, 403), 700]
    for height, width in itertools.product(sides, sides):
        image = Image.fromarray(noise[:height, :width])
        wanted = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))
        assert np.array_equal(thumbnail(image), wanted), (height, width)


@needs_real_data
def test_hash_is_bit_equal_to_imagehash_on_real_images() -> None:
    import imagehash

    some = files("photo/flickr8k", "*.jpg")[:60] + files("rs/aid", "*.jpg")[::40] + files("dedup", "*.jpg", "*.png")
    assert len(some) > 100
    for path in (path for path in some if inspect(path.read_bytes()).reason is None):
        image = open_rgb(path.read_bytes())
        ours = phash(thumbnail(image))
        assert ours is None or ours == int(str(imagehash.phash(image)), 16), path


@needs_real_data
def test_every_hostile_file_ends_as_kept_or_one_reason() -> None:
    """Kept exactly when Pillow, within the whitelist, loads the file."""
    every = files("decode", "*")
    assert len(every) > 600
    verdicts = {path: inspect(path.read_bytes()) for path in every}
    for path, verdict in verdicts.items():
        assert verdict.reason is None or verdict.reason in images.REASONS
        if verdict.reason != "too_many_pixels":
            assert (verdict.reason is None) == _loads(path), path
    assert sum(verdict.reason is None for verdict in verdicts.values()) > 400


@needs_real_data
def test_decoding_is_quiet() -> None:
    code = "import sys; from stages.images import inspect; [inspect(open(p, 'rb').read()) for p in sys.argv[1:]]"
    command = [sys.executable, "-c", code, *map(str, files("decode", "*.png", "*.jpg", "*.gif"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stderr == ""


def _loads(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(path, formats=list(FORMATS)).load()
    except Exception:
        return False
    return True
