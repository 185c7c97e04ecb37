"""Flat colour, gradients, noise and regular patterns: placeholders, wallpapers, cloth, walls."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.detector.negatives.canvas import (
    blank,
    colour,
    label,
    light,
    near,
    picture,
    ramp,
    shade,
    side,
    smooth,
    vivid,
)


def flat(rng: np.random.Generator) -> Any:
    """One colour, perhaps with a few words or a frame: a placeholder."""
    image, draw = blank(rng, colour(rng, (0.0, 1.0), (0.0, 1.0)))
    width, height = image.size
    if rng.random() < 0.6:
        label(draw, rng, (width * 0.15, height * rng.uniform(0.3, 0.6)), light(rng), int(rng.integers(9, 26)), 2)
    if rng.random() < 0.3:
        draw.rectangle([4, 4, width - 5, height - 5], outline=vivid(rng), width=int(rng.integers(1, 6)))
    return image


def gradient(rng: np.random.Generator) -> Any:
    """Two to four colours running into one another, straight or round."""
    width, height = side(rng)
    field = ramp(rng, width, height)
    if rng.random() < 0.4:
        across, down = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        field = np.clip(np.hypot(across - rng.normal(0, 0.4), down - rng.normal(0, 0.4)) / 1.5, 0, 1)
    stops = [colour(rng, (0.0, 1.0), (0.05, 1.0)) for _ in range(int(rng.integers(2, 5)))]
    return picture(shade(field, stops))[0]


def noise(rng: np.random.Generator) -> Any:
    """Uncorrelated noise, grey or coloured, at some grain: a dead channel."""
    width, height = side(rng)
    grain = int(rng.integers(1, 5))
    channels = 1 if rng.random() < 0.5 else 3
    values = rng.normal(128, rng.uniform(20, 90), (height // grain + 1, width // grain + 1, channels))
    values = np.repeat(np.repeat(values, grain, 0), grain, 1)[:height, :width]
    return picture(np.broadcast_to(np.clip(values, 0, 255), (height, width, 3)).astype(np.uint8))[0]


def pattern(rng: np.random.Generator) -> Any:
    """Stripes, checks, dots or rings, repeated."""
    width, height = side(rng)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 50)
    u = (across * np.cos(angle) + down * np.sin(angle)) / period
    v = (-across * np.sin(angle) + down * np.cos(angle)) / period
    kind = int(rng.integers(4))
    fields = (
        np.floor(u * 2) % 2,
        (np.floor(u * 2) + np.floor(v * 2)) % 2,
        (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3).astype(float),
        0.5 + 0.5 * np.sin(2 * np.pi * np.hypot(u, v)),
    )
    return picture(shade(fields[kind], [colour(rng, (0.0, 1.0), (0.1, 1.0)), colour(rng, (0.0, 1.0), (0.1, 1.0))]))[0]


def weave(rng: np.random.Generator) -> Any:
    """Cloth: threads over and under, unevenly lit."""
    width, height = side(rng)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    period = rng.uniform(4, 14)
    over = np.sin(np.pi * across / period) * np.sin(np.pi * down / period) > 0
    threads = np.where(over, np.abs(np.sin(np.pi * across / period)), np.abs(np.sin(np.pi * down / period)))
    field = np.clip(0.7 * threads + 0.3 * smooth(rng, width, height, 3, 3) + rng.normal(0, 0.05, threads.shape), 0, 1)
    base = colour(rng, (0.0, 0.8), (0.4, 1.0))
    return picture(shade(field, [(base[0] // 3, base[1] // 3, base[2] // 3), base]))[0]


def wood(rng: np.random.Generator) -> Any:
    """Grain of boards."""
    width, height = side(rng)
    bend = smooth(rng, width, height, 2, 2)
    rings = np.sin(2 * np.pi * (vertical_stretch(bend) * rng.uniform(6, 18)))
    boards = np.floor(np.arange(height) / rng.uniform(24, 70))
    shift = np.array([rng.uniform(0.6, 1.0) for _ in range(int(boards.max()) + 1)])[boards.astype(int)][:, None]
    field = np.clip((0.55 + 0.25 * rings + 0.1 * rng.standard_normal((height, 1))) * shift, 0, 1)
    return picture(shade(field, [(50, 28, 14), near(rng, (190, 140, 90), 35)]))[0]


def vertical_stretch(field: Any) -> Any:
    """A field averaged along its rows' direction: streaks."""
    mean = field.mean(axis=1, keepdims=True)
    return 0.8 * mean + 0.2 * field


def bricks(rng: np.random.Generator) -> Any:
    """A wall or tiles with joints."""
    image, draw = blank(rng, near(rng, (190, 185, 175), 40))
    width, height = image.size
    wide, tall = rng.uniform(18, 60), rng.uniform(8, 40)
    base, offset = colour(rng, (0.1, 0.7), (0.4, 0.9)), 0.5 if rng.random() < 0.7 else 0.0
    for row in range(int(height / tall) + 1):
        for column in range(-1, int(width / wide) + 1):
            x, y = column * wide + (row % 2) * offset * wide, row * tall
            draw.rectangle([x + 1, y + 1, x + wide - 2, y + tall - 2], fill=near(rng, base, 22))
    return image


def bokeh(rng: np.random.Generator) -> Any:
    """Out-of-focus lights."""
    from PIL import ImageFilter

    image, draw = blank(rng, colour(rng, (0.2, 0.9), (0.05, 0.5)))
    width, height = image.size
    tint = colour(rng, (0.3, 1.0), (0.6, 1.0))
    for _ in range(int(rng.integers(10, 50))):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(4, 26)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=near(rng, tint, 60))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 8))))


def cells(rng: np.random.Generator) -> Any:
    """Round bodies on a pale ground: a slide under a microscope, pebbles, bubbles."""
    width, height = side(rng)
    image, draw = picture(shade(smooth(rng, width, height, 4, 4), [light(rng), colour(rng, (0.05, 0.4), (0.7, 1.0))]))
    body, r0 = colour(rng, (0.2, 0.9), (0.3, 0.9)), rng.uniform(4, 16)
    for _ in range(int(rng.integers(20, 160))):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), r0 * rng.uniform(0.7, 1.3)
        draw.ellipse([x - r, y - r * 0.9, x + r, y + r * 0.9], fill=near(rng, body, 20), outline=near(rng, body, 60))
        draw.ellipse([x - r / 3, y - r / 3, x + r / 3, y + r / 3], fill=near(rng, (90, 50, 120), 30))
    return image


KINDS = (flat, gradient, noise, pattern, weave, wood, bricks, bokeh, cells)
