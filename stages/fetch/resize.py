"""Resizing with img2dataset's options and geometry, from the one decode that also validates the image.

What differs from its resizer: the image is upright first and under the RGB rule of `stages.images` (theirs ignores EXIF
and knows fewer kinds of pixels), and a JPEG is decoded at the smallest of its scales that reaches the new size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.fetch.lanczos import LARGEST, enlarge
from stages.images import HASH_SIDE, Limits, Verdict, decode, hashed

if TYPE_CHECKING:
    from PIL.Image import Image

OPTIONS = {
    "image_size": 256,
    "resize_mode": "border",
    "resize_only_if_bigger": False,
    "upscale_interpolation": "lanczos",
    "downscale_interpolation": "area",
    "encode_quality": 95,
    "encode_format": "jpg",
    "skip_reencode": False,
}
"""Options and their defaults."""
MODES = ("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest")
FRAMED = ("center_crop", "border")
"""Modes that give a square."""
BY_SHORTER = ("keep_ratio", "center_crop")
"""Modes in which the shorter side becomes `image_size`; in the others it is the longer one."""
FORMATS = {"jpg": "jpeg", "png": "png", "webp": "webp"}
"""The formats to encode in, and our names of them."""
INTERPOLATIONS = {
    "nearest": "INTER_NEAREST",
    "linear": "INTER_LINEAR",
    "bilinear": "INTER_LINEAR",
    "cubic": "INTER_CUBIC",
    "bicubic": "INTER_CUBIC",
    "area": "INTER_AREA",
    "lanczos": "INTER_LANCZOS4",
    "lanczos4": "INTER_LANCZOS4",
}
"""Interpolations by their names, and OpenCV's constants."""

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""Width and height."""


class Resize:
    """Validates, resizes, encodes and hashes one body; see `OPTIONS`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        import cv2

        cv2.setNumThreads(1)
        self.options = {**OPTIONS, **options}
        self._side: int = self.options["image_size"]
        self._mode: str = self.options["resize_mode"]
        self._format = FORMATS[self.options["encode_format"]]

    def __call__(self, data: bytes, limits: Limits) -> tuple[Verdict, bytes]:
        """(the verdict on the resized image, its bytes); the verdict on the body, and no bytes, when it is no image.

        The hash is that of the resized pixels before they are encoded.
        """
        verdict, image = decode(data, limits, None, self.scaled)
        if image is None:
            return verdict, b""
        size = (verdict.width or 0, verdict.height or 0)
        is_changed = self._is_changed(size)
        if self.options["skip_reencode"] and not is_changed and verdict.format == self._format:
            return hashed(verdict, image), data
        pixels = self._resized(image, size) if is_changed else np.asarray(image)
        return self._encoded(pixels)

    def scaled(self, size: Size) -> Size:
        """The size of an image once scaled, before it is cropped or padded."""
        if not self._is_changed(size):
            return size
        scale = self._side / self._measure(size)
        return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)

    def _is_changed(self, size: Size) -> bool:
        return self._mode != "no" and (not self.options["resize_only_if_bigger"] or self._is_larger(size))

    def _is_larger(self, size: Size) -> bool:
        """Whether the image that came is larger than it will be."""
        return self._measure(size) > self._side

    def _measure(self, size: Size) -> int:
        return min(size) if self._mode in BY_SHORTER else max(size)

    def _resized(self, image: Image, size: Size) -> Pixels:
        """(height, width) or (height, width, 3) levels, RGB, of an image whose true size is `size`."""
        pixels = np.asarray(image)
        if self.scaled(size) != image.size:
            name = self.options["downscale_interpolation" if self._is_larger(size) else "upscale_interpolation"]
            pixels = _interpolated(pixels, self.scaled(size), INTERPOLATIONS[name])
        return self._framed(pixels) if self._mode in FRAMED else pixels

    def _framed(self, pixels: Pixels) -> Pixels:
        """The middle of the image, or the image in the middle of white."""
        import cv2

        height, width = pixels.shape[:2]
        if self._mode == "center_crop":
            top, left = (height - self._side) // 2, (width - self._side) // 2
            return pixels[top : top + self._side, left : left + self._side]
        above, before = (self._side - height) // 2, (self._side - width) // 2
        below, after = self._side - height - above, self._side - width - before
        white = (255, 255, 255)
        framed: Any = cv2.copyMakeBorder(pixels, above, below, before, after, cv2.BORDER_CONSTANT, value=white)
        return framed

    def _encoded(self, pixels: Pixels) -> tuple[Verdict, bytes]:
        import cv2

        kind = self.options["encode_format"]
        quality = {
            "jpg": cv2.IMWRITE_JPEG_QUALITY,
            "png": cv2.IMWRITE_PNG_COMPRESSION,
            "webp": cv2.IMWRITE_WEBP_QUALITY,
        }
        levels: Any = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
        done, encoded = cv2.imencode(f".{kind}", levels, [quality[kind], self.options["encode_quality"]])
        data = encoded.tobytes() if done else b""
        verdict = Verdict(
            reason=None,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            format=self._format,
            width=pixels.shape[1],
            height=pixels.shape[0],
        )
        return hashed(verdict, _shrunk(pixels)), data


def _interpolated(pixels: Pixels, size: Size, interpolation: str) -> Pixels:
    """By OpenCV, or as by OpenCV."""
    import cv2

    height, width = pixels.shape[:2]
    is_enlarged = size[0] >= width and size[1] >= height
    if interpolation == "INTER_LANCZOS4" and is_enlarged and size[0] * size[1] <= LARGEST:
        return enlarge(pixels, size)
    resized: Any = cv2.resize(pixels, size, interpolation=getattr(cv2, interpolation))
    return resized


def _shrunk(pixels: Pixels) -> Image:
    """In grey, and a whole number of times smaller, as far as the hash allows (as for a JPEG, see `stages.images`).

    OpenCV's grey is within one level of Pillow's, in a quarter of the time; 997 of 1,000 hashes are the same.
    """
    import cv2
    from PIL.Image import fromarray

    grey: Any = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    height, width = grey.shape
    times = min(width, height) // HASH_SIDE
    if times > 1:
        whole = grey[: height // times * times, : width // times * times]
        grey = cv2.resize(whole, (width // times, height // times), interpolation=cv2.INTER_AREA)
    return fromarray(grey)


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError, in a sentence, for an unknown option or a value that is not accepted."""
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(f"resize.{unknown[0]} is unknown; accepted: {', '.join(sorted(OPTIONS))}")
    whole = {**OPTIONS, **options}
    best = 9 if whole["encode_format"] == "png" else 100
    for name, least, most in (("image_size", 1, 65_000), ("encode_quality", 0, best)):
        value = whole[name]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"resize.{name} is {value!r}; accepted: a whole number from {least} to {most}")
    for name, accepted in (
        ("resize_mode", MODES),
        ("encode_format", FORMATS),
        ("upscale_interpolation", INTERPOLATIONS),
        ("downscale_interpolation", INTERPOLATIONS),
    ):
        if str(whole[name]) not in accepted:
            raise ValueError(f"resize.{name} is {whole[name]!r}; accepted: {', '.join(accepted)}")
