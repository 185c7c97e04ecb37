"""From an image's bytes to the square a model sees: decoding, one crop, one resize, one turn.

A JPEG is decoded at the smallest of its scales (1, 1/2, 1/4, 1/8) that is not below what is needed (libjpeg's scaled
inverse transform); crop and resize are one antialiased bicubic step, mirroring and rotation one bilinear one, which
also resizes where that takes away next to nothing.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UserError

Pixels = NDArray[np.uint8]
"""(height, width, 3), RGB."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
ENDING = b"\xff\xd9"
"""Of a JPEG that is whole."""
SCALES = {1: 256, 2: 256 | 16, 4: 256 | 32, 8: 256 | 64}
"""OpenCV's flags for RGB at a part of a JPEG's size; it names those for BGR alone."""
ONE_PASS = 1.25
"""Pixels that one of a turned view stands for, along a side, up to which it is not resized before it is turned."""
TRIES = 10
"""For a crop of a drawn shape to lie within the image."""
CORNERS = ("none", "black")

Triple = tuple[float, float, float]
NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "rs5m": ((0.406, 0.423, 0.390), (0.188, 0.175, 0.185)),
    "pub11": ((0.445, 0.469, 0.441), (0.208, 0.193, 0.213)),
    "rs3": ((0.350, 0.356, 0.316), (0.158, 0.147, 0.143)),
    "geometa": ((0.320, 0.322, 0.285), (0.179, 0.168, 0.166)),
}
"""Mean and deviation of each channel: OpenAI's, ImageNet's, and those of RS5M's code (arXiv 2306.11300)."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Training's random views; the defaults are the paper's (arXiv 2306.11300 §VI-A), but for the corners."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Share of the area that is cropped."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width by height of the crop, before it is made square."""
    flip: float = 0.5
    """Probability of a mirrored image."""
    rotation: float = 360.0
    """Degrees, of which one angle is drawn."""
    corners: str = "none"
    """Of turned images: `none`: the turned square lies within the crop, and shows as little as half of its area;
    `black`: it shows all of the crop but for its corners, as in the paper."""

    def __post_init__(self) -> None:
        if self.corners not in CORNERS:
            raise UserError(f"augment.corners is {self.corners!r}; accepted: {', '.join(CORNERS)}")
        for name in ("scale", "ratio"):
            least, most = getattr(self, name)
            if not 0 < least <= most or (name == "scale" and most > 1):
                raise UserError(f"augment.{name} is {(least, most)}: a smaller and a larger number are wanted, above 0")
        if not 0 <= self.flip <= 1 or not 0 <= self.rotation <= 360:
            raise UserError(f"augment: flip is {self.flip}, rotation {self.rotation}; accepted: 0 to 1 and 0 to 360")


@dataclass(frozen=True, slots=True)
class View:
    """What is shown of an image: a box of it, made `inner` pixels square, mirrored and turned."""

    left: float
    top: float
    width: float
    height: float
    inner: int
    angle: float = 0.0
    mirrored: bool = False

    @property
    def is_upright(self) -> bool:
        """Neither turned nor mirrored."""
        return not self.mirrored and self.angle == 0

    @property
    def source_pixels(self) -> float:
        """Pixels of the image that one of the view stands for, along a side."""
        return math.sqrt(self.width * self.height) / self.inner


def centre_view(width: int, height: int, size: int) -> View:
    """The shorter side made `size`, the centre cropped: evaluation's view."""
    side = min(width, height)
    return View((width - side) / 2, (height - side) / 2, side, side, size)


def random_view(
    width: int, height: int, size: int, augment: Augment, rng: np.random.Generator, upright: bool = False
) -> View:
    """A crop of drawn area, shape and place, and a turn; of `upright` images the crop alone.

    The crop is drawn as torchvision's RandomResizedCrop does: shapes that do not fit are drawn anew, at last the
    largest centred one is taken. The same numbers are drawn whatever `upright` is.
    """
    left, top, box_width, box_height = _crop(width, height, augment, rng)
    chance, turn = rng.random(2)
    mirrored = bool(chance < augment.flip) and not upright
    angle = 0.0 if upright else float(turn * augment.rotation)
    radians = math.radians(angle)
    wider = abs(math.cos(radians)) + abs(math.sin(radians)) if augment.corners == "none" else 1.0
    inner = math.ceil(size * wider - 1e-9)
    return View(left, top, box_width, box_height, inner, angle, mirrored)


def _crop(width: int, height: int, augment: Augment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    draws = rng.random((TRIES, 2))
    across, down = rng.random(2)
    areas = width * height * (augment.scale[0] + draws[:, 0] * (augment.scale[1] - augment.scale[0]))
    low, high = np.log(augment.ratio)
    ratios = np.exp(low + draws[:, 1] * (high - low))
    widths, heights = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = np.flatnonzero((widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height))
    if len(fits):
        w, h = int(widths[fits[0]]), int(heights[fits[0]])
        return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h
    w = min(width, max(1, round(height * augment.ratio[1])))
    h = min(height, max(1, round(width / augment.ratio[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def opened(data: bytes) -> Any:
    """The image, its header read; decoding comes with `render`.

    Raises:
        OSError, ValueError and others of Pillow's: it is none of the accepted formats.
    """
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=FORMATS)


def render(image: Any, view: View, size: int) -> Pixels:
    """The view of an opened image, `size` pixels square.

    Raises:
        OSError, ValueError, SyntaxError, MemoryError and others of Pillow's: it cannot be decoded.
    """
    width, height = image.size
    pixels = _decoded(image, math.ceil(width * view.inner / view.width), math.ceil(height * view.inner / view.height))
    across, down = pixels.shape[1] / width, pixels.shape[0] / height
    left, top = round(view.left * across), round(view.top * down)
    right, bottom = round((view.left + view.width) * across), round((view.top + view.height) * down)
    box = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    if view.angle == 0 and view.inner == size:
        square = _resized(box, size)
        return np.ascontiguousarray(square[:, ::-1]) if view.mirrored else square
    least, most = min(box.shape[:2]) / view.inner, max(box.shape[:2]) / view.inner
    return _turned(box if least >= 1 and most <= ONE_PASS else _resized(box, view.inner), view, size)


def _decoded(image: Any, width: int, height: int) -> Pixels:
    """The image, no smaller than asked for.

    OpenCV gives Pillow's very pixels, sooner, but says nothing of a JPEG that is cut off.
    """
    import cv2

    scale = max((each for each in SCALES if image.width // each >= width and image.height // each >= height), default=1)
    if image.format == "JPEG" and image.mode == "RGB":
        data = image.fp.getvalue()
        if data.endswith(ENDING):
            found = cv2.imdecode(np.frombuffer(data, np.uint8), SCALES[scale] | cv2.IMREAD_IGNORE_ORIENTATION)
            if found is not None:
                return np.asarray(found, dtype=np.uint8)
    if image.format == "JPEG":
        image.draft(image.mode, (width, height))
    return _rgb(image)


def _rgb(image: Any) -> Pixels:
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))


def _resized(pixels: Pixels, size: int) -> Pixels:
    """Antialiased bicubic: torch's, which gives Pillow's values within rounding in a quarter of its time."""
    import torch
    from torch.nn.functional import interpolate

    if pixels.shape[:2] == (size, size):
        return pixels
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = interpolate(planes, (size, size), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _turned(pixels: Pixels, view: View, size: int) -> Pixels:
    """The centre of the view's square, mirrored and then turned (counter-clockwise); black beyond it."""
    import cv2

    radians = math.radians(view.angle)
    cos, sin = math.cos(radians), math.sin(radians)
    sign = -1.0 if view.mirrored else 1.0
    height, width = pixels.shape[:2]
    middle, source = (size - 1) / 2, ((width - 1) / 2, (height - 1) / 2)
    matrix = np.array([[sign * cos, -sign * sin, 0.0], [sin, cos, 0.0]])
    matrix[:, :2] *= np.array([[width], [height]]) / view.inner
    matrix[:, 2] = source - matrix[:, :2] @ (middle, middle)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(pixels, matrix, (size, size), flags=flags), dtype=np.uint8)


def normalise(images: Any, statistics: str | tuple[Triple, Triple] = "clip", dtype: Any = None, out: Any = None) -> Any:
    """uint8 tensor (batch, 3, height, width) to floats of mean 0 and deviation 1 by named statistics, on its device.

    Args:
        images: channels last in memory, as batches are, costs least; the result is so, too.
        statistics: a name of `NORMALISATIONS`, or mean and deviation.
        dtype: float32 by default.
        out: an earlier float32 result for as many images, written over: on a CPU fresh memory costs more than the
            arithmetic.

    Raises:
        UserError: no such statistics.
    """
    import torch

    if isinstance(statistics, str) and statistics not in NORMALISATIONS:
        raise UserError(f"the normalisation {statistics!r} is unknown; accepted: {', '.join(NORMALISATIONS)}")
    mean, deviation = NORMALISATIONS[statistics] if isinstance(statistics, str) else statistics
    count, channels, height, width = images.shape
    shape = (count * height, width * channels)
    rows = torch.empty(shape, device=images.device) if out is None else out.permute(0, 2, 3, 1).view(shape)
    rows.copy_(images.permute(0, 2, 3, 1).reshape(shape))
    shift, factor = (torch.tensor(each, device=images.device).mul_(255).repeat(width) for each in (mean, deviation))
    rows.sub_(shift).mul_(factor.reciprocal_())
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2).to(dtype or torch.float32)
