"""What the bytes of one image are: its verdict, its size and hashes, and its pixels under one RGB rule.

Seven formats count as images, and bytes are opened through that whitelist alone. Every scan line of the
first frame is decoded, under a cap on pixels that is checked before any is.

The RGB rule (`to_rgb`), used by the hash and by every scorer:

* the EXIF orientation is applied first, so width, height and hash are those of the upright image;
* 16-bit samples keep their high byte; 32-bit integers and floats are stretched from their least to their
  greatest finite value;
* CMYK is converted without a profile (Adobe's inverted values are put right by the decoder), CIELAB through sRGB;
* palettes are looked up; transparency, of whichever kind, is composited on white.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from stages.phash import phash, thumbnail

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {
    "JPEG": "jpeg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "AVIF": "avif",
}
"""Pillow's name of each format of the whitelist, and ours."""
EXTENSIONS = {
    "jpeg": "jpg",
    "png": "png",
    "webp": "webp",
    "gif": "gif",
    "bmp": "bmp",
    "tiff": "tif",
    "avif": "avif",
}
"""The file extension of each format."""
REASONS = frozenset(
    [
        "empty_body",
        "not_an_image",
        "unsupported_format",
        "truncated",
        "corrupt",
        "too_many_pixels",
        "decoder_crash",
        "placeholder",
    ]
)
"""Why bytes are no image (`decoder_crash`: see `stages.sandbox`)."""
MAX_PIXELS = 100_000_000
HASH_SIDE = 128
"""A JPEG is decoded at the smallest of its scales (1, 1/2, 1/4, 1/8) at which both sides are this long."""
MAX_SIDE = 2**31 - 1
"""Sizes beyond it are a header's lie, and fit no column: they stay null."""

_KNOWN = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"GIF8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
)
_OTHERS = (
    b"%!PS",
    b"\xc5\xd0\xd3\xc6",  # EPS with a preview
    b"8BPS",
    b"\0\0\1\0",  # ICO
    b"\0\0\2\0",  # CUR
    b"DDS ",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",  # JPEG 2000 codestream
    b"\xff\x0a",  # JPEG XL
    b"\0\0\0\x0cJXL ",
    b"qoif",
    b"\x01\xda",  # SGI
    b"icns",
    b"BLP1",
    b"BLP2",
    b"SIMPLE  =",  # FITS
    b"FORM",
    b"\xd7\xcd\xc6\x9a",  # WMF
    b"\x76\x2f\x31\x01",  # OpenEXR
    b"#?RADIANCE",
    b"/* XPM */",
    b"gimp xcf",
    b"\x59\xa6\x6a\x95",  # Sun raster
    b"\n\x05\x01",  # PCX
    *(b"P%d%c" % (kind, space) for kind in range(1, 8) for space in b" \t\r\n"),  # Netpbm
)
_SVG_WITHIN = 1024


Least = Callable[[tuple[int, int]], tuple[int, int]]
"""(width, height) of an image to the least size in which it is wanted."""
Octets = bytes
"""For classes in which `bytes` is a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a decode may cost."""

    max_pixels: int = MAX_PIXELS
    """Width × height of the first frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one decode of a body found. Without an image, `reason` says why, and sizes are null if unknown."""

    reason: str | None
    bytes: int
    sha256: str
    format: str | None = None
    width: int | None = None
    height: int | None = None
    phash: int | None = None
    thumbnail: Octets | None = None
    """32 × 32 grey levels, row by row: what the hash is made of."""


def inspect(data: bytes, limits: Limits | None = None) -> Verdict:
    """Decode a body once, and say what it is.

    The verdict is an image (`reason` None) exactly when Pillow, kept to the whitelist, loads the first
    frame and the frame is within the limits.
    """
    verdict, image = decode(data, limits or Limits(), "L", _for_hash)
    return verdict if image is None else hashed(verdict, image)


def hashed(verdict: Verdict, image: Image) -> Verdict:
    """The verdict with the hash of an image in grey or RGB, and what it is made of."""
    grey = thumbnail(image)
    return replace(verdict, phash=phash(grey), thumbnail=grey.tobytes())


def decode(data: bytes, limits: Limits, mode: str | None, least: Least) -> tuple[Verdict, Image | None]:
    """(the verdict, without a hash; the image, upright, in grey or RGB, None when there is none).

    Args:
        data: the body.
        limits: what a decode may cost.
        mode: `L` when grey is enough, else None.
        least: the size of the upright image to the least size it is wanted in. A JPEG is decoded at the smallest of its
            scales that reaches it: its decoder reads and checks every byte at any scale, but computes fewer pixels.
    """
    facts: dict[str, Any] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if not data:
        return Verdict(reason="empty_body", **facts), None
    try:
        image = _open(data)
    except Exception as error:  # decoders of hostile bytes raise anything; each ends as a reason
        return Verdict(reason=_unopened(data, error), **facts), None
    facts["format"] = _format(image)
    if max(image.size) <= MAX_SIDE:
        facts["width"], facts["height"] = image.size
    if image.width * image.height > limits.max_pixels:
        return Verdict(reason="too_many_pixels", **facts), None
    try:
        upright, (facts["width"], facts["height"]) = _decoded(image, mode, least)
        return Verdict(reason=None, **facts), upright
    except Exception as error:  # as above
        return Verdict(reason=_undecoded(error), **facts), None


def _for_hash(size: tuple[int, int]) -> tuple[int, int]:
    """Of a JPEG, the hash needs the brightness alone, and changes by 0.05 of its 64 bits on average (docs/dedup.md)."""
    return HASH_SIDE, HASH_SIDE


def _decoded(image: Image, mode: str | None, least: Least) -> tuple[Image, tuple[int, int]]:
    """(the image upright, in grey or RGB; its true size)."""
    is_scaled = False
    stored, orientation = image.size, None
    if image.format in ("JPEG", "MPO"):
        orientation = _orientation(image)
        wanted = _turned(least(_turned(stored, orientation)), orientation)
        is_scaled = image.draft(mode, wanted) is not None
    image.load()
    if orientation is None:  # others may tell theirs at the end only
        orientation = _orientation(image)
    size = _turned(stored if is_scaled else image.size, orientation)
    is_grey = image.mode == "L" and not image.has_transparency_data
    return _upright(image, orientation) if is_grey else to_rgb(image), size


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """A size as stored to the upright one, and back."""
    return (size[1], size[0]) if orientation >= 5 else size


def open_rgb(data: bytes) -> Image:
    """The first frame, upright, as RGB under the RGB rule.

    Raises:
        ValueError: the bytes are no image of the whitelist, or cannot be decoded.
    """
    return open_reduced(data, None)[0]


def open_reduced(data: bytes, least: Least | None) -> tuple[Image, tuple[float, float]]:
    """(the image as `open_rgb` gives it, the width and height of it that count).

    With `least`, a JPEG that stands upright is decoded at the smallest of its scales that reaches it. Its size is then
    rounded up: the last column and row may be padding in part.

    Raises:
        ValueError: the bytes are no image of the whitelist, or cannot be decoded.
    """
    try:
        image = _open(data)
        scaled = None
        if least and image.format in ("JPEG", "MPO") and _orientation(image) == 1:
            scaled = image.draft(None, least(image.size))
        found = to_rgb(image)
    except Exception as error:  # decoders of hostile bytes raise anything
        raise ValueError(f"cannot be decoded: {error}") from error
    return found, (scaled[1][2], scaled[1][3]) if scaled else found.size


def to_png(data: bytes) -> bytes:
    """The image as PNG under the RGB rule: the same bytes always give the same PNG.

    Raises:
        ValueError: the bytes are no image of the whitelist, or cannot be decoded.
    """
    out = io.BytesIO()
    open_rgb(data).save(out, "PNG", compress_level=6)
    return out.getvalue()


def to_rgb(image: Image) -> Image:
    """The RGB rule (see the module): upright, 8 bits, no transparency. Without a need, pixels stay as they are."""
    image.load()
    image = _upright(image, _orientation(image))
    if image.mode.startswith("I;16"):
        return _high_byte(image).convert("RGB")
    if image.mode in ("I", "F"):
        return _stretched(image).convert("RGB")
    if image.mode == "LAB":
        return _from_lab(image)
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@cache
def _pillow() -> Any:
    """`PIL.Image`, without its chatter and its own cap on pixels (ours is checked on each image)."""
    import PIL.Image

    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    PIL.Image.MAX_IMAGE_PIXELS = None
    return PIL.Image


def _open(data: bytes) -> Image:
    image: Image = _pillow().open(io.BytesIO(data), formats=list(FORMATS))
    return image


def _format(image: Image) -> str:
    """Our name of the format; an MPO file is a JPEG with others behind it."""
    return FORMATS.get(image.format or "", "jpeg")


def _unopened(data: bytes, error: Exception) -> str:
    """The reason for bytes that the whitelist could not open."""
    if data.startswith(_KNOWN) or data[8:12] == b"WEBP" or data[4:12] in (b"ftypavif", b"ftypavis"):
        return _undecoded(error)
    if data.startswith(_OTHERS) or data[4:8] == b"ftyp" or b"<svg" in data[:_SVG_WITHIN].lower():
        return "unsupported_format"
    return "not_an_image"


def _undecoded(error: Exception) -> str:
    """`truncated` when the decoder ran out of bytes, `decoder_crash` when it hit its cap on memory, else `corrupt`."""
    if isinstance(error, MemoryError):
        return "decoder_crash"
    said = str(error).lower()
    short = isinstance(error, EOFError) or "truncated" in said or "unexpected end" in said
    return "truncated" if short else "corrupt"


def _upright(image: Image, orientation: int) -> Image:
    """Apply the EXIF orientation."""
    turn = _turns().get(orientation)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image) -> int:
    """By EXIF, 1 to 8; EXIF that cannot be read is none."""
    from PIL.ExifTags import Base

    try:
        value = image.getexif().get(Base.Orientation, 1)
    except Exception:  # broken EXIF in a sound image: viewers show it as stored
        return 1
    return value if value in _turns() else 1


@cache
def _turns() -> dict[int, Any]:
    """EXIF orientation to the transposition that undoes it."""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }


def _high_byte(image: Image) -> Image:
    import numpy as np

    return _pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _stretched(image: Image) -> Image:
    """Least finite value to 0, greatest to 255; what is not finite becomes 0."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    finite = np.isfinite(values)
    low = values.min(initial=np.inf, where=finite)
    span = values.max(initial=-np.inf, where=finite) - low
    scaled = np.where(finite, values - low, 0.0) * (255.0 / span if span > 0 else 0.0)
    return _pillow().fromarray(np.rint(scaled).astype(np.uint8))


def _from_lab(image: Image) -> Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
    rgb = ImageCms.applyTransform(image, transform)
    if rgb is None:
        raise ValueError("CIELAB was not converted")
    return rgb


def _on_white(image: Image) -> Image:
    rgba = image.convert("RGBA")
    white: Image = _pillow().new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white
