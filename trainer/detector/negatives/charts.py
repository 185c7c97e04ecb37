"""Weather charts, plots and diagrams."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from trainer.detector.negatives.canvas import (
    Colour,
    blank,
    dark,
    font,
    label,
    levels,
    light,
    near,
    picture,
    shade,
    side,
    smooth,
    vivid,
    wander,
)

RAINBOW: list[Colour] = [
    (60, 0, 110),
    (0, 60, 220),
    (0, 200, 200),
    (60, 200, 60),
    (250, 230, 40),
    (240, 90, 20),
    (170, 0, 40),
]
VIRIDIS: list[Colour] = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
HEAT: list[Colour] = [(0, 0, 0), (150, 0, 20), (250, 130, 0), (255, 250, 200)]
DIVERGING: list[Colour] = [(5, 50, 120), (150, 200, 230), (250, 250, 250), (245, 165, 130), (110, 0, 30)]
PALETTES = (RAINBOW, VIRIDIS, HEAT, DIVERGING)


def _bar(image: Any, draw: Any, rng: np.random.Generator, palette: list[Colour]) -> None:
    """A colour bar with ticks at the right border."""
    from PIL import Image

    width, height = image.size
    strip = shade(np.repeat(np.linspace(1, 0, height - 30)[:, None], 10, axis=1), palette)
    image.paste(Image.fromarray(strip), (width - 34, 15))
    for at in range(15, height - 15, 24):
        draw.text((width - 22, at), str(int(rng.integers(0, 99))), fill=(20, 20, 20), font=font(rng, 8, 0))


def weather_chart(rng: np.random.Generator) -> Any:
    """Isobars, fronts and centres of pressure over coasts."""
    width, height = side(rng)
    land = smooth(rng, width, height, 4, 5)
    pixels = shade(
        (land > 0.5).astype(float),
        [light(rng), light(rng)] if rng.random() < 0.5 else [(190, 215, 240), (235, 230, 205)],
    )
    pixels[levels((land > 0.5).astype(float), 1)] = near(rng, (110, 110, 110))
    pressure = smooth(rng, width, height, 3, 1)
    pixels[levels(pressure, int(rng.integers(8, 18)))] = (20, 20, 20) if rng.random() < 0.6 else (30, 60, 160)
    image, draw = picture(pixels)
    for _ in range(int(rng.integers(1, 4))):
        tint = (210, 20, 30) if rng.random() < 0.5 else (20, 50, 210)
        points = wander(rng, width, height, 0.15, 30)
        draw.line(points, fill=tint, width=3)
        for x, y in points[::2]:
            draw.pieslice([x - 5, y - 5, x + 5, y + 5], 0, 180, fill=tint)
    for _ in range(int(rng.integers(2, 6))):
        high = rng.random() < 0.5
        at = (rng.uniform(0.05, 0.9) * width, rng.uniform(0.05, 0.85) * height)
        draw.text(at, "H" if high else "L", fill=(20, 40, 200) if high else (200, 20, 20), font=font(rng, 22, 1))
        draw.text((at[0], at[1] + 22), str(int(rng.integers(975, 1040))), fill=(20, 20, 20), font=font(rng, 8))
    return image


def weather_map(rng: np.random.Generator) -> Any:
    """A forecast's field in rainbow colours, or radar echoes, under borders, with a colour bar."""
    width, height = side(rng)
    field = smooth(rng, width, height, int(rng.integers(2, 7)), int(rng.integers(1, 5)))
    palette = PALETTES[int(rng.integers(len(PALETTES)))]
    steps = int(rng.integers(6, 20))
    pixels = shade(np.floor(field * steps) / steps if rng.random() < 0.7 else field, palette)
    if rng.random() < 0.45:
        pixels[field < rng.uniform(0.5, 0.75)] = dark(rng) if rng.random() < 0.5 else light(rng)
    ink = (255, 255, 255) if rng.random() < 0.4 else (30, 30, 30)
    pixels[levels((smooth(rng, width, height, 4, 5) > 0.5).astype(float), 1)] = ink
    image, draw = picture(pixels)
    if rng.random() < 0.8:
        _bar(image, draw, rng, palette)
    if rng.random() < 0.7:
        draw.rectangle([0, 0, width, 14], fill=(255, 255, 255))
        label(draw, rng, (4, 1), (20, 20, 20), 10, 5)
    return image


def _axes(draw: Any, rng: np.random.Generator, size: tuple[int, int], ink: Colour) -> tuple[int, int, int, int]:
    """Axes, grid lines, ticks and titles; returns the frame."""
    width, height = size
    left, top, right, bottom = 28, int(rng.integers(8, 24)), width - 10, height - 24
    for at in np.linspace(top, bottom, int(rng.integers(4, 8))):
        draw.line([(left, at), (right, at)], fill=near(rng, (205, 205, 205)))
        draw.text((4, at - 5), str(int(rng.integers(0, 999))), fill=ink, font=font(rng, 8, 0))
    for at in np.linspace(left, right, int(rng.integers(4, 8)))[:-1]:
        draw.text((at, bottom + 4), str(int(rng.integers(0, 99))), fill=ink, font=font(rng, 8, 0))
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=ink, width=1)
    label(draw, rng, (width // 3, 1), ink, 9, 3)
    label(draw, rng, (width // 2, height - 11), ink, 8, 2)
    return left, top, right, bottom


def line_plot(rng: np.random.Generator) -> Any:
    """Curves over axes."""
    image, draw = blank(rng, light(rng) if rng.random() < 0.85 else dark(rng))
    left, top, right, bottom = _axes(
        draw, rng, image.size, (40, 40, 40) if sum(image.getpixel((0, 0))) > 380 else (220, 220, 220)
    )
    for _ in range(int(rng.integers(1, 6))):
        walk = np.cumsum(rng.normal(0, 1, 60)) + rng.normal(0, 0.5) * np.arange(60) / 5
        walk = (walk - walk.min()) / max(np.ptp(walk), 1e-6)
        points = list(zip(np.linspace(left, right, 60), bottom - walk * (bottom - top), strict=True))
        draw.line(points, fill=vivid(rng), width=int(rng.integers(1, 4)))
    return image


def bar_plot(rng: np.random.Generator) -> Any:
    """Bars over axes."""
    image, draw = blank(rng, light(rng))
    left, top, right, bottom = _axes(draw, rng, image.size, (40, 40, 40))
    count, tint = int(rng.integers(4, 20)), vivid(rng)
    step = (right - left) / count
    for number, value in enumerate(rng.random(count)):
        start = left + number * step
        fill = tint if rng.random() < 0.7 else vivid(rng)
        draw.rectangle([start + 1, bottom - value * (bottom - top), start + step * 0.8, bottom], fill=fill)
    return image


def scatter_plot(rng: np.random.Generator) -> Any:
    """Points over axes."""
    image, draw = blank(rng, light(rng))
    left, top, right, bottom = _axes(draw, rng, image.size, (40, 40, 40))
    for _ in range(int(rng.integers(1, 4))):
        tint, middle, spread, r = vivid(rng), rng.random(2), rng.uniform(0.05, 0.25), rng.uniform(1, 4)
        for x, y in np.clip(middle + spread * rng.standard_normal((int(rng.integers(30, 200)), 2)), 0, 1):
            px, py = left + x * (right - left), bottom - y * (bottom - top)
            draw.ellipse([px - r, py - r, px + r, py + r], fill=tint)
    return image


def pie_chart(rng: np.random.Generator) -> Any:
    """A pie or a ring, with a legend."""
    image, draw = blank(rng, light(rng))
    width, height = image.size
    radius, at = 0.38 * min(width, height), (width * rng.uniform(0.4, 0.6), height * 0.52)
    box, start = [at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], 0.0
    for row, part in enumerate(rng.dirichlet(np.ones(int(rng.integers(3, 9))))):
        tint = vivid(rng)
        draw.pieslice(box, start, start + 360 * part, fill=tint, outline=(255, 255, 255))
        draw.rectangle([4, 18 + 11 * row, 11, 25 + 11 * row], fill=tint)
        label(draw, rng, (14, 16 + 11 * row), (30, 30, 30), 8)
        start += 360 * part
    if rng.random() < 0.4:
        hole = 0.55 * radius
        draw.ellipse([at[0] - hole, at[1] - hole, at[0] + hole, at[1] + hole], fill=image.getpixel((0, 0)))
    label(draw, rng, (8, 2), (20, 20, 20), 11, 3)
    return image


def matrix_plot(rng: np.random.Generator) -> Any:
    """A matrix or spectrogram in false colours, with axes and a colour bar."""
    palette = PALETTES[int(rng.integers(len(PALETTES)))]
    image, draw = blank(rng, (255, 255, 255))
    left, top, right, bottom = _axes(draw, rng, image.size, (40, 40, 40))
    rows, columns = (int(n) for n in rng.integers(5, 60, 2))
    field = rng.random((rows, columns)) * rng.random((rows, 1)) * rng.random((1, columns)) ** 0.5
    cells, _ = picture(shade(field / field.max(), palette))
    image.paste(cells.resize((right - left - 36, bottom - top), 0), (left + 1, top))
    _bar(image, draw, rng, palette)
    return image


def diagram(rng: np.random.Generator) -> Any:
    """Boxes and arrows: a flow chart, a satellite's data path, a network."""
    image, draw = blank(rng, light(rng))
    width, height = image.size
    middles = [
        (rng.uniform(0.12, 0.88) * width, rng.uniform(0.12, 0.88) * height) for _ in range(int(rng.integers(4, 10)))
    ]
    for (x0, y0), (x1, y1) in pairwise(middles):
        draw.line(
            [(x0, y0), (x1, y0), (x1, y1)] if rng.random() < 0.6 else [(x0, y0), (x1, y1)], fill=(60, 60, 60), width=2
        )
        draw.polygon([(x1, y1 - 18), (x1 - 5, y1 - 26), (x1 + 5, y1 - 26)], fill=(60, 60, 60))
    for x, y in middles:
        w, h = rng.uniform(20, 42), rng.uniform(10, 18)
        shape = draw.ellipse if rng.random() < 0.3 else draw.rectangle
        shape([x - w, y - h, x + w, y + h], fill=near(rng, (225, 235, 250), 30), outline=vivid(rng), width=2)
        label(draw, rng, (x - w + 4, y - 5), (20, 20, 20), 8)
    return image


KINDS = (weather_chart, weather_map, line_plot, bar_plot, scatter_plot, pie_chart, matrix_plot, diagram)
