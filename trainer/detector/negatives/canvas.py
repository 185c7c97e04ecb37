"""What the drawings share: canvases, colours, lettering, smooth fields and shapes, all from a seeded generator."""

from __future__ import annotations

import colorsys
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]
"""(height, width), values from 0 to 1."""
Colour = tuple[int, int, int]
WORDS = re.findall(
    r"\S+",
    "remote sensing satellite image aerial view map data region north river lake city road annual report surface "
    "land cover figure results analysis station forecast weather climate global network project system introduction "
    "area change index water forest urban soil mission launch orbit earth observation geographic information service "
    "login search layers export price total summary update contact home page Monday 2019 km mm 25 100 map-sheet zone",
)


def side(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height) of a picture: 160 to 320 px, sides in a ratio of 1 : 1.6 at most."""
    shortest = int(rng.integers(160, 240))
    longest = int(shortest * rng.uniform(1.0, 1.6))
    return (longest, shortest) if rng.random() < 0.7 else (shortest, longest)


def blank(rng: np.random.Generator, colour: Colour) -> tuple[Any, Any]:
    """(image, its ImageDraw) of one colour."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", side(rng), colour)
    return image, ImageDraw.Draw(image)


def colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    """A hue at random, saturation and value within bounds (0 to 1)."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return round(255 * red), round(255 * green), round(255 * blue)


def near(rng: np.random.Generator, base: Colour, by: int = 14) -> Colour:
    """A colour close to another."""
    red, green, blue = (int(np.clip(part + rng.integers(-by, by + 1), 0, 255)) for part in base)
    return red, green, blue


def light(rng: np.random.Generator) -> Colour:
    """Paper: white or a pale tint."""
    return (255, 255, 255) if rng.random() < 0.4 else colour(rng, (0.0, 0.12), (0.9, 1.0))


def dark(rng: np.random.Generator) -> Colour:
    """Ink, or a night background."""
    return colour(rng, (0.0, 0.5), (0.03, 0.25))


def vivid(rng: np.random.Generator) -> Colour:
    """A colour of a sign or a curve."""
    return colour(rng, (0.55, 1.0), (0.5, 1.0))


@cache
def _typefaces() -> tuple[str, ...]:
    """Fonts that come with matplotlib, so that every machine draws the same."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral")
    return tuple(str(folder / f"{name}.ttf") for name in names)


@cache
def _font(index: int, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(_typefaces()[index], size)


def font(rng: np.random.Generator, size: int, index: int | None = None) -> Any:
    """A typeface at random (or the one of `index`), of a size in pixels."""
    chosen = int(rng.integers(len(_typefaces()))) if index is None else index
    return _font(chosen, max(5, size))


def words(rng: np.random.Generator, count: int) -> str:
    """So many words."""
    return " ".join(str(word) for word in rng.choice(WORDS, count))


def label(draw: Any, rng: np.random.Generator, at: tuple[float, float], ink: Colour, size: int, count: int = 1) -> None:
    """A few words at a place."""
    draw.text(at, words(rng, count), fill=ink, font=font(rng, size))


def smooth(rng: np.random.Generator, width: int, height: int, cells: int, octaves: int = 4) -> Field:
    """Fractal noise: `cells` bumps along the longer side, halved in amplitude and size with every octave."""
    from PIL import Image

    total = np.zeros((height, width))
    for octave in range(octaves):
        rows, columns = (max(2, cells * 2**octave * part // max(width, height)) for part in (height, width))
        grid = Image.fromarray(rng.random((rows + 1, columns + 1)).astype(np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    low, high = total.min(), total.max()
    return (total - low) / max(high - low, 1e-9)


def shade(field: Field, stops: list[Colour]) -> NDArray[np.uint8]:
    """(height, width, 3): a field through a palette whose colours are evenly spaced."""
    at = np.linspace(0, 1, len(stops))
    planes = [np.interp(field, at, [stop[channel] for stop in stops]) for channel in range(3)]
    return np.stack(planes, axis=2).astype(np.uint8)


def ramp(rng: np.random.Generator, width: int, height: int) -> Field:
    """A linear gradient in a direction at random."""
    angle = rng.uniform(0, 2 * np.pi)
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    field = across * np.cos(angle) + down * np.sin(angle)
    return (field - field.min()) / (field.max() - field.min())


def vertical(width: int, height: int) -> Field:
    """0 at the top, 1 at the bottom."""
    return np.repeat(np.linspace(0, 1, height)[:, None], width, axis=1)


def picture(pixels: NDArray[np.uint8]) -> tuple[Any, Any]:
    """(image, its ImageDraw) of an array."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels)
    return image, ImageDraw.Draw(image)


def blob(rng: np.random.Generator, at: tuple[float, float], radius: float, roughness: float = 0.3) -> list[Any]:
    """Corners of a rounded shape."""
    count = int(rng.integers(7, 16))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radii = radius * (1 + roughness * rng.standard_normal(count))
    return [(at[0] + r * np.cos(a), at[1] + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)]


def wander(rng: np.random.Generator, width: int, height: int, turn: float = 0.3, steps: int = 24) -> list[Any]:
    """A curve from a border across the picture."""
    length = 1.6 * max(width, height) / steps
    heading = rng.uniform(0, 2 * np.pi)
    at = np.array([width / 2 - 0.8 * width * np.cos(heading), height / 2 - 0.8 * height * np.sin(heading)])
    at += rng.uniform(-0.4, 0.4, 2) * (width, height)
    points = []
    for _ in range(steps):
        points.append((float(at[0]), float(at[1])))
        heading += rng.normal(0, turn)
        at = at + length * np.array([np.cos(heading), np.sin(heading)])
    return points


def levels(field: Field, count: int) -> NDArray[np.bool_]:
    """Where contour lines of `count` levels run, one pixel wide."""
    step = np.floor(field * count)
    edge = np.zeros(field.shape, dtype=bool)
    edge[:-1] |= step[:-1] != step[1:]
    edge[:, :-1] |= step[:, :-1] != step[:, 1:]
    return edge
