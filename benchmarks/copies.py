"""Copies of an image as the web makes them, each with what was done to it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

Change = Callable[["Image"], "Image"]
QUALITY = 90
"""Of the JPEG that every changed copy is saved as."""


def copies(image: Image) -> dict[str, bytes]:
    """JPEG bytes of every kind of copy of an RGB image."""
    found = {kind: _jpeg(change(image)) for kind, change in CHANGES.items()}
    return found | {f"recompress q{quality}": _jpeg(image, quality) for quality in (90, 50, 30)}


def _jpeg(image: Image, quality: int = QUALITY) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _resize(factor: float) -> Change:
    def change(image: Image) -> Image:
        from PIL.Image import Resampling

        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        return image.resize(size, Resampling.BICUBIC)

    return change


def _crop(share: float) -> Change:
    """Cuts `share` of width and height off, evenly on all sides."""

    def change(image: Image) -> Image:
        dx, dy = round(image.width * share / 2), round(image.height * share / 2)
        return image.crop((dx, dy, image.width - dx, image.height - dy))

    return change


def _turn(degrees: int) -> Change:
    def change(image: Image) -> Image:
        return image.rotate(degrees, expand=True)

    return change


def _mirror(image: Image) -> Image:
    from PIL.Image import Transpose

    return image.transpose(Transpose.FLIP_LEFT_RIGHT)


def _tilt(degrees: float) -> Change:
    """Turned a little, corners filled with black."""

    def change(image: Image) -> Image:
        from PIL.Image import Resampling

        return image.rotate(degrees, Resampling.BICUBIC)

    return change


def _colour_shift(image: Image) -> Image:
    """Hue by 20 of 255, a fifth more saturation, a tenth brighter."""
    from PIL import ImageEnhance
    from PIL.Image import merge

    hue, saturation, value = image.convert("HSV").split()
    shifted = merge("HSV", (hue.point(lambda h: (h + 20) % 256), saturation, value)).convert("RGB")
    return ImageEnhance.Brightness(ImageEnhance.Color(shifted).enhance(1.2)).enhance(1.1)


def _grey(image: Image) -> Image:
    return image.convert("L").convert("RGB")


def _logo(image: Image) -> Image:
    """A white bar with dark letters' stand-ins over a sixteenth of the image, at the lower right."""
    from PIL import ImageDraw

    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    width, height = image.width // 4, image.height // 4
    left, top = image.width - width - width // 8, image.height - height // 2 - height // 8
    draw.rectangle((left, top, left + width, top + height // 2), fill=(255, 255, 255))
    for step in range(1, 8, 2):
        x = left + width * step // 8
        draw.rectangle((x, top + height // 8, x + width // 12, top + 3 * height // 8), fill=(30, 30, 30))
    return marked


CHANGES: dict[str, Change] = {
    "resize 0.5": _resize(0.5),
    "resize 0.75": _resize(0.75),
    "resize 2": _resize(2.0),
    "grey": _grey,
    "colour shift": _colour_shift,
    "logo": _logo,
    "crop 5 %": _crop(0.05),
    "crop 10 %": _crop(0.10),
    "crop 20 %": _crop(0.20),
    "tilt 5°": _tilt(5),
    "rotate 90°": _turn(90),
    "rotate 180°": _turn(180),
    "mirror": _mirror,
}
"""What is done to the pixels, before they are saved."""
