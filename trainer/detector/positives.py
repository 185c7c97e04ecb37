"""Land seen from far above, drawn by code: the coarse ground resolutions that the sources hardly hold.

Patchworks of fields, relief, coasts and towns at 5 to 30 m a pixel, and radar of any of them. They are drawn from a
seeded generator as the negatives are, with the same helpers, and get the same treatment.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector.negatives.canvas import Colour, Field, near, shade, smooth, wander

Values = NDArray[np.float32]
"""(height, width, 3), 0 to 255."""
GROUND: tuple[Colour, ...] = (
    (52, 74, 38),
    (84, 106, 52),
    (120, 134, 74),
    (148, 128, 88),
    (176, 158, 112),
    (110, 88, 64),
    (70, 62, 50),
    (196, 184, 148),
)
"""Crops, fallow and bare soil."""
FOREST: tuple[Colour, ...] = ((22, 40, 24), (34, 58, 32), (50, 66, 40))
WATER: tuple[Colour, ...] = ((8, 18, 34), (18, 44, 62), (36, 74, 84), (60, 92, 82))
ROOFS: tuple[Colour, ...] = ((150, 146, 140), (196, 192, 186), (138, 96, 76), (104, 104, 108), (226, 222, 214))


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return near(rng, colours[int(rng.integers(len(colours)))], 18)


def _grid(rng: np.random.Generator, width: int, height: int) -> tuple[Field, Field]:
    """Coordinates of the pixels in a frame turned at random."""
    angle = rng.uniform(0, np.pi)
    across, down = np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float))
    return across * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - across * np.sin(angle)


def _cells(rng: np.random.Generator, width: int, height: int) -> NDArray[np.int64]:
    """Numbers of parcels: strips and blocks in a turned frame, warped a little, or the nearest of scattered points."""
    if rng.random() < 0.4:
        count = int(rng.integers(12, 90))
        points = rng.uniform(0, 1, (count, 2)) * (width, height)
        across, down = np.meshgrid(np.arange(width), np.arange(height))
        squared = (across[..., None] - points[:, 0]) ** 2 + (down[..., None] - points[:, 1]) ** 2
        return np.asarray(squared.argmin(2), dtype=np.int64)
    u, v = _grid(rng, width, height)
    bend = rng.uniform(0, 12)
    u, v = u + bend * smooth(rng, width, height, 3, 2), v + bend * smooth(rng, width, height, 3, 2)
    rows = np.floor(v / rng.uniform(12, 60)).astype(np.int64)
    offsets = rng.uniform(0, 100, 4096)[rows % 4096]
    return rows * 211 + np.floor((u + offsets) / rng.uniform(10, 80)).astype(np.int64)


def _parcels(rng: np.random.Generator, width: int, height: int) -> Values:
    cells = np.unique(_cells(rng, width, height), return_inverse=True)[1].reshape(height, width)
    palette = tuple(_pick(rng, GROUND) for _ in range(int(rng.integers(2, 7))))
    tints = np.array([_pick(rng, FOREST if rng.random() < 0.15 else palette) for _ in range(cells.max() + 1)])
    values = tints[cells].astype(np.float32)
    if rng.random() < 0.5:
        edge = (np.diff(cells, axis=0, append=cells[-1:]) != 0) | (np.diff(cells, axis=1, append=cells[:, -1:]) != 0)
        values[edge] += rng.uniform(-40, 40)
    return values


def _textured(rng: np.random.Generator, values: Values, strength: float) -> Values:
    height, width = values.shape[:2]
    field = smooth(rng, width, height, int(rng.integers(6, 40)), 4) - 0.5
    return (values * (1 + strength * field[..., None])).astype(np.float32)


def _lines(rng: np.random.Generator, values: Values, colour: Colour, count: int, widest: int) -> Values:
    """Roads or rivers across the picture."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        turn = rng.uniform(0.0, 0.35)
        draw.line(
            wander(rng, image.width, image.height, turn), fill=near(rng, colour), width=int(rng.integers(1, widest))
        )
    return np.asarray(image, dtype=np.float32)


def fields(rng: np.random.Generator, width: int, height: int) -> Values:
    """Farmland: parcels, woods, tracks, at times a river, or circles of irrigation."""
    values = _textured(rng, _parcels(rng, width, height), rng.uniform(0.1, 0.6))
    wood = smooth(rng, width, height, int(rng.integers(2, 7)), 4) > rng.uniform(0.5, 0.95)
    values[wood] = _pick(rng, FOREST)
    if rng.random() < 0.2:
        u, v = _grid(rng, width, height)
        pitch = rng.uniform(24, 70)
        number = (np.floor(u / pitch) * 37 + np.floor(v / pitch)).astype(np.int64) % 64
        tints = np.array([_pick(rng, GROUND) for _ in range(64)], dtype=np.float32)
        inside = np.hypot(u % pitch - pitch / 2, v % pitch - pitch / 2) < pitch * 0.47
        values[inside] = tints[number][inside]
    values = _lines(rng, values, _pick(rng, ROOFS), int(rng.integers(0, 5)), 3)
    return _lines(rng, values, _pick(rng, WATER), int(rng.integers(0, 2)), 9)


def relief(rng: np.random.Generator, width: int, height: int) -> Values:
    """Hills under a low sun, from woods to rock or snow; at times a lake in the lowest parts."""
    field = smooth(rng, width, height, int(rng.integers(2, 7)), 6)
    if rng.random() < 0.5:
        field = 1 - np.abs(2 * field - 1)
    down, across = np.gradient(field)
    angle = rng.uniform(0, 2 * np.pi)
    light = across * np.cos(angle) + down * np.sin(angle)
    light = 1 + rng.uniform(0.2, 0.6) * light / max(float(light.std()), 1e-9) / 2
    stops = [_pick(rng, FOREST), _pick(rng, GROUND), _pick(rng, GROUND)]
    stops += [(232, 234, 240)] if rng.random() < 0.3 else []
    values = shade(field, stops).astype(np.float32) * np.clip(light, 0.2, 2.0)[..., None]
    if rng.random() < 0.3:
        values[field < rng.uniform(0.05, 0.3)] = _pick(rng, WATER)
    return values.astype(np.float32)


def town(rng: np.random.Generator, width: int, height: int) -> Values:
    """Streets in one or two turned grids, roofs of one to a few pixels, parks."""
    u, v = _grid(rng, width, height)
    grain = int(rng.integers(1, 5))
    tints = np.array([_pick(rng, ROOFS) for _ in range(256)], dtype=np.float32)
    lots = (np.floor(u / grain) * 7919 + np.floor(v / grain) * 104729).astype(np.int64)
    mixed = (lots * 2654435761 >> 7) % 256
    values = tints[mixed] * rng.uniform(0.5, 0.9)
    streets = (u % rng.uniform(8, 30) < rng.uniform(1, 3)) | (v % rng.uniform(8, 30) < rng.uniform(1, 3))
    values[streets] = _pick(rng, ROOFS)
    park = smooth(rng, width, height, int(rng.integers(3, 10)), 4) > rng.uniform(0.55, 0.9)
    values[park] = _pick(rng, (*FOREST, *GROUND[:3]))
    return _lines(rng, values, _pick(rng, ROOFS), int(rng.integers(0, 4)), 5)


LAND = (fields, relief, town)


def _land(rng: np.random.Generator, width: int, height: int) -> Values:
    """One kind of land, or two that meet."""
    first = LAND[int(rng.integers(3))](rng, width, height)
    if rng.random() < 0.5:
        return first
    second = LAND[int(rng.integers(3))](rng, width, height)
    share = np.clip((smooth(rng, width, height, 2, 5) - 0.5) * rng.uniform(6, 40) + 0.5, 0, 1)[..., None]
    return (first * share + second * (1 - share)).astype(np.float32)


def coast(rng: np.random.Generator, width: int, height: int) -> Values:
    """Land and sea or lakes, with shallows."""
    field = smooth(rng, width, height, int(rng.integers(1, 5)), 6)
    level = rng.uniform(0.3, 0.7)
    sea = shade(np.clip(field / level, 0, 1), [_pick(rng, WATER), _pick(rng, WATER), _pick(rng, WATER)])
    values = np.where((field < level)[..., None], sea, _land(rng, width, height))
    if rng.random() < 0.5:
        values[np.abs(field - level) < rng.uniform(0.003, 0.02)] = _pick(rng, (GROUND[-1], ROOFS[1]))
    return values.astype(np.float32)


def optical(rng: np.random.Generator, width: int, height: int) -> Values:
    """Land through a sensor: blurred, a little noise, another exposure."""
    return _textured(rng, _land(rng, width, height), 0.2)


def radar(rng: np.random.Generator, width: int, height: int) -> Values:
    """Land or coast in grey under speckle, with bright points."""
    values = (coast if rng.random() < 0.5 else _land)(rng, width, height)
    plane = values.mean(2) ** rng.uniform(0.8, 1.6)
    plane[rng.random(plane.shape) < rng.uniform(0, 0.01)] *= rng.uniform(2, 8)
    looks = rng.uniform(1, 8)
    plane = plane * np.sqrt(rng.gamma(looks, 1 / looks, plane.shape))
    plane = plane / max(float(np.percentile(plane, rng.uniform(95, 99.5))), 1e-6) * 255
    return np.repeat(plane[..., None], 3, axis=2).astype(np.float32)


KINDS: dict[str, Callable[[np.random.Generator, int, int], Values]] = {
    kind.__name__: kind for kind in (fields, relief, town, coast, optical, radar)
}


def draw(kind: str, seed: int, number: int) -> NDArray[np.uint8]:
    """Picture `number` of a kind: square, sides of 96 to 200 px, blurred as a sensor does."""
    from PIL import Image, ImageFilter

    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number, 1])
    side = int(rng.integers(96, 200))
    values = KINDS[kind](rng, side, side)
    if kind != "radar":
        values = values * np.exp(rng.normal(0, 0.15, 3)).astype(np.float32) * np.float32(rng.uniform(0.7, 1.5))
        values += rng.normal(0, rng.uniform(0, 8), values.shape).astype(np.float32)
    image: Any = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.2)))), dtype=np.uint8)
