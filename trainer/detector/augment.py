"""Equalising: every source's size, sharpness, compression and colour habit is drowned in the same random treatment.

All of it is applied alike to both classes, so that neither blur nor blocks, grey, palettes, speckle, black corners nor
lettering tells one from the other. What the modalities imitate matters for the positives (radar, infrared, haze,
oblique views, nodata); the negatives get the same so that it stays no cue.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness (ITU-R BT.601)."""
MODALITY = 0.3
"""Probability that a picture is turned into another modality."""
FRAMED = 0.08
"""Probability that a picture lies askew in a black or white frame, as scenes on their grid do."""


def augment(pixels: Pixels, rng: np.random.Generator, size: int, harder: float = 0.0, plain: float = 0.0) -> Pixels:
    """(height, width, 3) to (size, size, 3): crop, turn, rescale, modality, jitter, encode and resize.

    `harder` is the probability of a further turn by any angle, and of grey whatever the modality; `plain` that of
    hardly more than a crop, a turn by quarters, another size and another encoding.
    """
    from PIL import Image

    image = Image.fromarray(pixels)
    image = _plainly(image, rng) if rng.random() < plain else _altered(image, rng, harder)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def _altered(image: Any, rng: np.random.Generator, harder: float) -> Any:
    image = _turned(_window(image, rng), rng)
    if rng.random() < FRAMED:
        image = _framed(image, rng)
    elif rng.random() < harder:
        image = rotated(image, float(rng.uniform(-45, 45)))
    if rng.random() < harder:
        image = image.convert("L").convert("RGB")
    image = _rescaled(image, rng)
    if rng.random() < MODALITY:
        image = _of(MODALITIES[int(rng.integers(len(MODALITIES)))](_array(image), rng))
    for step, chance in ((jitter, 0.8), (_blurred, 0.2), (_grainy, 0.15), (_lettered, 0.1), (_encoded, 0.75)):
        if rng.random() < chance:
            image = step(image, rng)
    return image


def _plainly(image: Any, rng: np.random.Generator) -> Any:
    """Much as it was: most of the picture, quarter turns, grey at times, 64 to 224 px, at times encoded again."""
    from PIL import Image

    left, top, right, bottom = rng.uniform(0, 0.12, 4)
    width, height = image.size
    image = image.crop(
        (int(left * width), int(top * height), width - int(right * width), height - int(bottom * height))
    )
    for way in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90):
        if rng.random() < 0.4:
            image = image.transpose(way)
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    side = round(float(np.exp(rng.uniform(np.log(64), np.log(224)))))
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    return _encoded(image, rng) if rng.random() < 0.5 else image


def _array(image: Any) -> NDArray[np.float32]:
    return np.asarray(image, dtype=np.float32)


def _of(values: NDArray[Any]) -> Any:
    from PIL import Image

    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _window(image: Any, rng: np.random.Generator) -> Any:
    """A crop of a seventh of the area to all of it, in an aspect of 3 : 4 to 4 : 3; half of them nearly everything."""
    share = rng.uniform(0.7, 1.0) if rng.random() < 0.5 else np.exp(rng.uniform(np.log(0.15), 0))
    aspect = np.exp(rng.uniform(-0.29, 0.29))
    longest = np.sqrt(share * image.width * image.height)
    width, height = (
        int(np.clip(longest * by, 12, limit))
        for by, limit in ((np.sqrt(aspect), image.width), (1 / np.sqrt(aspect), image.height))
    )
    left, top = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _turned(image: Any, rng: np.random.Generator) -> Any:
    """Mirrored, turned by quarters, and at times by any angle (the inscribed part is kept)."""
    from PIL import Image

    for chance, way in ((0.5, Image.Transpose.FLIP_LEFT_RIGHT), (0.3, Image.Transpose.FLIP_TOP_BOTTOM)):
        if rng.random() < chance:
            image = image.transpose(way)
    if rng.random() < 0.35:
        image = image.transpose(Image.Transpose.ROTATE_90)
    return rotated(image, float(rng.uniform(-45, 45))) if rng.random() < 0.35 else image


def rotated(image: Any, angle: float) -> Any:
    """Turned by degrees; of the result the largest upright centre crop of the old aspect without corners."""
    from PIL import Image

    turn = np.radians(angle)
    ratio = max(image.size) / min(image.size)
    share = 1 / (abs(np.cos(turn)) + ratio * abs(np.sin(turn)))
    width, height = (max(8, int(side * share)) for side in image.size)
    image = image.rotate(angle, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _framed(image: Any, rng: np.random.Generator) -> Any:
    """Turned by any angle and shifted, what lies beyond its borders filled with one tone."""
    from PIL import Image

    tone = (0, 0, 0) if rng.random() < 0.75 else (255, 255, 255)
    shift = tuple(float(rng.uniform(-0.15, 0.15)) * side for side in image.size)
    return image.rotate(
        float(rng.uniform(-180, 180)),
        Image.Resampling.BICUBIC,
        expand=rng.random() < 0.4,
        translate=shift,
        fillcolor=tone,
    )


def _rescaled(image: Any, rng: np.random.Generator) -> Any:
    """Resampled by any filter to 32–224 px, at times by way of an even smaller picture."""
    from PIL import Image

    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)
    size = round(float(np.exp(rng.uniform(np.log(40), np.log(224)))))
    if rng.random() < 0.2:
        small = round(float(rng.uniform(28, 64)))
        image = image.resize((small, small), filters[int(rng.integers(4))])
    return image.resize((size, size), filters[int(rng.integers(4))])


def grey(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Panchromatic: luma, or one channel."""
    plane = luma(values) if rng.random() < 0.6 else values[..., int(rng.integers(3))]
    return np.repeat(plane[..., None], 3, axis=2)


def luma(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(height, width): ITU-R BT.601 luma of RGB."""
    return values @ np.array(LUMA, dtype=np.float32)


def false_colour(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Infrared-like: channels exchanged and mixed, vegetation reds included."""
    if rng.random() < 0.5:
        infrared = np.clip(2.2 * values[..., 1] - 0.8 * values[..., 0], 0, 255)
        return np.stack([infrared, values[..., 0], values[..., 1]], axis=2)
    mixing = np.eye(3, dtype=np.float32)[rng.permutation(3)] + rng.normal(0, 0.25, (3, 3)).astype(np.float32)
    return values @ mixing.T


def palette(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A thermal or index palette over the luma; at times inverted."""
    plane = luma(values) / 255.0
    stops = rng.uniform(0, 255, (int(rng.integers(2, 6)), 3))
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(plane, at, stops[:, channel]) for channel in range(3)], axis=2).astype(np.float32)


def speckle(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Radar-like: grey amplitude under multiplicative gamma noise of 1 to 8 looks."""
    looks = rng.uniform(1, 8)
    plane = luma(values) ** rng.uniform(0.9, 1.4)
    noisy = plane * np.sqrt(rng.gamma(looks, 1 / looks, plane.shape))
    plane = noisy / max(float(np.percentile(noisy, 98)), 1e-6) * 255
    return np.repeat(plane[..., None], 3, axis=2).astype(np.float32)


def faint(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Low contrast: haze, under-exposure."""
    return values * rng.uniform(0.15, 0.5) + rng.uniform(0, 150)


def cloudy(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """White veils of some cover over the picture."""
    from trainer.detector.negatives.canvas import smooth

    height, width = values.shape[:2]
    field = smooth(rng, width, height, int(rng.integers(2, 6)), 4)
    cover = np.clip((field - rng.uniform(0.35, 0.75)) * rng.uniform(2, 8), 0, rng.uniform(0.6, 1.0))[..., None]
    return (values * (1 - cover) + rng.uniform(215, 255) * cover).astype(np.float32)


def wedges(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Nodata: black or white beyond one or two slanting borders."""
    height, width = values.shape[:2]
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    out = values.copy()
    fill = 0.0 if rng.random() < 0.75 else 255.0
    for _ in range(int(rng.integers(1, 3))):
        angle = rng.uniform(0, 2 * np.pi)
        out[across * np.cos(angle) + down * np.sin(angle) > rng.uniform(0.1, 1.1)] = fill
    return out


def oblique(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Seen aslant: one border of the picture drawn together (a perspective transform)."""
    from PIL import Image

    image = _of(values)
    width, height = image.size
    near, tilt = rng.uniform(0.0, 0.35) * width, rng.uniform(-0.15, 0.15) * width
    corners = [(near + tilt, 0.0), (width - near + tilt, 0.0), (width, height), (0.0, height)]
    box = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    coefficients = perspective(box, corners)
    return _array(
        image.transform((width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    )


def perspective(target: Sequence[tuple[float, float]], source: Sequence[tuple[float, float]]) -> list[float]:
    """The eight coefficients by which Pillow finds for a target's point the source's, from four corners of each."""
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return [float(value) for value in np.linalg.solve(np.array(rows), np.array(values))]


def tiled(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Mirrored into a mosaic and shrunk: a coarser ground resolution, or a wall of small pictures."""
    doubled = np.concatenate([values, values[:, ::-1]], axis=1)
    return np.concatenate([doubled, doubled[::-1]], axis=0)


MODALITIES: tuple[Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]], ...] = (
    grey,
    grey,
    grey,
    grey,
    false_colour,
    palette,
    speckle,
    faint,
    cloudy,
    wedges,
    oblique,
    oblique,
    tiled,
)


def jitter(image: Any, rng: np.random.Generator) -> Any:
    """Gamma, gain and offset (each channel a little its own), saturation."""
    values = _array(image) / 255.0
    values = values ** np.float32(np.exp(rng.normal(0, 0.25)))
    gains = np.exp(rng.normal(0, 0.2) + rng.normal(0, 0.08, 3)).astype(np.float32)
    values = (values - 0.5) * gains + 0.5 + np.float32(rng.normal(0, 0.06))
    middle = luma(values)[..., None]
    return _of((middle + (values - middle) * np.float32(rng.uniform(0.3, 1.6))) * 255.0)


def _blurred(image: Any, rng: np.random.Generator) -> Any:
    from PIL import ImageFilter

    if rng.random() < 0.25:
        return image.filter(ImageFilter.UnsharpMask(2, int(rng.integers(60, 200)), 2))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 2.0))))


def _grainy(image: Any, rng: np.random.Generator) -> Any:
    values = _array(image)
    return _of(values + rng.normal(0, rng.uniform(2, 14), values.shape).astype(np.float32))


def _lettered(image: Any, rng: np.random.Generator) -> Any:
    """A watermark, a caption or a frame."""
    from PIL import ImageDraw

    from trainer.detector.negatives.canvas import label

    image = image.copy()
    draw = ImageDraw.Draw(image)
    width, height = image.size
    ink = (255, 255, 255) if rng.random() < 0.6 else (0, 0, 0)
    if rng.random() < 0.3:
        draw.rectangle([0, 0, width - 1, height - 1], outline=ink, width=int(rng.integers(1, 6)))
    at = (rng.uniform(0, 0.6) * width, rng.uniform(0, 0.95) * height)
    label(draw, rng, at, ink, int(max(5, height * rng.uniform(0.05, 0.12))), int(rng.integers(1, 4)))
    return image


def _encoded(image: Any, rng: np.random.Generator) -> Any:
    """Through JPEG (mostly) or WebP of quality 30–95, at times twice."""
    for _ in range(1 + (rng.random() < 0.15)):
        quality = int(rng.integers(30, 96))
        image = encoded(image, quality, "WEBP" if rng.random() < 0.15 else "JPEG")
    return image


def encoded(image: Any, quality: int, encoding: str = "JPEG") -> Any:
    """As decoded again after a lossy encoding."""
    from PIL import Image

    held = io.BytesIO()
    image.save(held, encoding, quality=quality, **({"method": 0} if encoding == "WEBP" else {}))
    return Image.open(held).convert("RGB")
