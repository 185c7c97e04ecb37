"""Planets and night skies, spacecraft, dishes, renders, cartoons: what a caption's "satellite" or "space" may mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector.negatives.canvas import (
    Colour,
    blank,
    colour,
    dark,
    light,
    near,
    picture,
    shade,
    side,
    smooth,
    vertical,
    vivid,
)

SKIES: tuple[list[Colour], ...] = (
    [(40, 30, 80), (210, 100, 80), (250, 200, 120)],
    [(70, 130, 210), (190, 220, 245)],
    [(10, 12, 40), (40, 50, 100), (120, 90, 120)],
    [(150, 160, 170), (225, 228, 230)],
    [(250, 150, 60), (120, 40, 60)],
)


def _stars(pixels: NDArray[np.uint8], rng: np.random.Generator, density: float) -> None:
    """Points of light, in place; a few of them with a glow."""
    height, width = pixels.shape[:2]
    count = int(density * width * height)
    rows, columns = rng.integers(0, height, count), rng.integers(0, width, count)
    pixels[rows, columns] = (rng.random((count, 1)) ** 2 * 255).astype(np.uint8)
    bright = int(rng.integers(0, 12))
    for row, column in zip(rng.integers(1, height - 1, bright), rng.integers(1, width - 1, bright), strict=True):
        pixels[row - 1 : row + 2, column - 1 : column + 2] = 200
        pixels[row, column] = 255


def _sky(rng: np.random.Generator) -> NDArray[np.uint8]:
    width, height = side(rng)
    return shade(vertical(width, height), SKIES[int(rng.integers(len(SKIES)))])


def planet(rng: np.random.Generator) -> Any:
    """A lit ball in space: banded, cratered or cloudy; whole, or its limb only."""
    width, height = side(rng)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:] = near(rng, (4, 4, 8), 4)
    _stars(pixels, rng, rng.uniform(0, 0.006))
    radius = min(width, height) * rng.uniform(0.2, 0.95)
    x, y = rng.uniform(0.2, 0.8) * width, rng.uniform(0.3, 1.3 if radius > 0.5 * height else 0.7) * height
    across, down = np.meshgrid((np.arange(width) - x) / radius, (np.arange(height) - y) / radius)
    squared = across**2 + down**2
    inside = squared < 1
    depth = np.sqrt(np.clip(1 - squared, 0, 1))
    texture = smooth(rng, width, height, int(rng.integers(3, 9)), 5)
    if rng.random() < 0.3:
        texture = 0.5 + 0.5 * np.sin(down * rng.uniform(8, 25) + 3 * texture)
    sun = rng.normal(0, 1, 3)
    sun[2] = abs(sun[2])
    lit = np.clip((across * sun[0] + down * sun[1] + depth * sun[2]) / np.linalg.norm(sun), 0.02, 1)
    stops: list[Colour] = [
        [(20, 60, 140), (60, 120, 80), (230, 235, 240)],
        [(90, 50, 30), (200, 120, 70)],
        [(70, 70, 70), (210, 210, 205)],
        [(180, 140, 100), (240, 220, 180)],
    ][int(rng.integers(4))]
    ball = shade(texture, stops) * lit[..., None]
    pixels[inside] = ball[inside].astype(np.uint8)
    return picture(pixels)[0]


def night_sky(rng: np.random.Generator) -> Any:
    """Stars, a galaxy's band or a nebula, perhaps over a dark horizon."""
    width, height = side(rng)
    haze = smooth(rng, width, height, 3, 5) ** rng.uniform(1.5, 4)
    pixels = shade(
        haze, [near(rng, (6, 8, 20), 6), colour(rng, (0.2, 0.9), (0.2, 0.8)), colour(rng, (0.0, 0.5), (0.5, 1.0))]
    )
    _stars(pixels, rng, rng.uniform(0.002, 0.03))
    if rng.random() < 0.4:
        ridge = (height * (0.9 - 0.2 * smooth(rng, width, 2, 5, 4)[0])).astype(int)
        pixels[np.arange(height)[:, None] > ridge[None]] = 3
    return picture(pixels)[0]


def spacecraft(rng: np.random.Generator) -> Any:
    """A body with solar panels before stars, a sky or a planet's limb."""
    width, height = side(rng)
    image = planet(rng).resize((width, height)) if rng.random() < 0.6 else picture(_sky(rng))[0].resize((width, height))
    layer_x, layer_y = width * rng.uniform(0.35, 0.65), height * rng.uniform(0.35, 0.65)
    from PIL import Image, ImageDraw

    reach = int(0.6 * min(width, height))
    layer = Image.new("RGBA", (2 * reach, 2 * reach), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    body, panel = reach * rng.uniform(0.14, 0.28), reach * rng.uniform(0.5, 0.9)
    tall, blue = body * rng.uniform(0.6, 1.2), near(rng, (40, 60, 130), 25)
    for sign in (-1, 1):
        start, end = sorted((reach + sign * body * 1.2, reach + sign * panel))
        draw.rectangle([start, reach - tall, end, reach + tall], fill=blue, outline=(210, 210, 220))
        for at in np.arange(start, end, max(3.0, reach / 16)):
            draw.line([(at, reach - tall), (at, reach + tall)], fill=(150, 160, 190))
    draw.line([(reach - panel, reach), (reach + panel, reach)], fill=(200, 200, 200), width=2)
    draw.rectangle(
        [reach - body, reach - body * 1.3, reach + body, reach + body * 1.3], fill=near(rng, (205, 170, 90), 40)
    )
    draw.ellipse(
        [reach - body * 0.8, reach - body * 2.2, reach + body * 0.8, reach - body],
        fill=(225, 225, 225),
        outline=(90, 90, 90),
    )
    turned = layer.rotate(float(rng.uniform(0, 360)), Image.Resampling.BICUBIC)
    image.paste(turned, (int(layer_x - reach), int(layer_y - reach)), turned)
    return image


def dish(rng: np.random.Generator) -> Any:
    """A satellite dish or antenna mast before a sky, often as a silhouette."""
    image, draw = picture(_sky(rng))
    width, height = image.size
    ink = dark(rng) if rng.random() < 0.6 else near(rng, (215, 215, 215))
    edge = near(rng, ink, 50)
    draw.rectangle([0, height * rng.uniform(0.82, 0.95), width, height], fill=near(rng, ink, 10))
    for _ in range(int(rng.integers(1, 4))):
        x, y, r = (
            rng.uniform(0.2, 0.8) * width,
            rng.uniform(0.3, 0.6) * height,
            rng.uniform(0.12, 0.3) * min(width, height),
        )
        draw.line([(x, y), (x + rng.normal(0, 6), height)], fill=ink, width=int(max(2, r / 6)))
        squash, tilt = rng.uniform(0.35, 0.9), rng.uniform(0, np.pi)
        angles = np.linspace(0, 2 * np.pi, 40)
        px, py = r * np.cos(angles), r * squash * np.sin(angles)
        rim = list(
            zip(x + px * np.cos(tilt) - py * np.sin(tilt), y + px * np.sin(tilt) + py * np.cos(tilt), strict=True)
        )
        draw.polygon(rim, fill=ink)
        draw.line(rim, fill=edge, width=2)
        tip = (x - r * 0.8 * np.sin(tilt), y + r * 0.8 * np.cos(tilt))
        for corner in rim[::13]:
            draw.line([corner, tip], fill=edge, width=2)
        draw.ellipse([tip[0] - 3, tip[1] - 3, tip[0] + 3, tip[1] + 3], fill=edge)
    return image


def landscape(rng: np.random.Generator) -> Any:
    """Layers of hills, a skyline or a sea under a sky: views from the ground or from an aeroplane's window."""
    image, draw = picture(_sky(rng))
    width, height = image.size
    if rng.random() < 0.6:
        x, y, r = rng.uniform(0, width), rng.uniform(0.1, 0.5) * height, rng.uniform(6, 26)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=near(rng, (255, 240, 200)))
    tint = colour(rng, (0.1, 0.6), (0.1, 0.6))
    for layer in range(int(rng.integers(2, 6))):
        base = height * (0.45 + 0.11 * layer)
        if rng.random() < 0.3:
            heights = np.repeat(rng.random(width // 10 + 1), 10)[:width]
        else:
            heights = smooth(rng, width, 2, int(rng.integers(2, 8)), 4)[0]
        ridge = base - heights * height * rng.uniform(0.08, 0.3)
        fill: Colour = (tint[0] * (5 - layer) // 4, tint[1] * (5 - layer) // 4, tint[2] * (5 - layer) // 4)
        points = [*zip(range(width), ridge, strict=True), (width, height), (0, height)]
        draw.polygon(points, fill=tuple(min(255, part) for part in fill))
    return image


def render(rng: np.random.Generator) -> Any:
    """Shaded balls and boxes on a floor that runs to the horizon."""
    width, height = side(rng)
    across, down = np.meshgrid(np.linspace(-1, 1, width), np.linspace(0, 1, height))
    horizon = rng.uniform(0.25, 0.6)
    depth = 1 / np.clip(down - horizon, 0.004, None)
    checks = (np.floor(across * depth * 2) + np.floor(depth * 2)) % 2
    floor = shade(
        np.where(depth < 60, checks, 0.5), [colour(rng, (0.0, 0.6), (0.1, 0.6)), colour(rng, (0.0, 0.4), (0.6, 1.0))]
    )
    pixels = np.where((down > horizon)[..., None], floor, shade(down / horizon, SKIES[int(rng.integers(len(SKIES)))]))
    rows, columns = np.mgrid[:height, :width]
    sun = np.array([-0.5, -0.6, 0.62])
    for _ in range(int(rng.integers(2, 7))):
        r = rng.uniform(0.08, 0.28) * min(width, height)
        dx, dy = (columns - rng.uniform(0, width)) / r, (rows - rng.uniform(horizon, 1) * height) / r
        dz = np.sqrt(np.clip(1 - dx**2 - dy**2, 0, 1))
        lit = np.clip(dx * sun[0] + dy * sun[1] + dz * sun[2], 0.1, 1)
        ball = np.array(vivid(rng)) * lit[..., None] + 200 * np.clip(lit - 0.9, 0, 1)[..., None] * 5
        pixels = np.where((dx**2 + dy**2 < 1)[..., None], np.clip(ball, 0, 255), pixels)
    return picture(pixels.astype(np.uint8))[0]


def boxes(rng: np.random.Generator) -> Any:
    """Blocks seen at an angle, as in games and scale models: a town of shaded cuboids on a plain ground."""
    image, draw = blank(rng, colour(rng, (0.1, 0.5), (0.5, 0.95)))
    width, height = image.size
    step = rng.uniform(14, 34)
    base = colour(rng, (0.1, 0.8), (0.6, 1.0))
    for row in range(int(2 * height / step) + 6):
        for column in range(int(width / step) + 2):
            if rng.random() < 0.45:
                continue
            x, y = column * step + (row % 2) * step / 2, row * step / 2
            tall, tint = rng.uniform(4, 2.2 * step), near(rng, base, 40)
            half, quarter = step / 2, step / 4
            sides = [tuple(int(part * share) for part in tint) for share in (1.0, 0.8, 0.6)]
            top = [(x, y - tall - quarter), (x + half, y - tall), (x, y - tall + quarter), (x - half, y - tall)]
            draw.polygon(
                [(x - half, y - tall), (x, y - tall + quarter), (x, y + quarter), (x - half, y)], fill=sides[1]
            )
            draw.polygon(
                [(x + half, y - tall), (x, y - tall + quarter), (x, y + quarter), (x + half, y)], fill=sides[2]
            )
            draw.polygon(top, fill=sides[0])
    return image


def cartoon(rng: np.random.Generator) -> Any:
    """Flat shapes with outlines: houses, clouds, trees, faces."""
    image, draw = blank(rng, colour(rng, (0.2, 0.6), (0.8, 1.0)))
    width, height = image.size
    draw.rectangle([0, height * 0.68, width, height], fill=near(rng, (110, 190, 90), 30))
    for _ in range(int(rng.integers(1, 5))):
        x, y = rng.uniform(0, width), rng.uniform(0.05, 0.3) * height
        for shift in (-12, 0, 12):
            draw.ellipse([x + shift - 14, y - 9, x + shift + 14, y + 9], fill=light(rng))
    for _ in range(int(rng.integers(2, 6))):
        x, y, s = rng.uniform(0.1, 0.9) * width, rng.uniform(0.6, 0.85) * height, rng.uniform(14, 44)
        kind = int(rng.integers(3))
        if kind == 0:
            draw.rectangle([x - s, y - s, x + s, y], fill=vivid(rng), outline=(20, 20, 20), width=2)
            draw.polygon(
                [(x - s * 1.2, y - s), (x, y - s * 1.9), (x + s * 1.2, y - s)], fill=vivid(rng), outline=(20, 20, 20)
            )
        elif kind == 1:
            draw.rectangle([x - s / 6, y - s, x + s / 6, y], fill=(110, 70, 40))
            draw.ellipse(
                [x - s * 0.7, y - s * 2, x + s * 0.7, y - s * 0.7],
                fill=near(rng, (50, 150, 60), 30),
                outline=(20, 20, 20),
            )
        else:
            draw.ellipse(
                [x - s, y - 2 * s, x + s, y], fill=near(rng, (245, 205, 170), 20), outline=(20, 20, 20), width=2
            )
            for eye in (-0.4, 0.4):
                draw.ellipse([x + eye * s - 3, y - 1.3 * s - 3, x + eye * s + 3, y - 1.3 * s + 3], fill=(20, 20, 20))
            draw.arc([x - s / 2, y - s, x + s / 2, y - s / 3], 10, 170, fill=(20, 20, 20), width=2)
    return image


KINDS = (planet, night_sky, spacecraft, dish, landscape, render, boxes, cartoon)
