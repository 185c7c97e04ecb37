"""Maps, plans and screens of geographic information systems."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.detector.negatives.canvas import (
    Colour,
    blank,
    blob,
    colour,
    dark,
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


def _road(draw: Any, points: list[Any], casing: Colour, fill: Colour, width: int) -> None:
    draw.line(points, fill=casing, width=width + 2, joint="curve")
    draw.line(points, fill=fill, width=width, joint="curve")


def _grid_streets(draw: Any, rng: np.random.Generator, size: tuple[int, int], casing: Colour, fill: Colour) -> None:
    angle, reach = rng.uniform(0, np.pi / 2), 2 * max(size)
    middle = np.array(size) / 2
    for turn in (0, np.pi / 2):
        along = np.array([np.cos(angle + turn), np.sin(angle + turn)])
        across = np.array([-along[1], along[0]])
        step = rng.uniform(14, 40)
        for number in range(-int(reach / step), int(reach / step)):
            start = middle + across * (number * step + rng.normal(0, 2))
            ends = [tuple(start - along * reach), tuple(start + along * reach)]
            _road(draw, ends, casing, fill, int(rng.choice([1, 2, 3, 5], p=[0.4, 0.3, 0.2, 0.1])))


def street_map(rng: np.random.Generator) -> Any:
    """Streets with casings, parks, water, names and pins, in the manner of web maps; a quarter of them dark."""
    night = rng.random() < 0.25
    ground = dark(rng) if night else colour(rng, (0.0, 0.1), (0.88, 0.97))
    image, draw = blank(rng, ground)
    width, height = image.size
    for _ in range(int(rng.integers(0, 5))):
        at = (rng.uniform(0, width), rng.uniform(0, height))
        green = near(rng, (30, 60, 45) if night else (200, 226, 184))
        draw.polygon(blob(rng, at, rng.uniform(10, 70)), fill=green)
    water = near(rng, (20, 40, 70) if night else (165, 205, 232))
    if rng.random() < 0.6:
        draw.line(wander(rng, width, height, 0.2), fill=water, width=int(rng.integers(4, 60)), joint="curve")
    casing, fill = (
        (near(rng, (60, 60, 70)), near(rng, (90, 92, 104))) if night else (near(rng, (205, 200, 196)), light(rng))
    )
    _grid_streets(draw, rng, image.size, casing, fill)
    for _ in range(int(rng.integers(1, 4))):
        main = near(rng, (250, 215, 110) if rng.random() < 0.6 else (240, 150, 100))
        _road(draw, wander(rng, width, height, 0.15), near(rng, (200, 140, 60)), main, int(rng.integers(3, 9)))
    ink = light(rng) if night else near(rng, (90, 90, 95))
    for _ in range(int(rng.integers(3, 16))):
        label(draw, rng, (rng.uniform(-10, width), rng.uniform(0, height)), ink, int(rng.integers(6, 13)))
    for _ in range(int(rng.integers(0, 5))):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(3, 8)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=vivid(rng), outline=(255, 255, 255))
    return image


def topographic_map(rng: np.random.Generator) -> Any:
    """Contour lines over paper or height tints, with a grid, streams and names."""
    width, height = side(rng)
    field = smooth(rng, width, height, int(rng.integers(2, 6)), 3)
    tints: list[list[Colour]] = [
        [light(rng)] * 2,
        [(120, 170, 110), (235, 225, 160), (190, 140, 90), (245, 240, 235)],
        [(200, 230, 190), (250, 250, 240)],
    ]
    pixels = shade(field, tints[int(rng.integers(3))])
    pixels[levels(field, int(rng.integers(8, 26)))] = near(rng, (165, 110, 70))
    if rng.random() < 0.7:
        pixels[levels(field, 5)] = near(rng, (120, 70, 40))
    image, draw = picture(pixels)
    if rng.random() < 0.6:
        step, ink = int(rng.integers(30, 80)), near(rng, (90, 120, 170))
        for at in range(0, max(width, height), step):
            draw.line([(at, 0), (at, height)], fill=ink)
            draw.line([(0, at), (width, at)], fill=ink)
    for _ in range(int(rng.integers(0, 4))):
        draw.line(wander(rng, width, height), fill=near(rng, (70, 130, 200)), width=int(rng.integers(1, 4)))
    for _ in range(int(rng.integers(2, 10))):
        label(draw, rng, (rng.uniform(0, width), rng.uniform(0, height)), (40, 30, 30), int(rng.integers(6, 14)))
    return image


def world_map(rng: np.random.Generator) -> Any:
    """Land and sea in flat tints with borders and a graticule."""
    width, height = side(rng)
    land = smooth(rng, width, height, int(rng.integers(2, 5)), 5) > rng.uniform(0.45, 0.6)
    sea = near(rng, (170, 211, 223)) if rng.random() < 0.7 else light(rng)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[:] = sea
    states = np.floor(smooth(rng, width, height, 4, 3) * rng.integers(3, 12)).astype(int)
    tints = np.array([colour(rng, (0.1, 0.5), (0.75, 1.0)) for _ in range(states.max() + 1)], dtype=np.uint8)
    pixels[land] = tints[states][land] if rng.random() < 0.7 else np.array(near(rng, (240, 235, 215)), dtype=np.uint8)
    pixels[levels(land.astype(float), 1)] = near(rng, (90, 110, 130))
    image, draw = picture(pixels)
    if rng.random() < 0.6:
        for at in range(0, max(width, height), int(rng.integers(20, 60))):
            draw.line([(at, 0), (at, height)], fill=near(rng, (150, 170, 190)))
            draw.line([(0, at), (width, at)], fill=near(rng, (150, 170, 190)))
    for _ in range(int(rng.integers(0, 9))):
        label(draw, rng, (rng.uniform(0, width), rng.uniform(0, height)), dark(rng), int(rng.integers(7, 18)))
    return image


def choropleth(rng: np.random.Generator) -> Any:
    """Districts coloured by a value, with borders and a legend."""
    width, height = side(rng)
    seeds = rng.random((int(rng.integers(8, 60)), 2)) * (width, height)
    warp = 14 * (smooth(rng, width, height, 8) - 0.5)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    distance = (across[..., None] + warp[..., None] - seeds[:, 0]) ** 2 + (
        down[..., None] + warp[..., None] - seeds[:, 1]
    ) ** 2
    cell = distance.argmin(axis=2)
    low, high = light(rng), vivid(rng)
    values = np.floor(rng.random(len(seeds)) * 5) / 4
    pixels = shade(values[cell], [low, high])
    border = (np.diff(cell, axis=0, append=cell[-1:]) != 0) | (np.diff(cell, axis=1, append=cell[:, -1:]) != 0)
    pixels[border] = (255, 255, 255) if rng.random() < 0.5 else (70, 70, 70)
    if rng.random() < 0.6:
        outside = ((across / width - 0.5) ** 2 + (down / height - 0.5) ** 2 + warp / 200) > rng.uniform(0.14, 0.3)
        pixels[outside] = light(rng)
    image, draw = picture(pixels)
    for row in range(5):
        top = height - 62 + 11 * row
        tint = tuple(int(a + (b - a) * row / 4) for a, b in zip(low, high, strict=True))
        draw.rectangle([6, top, 18, top + 9], fill=tint, outline=(80, 80, 80))
        label(draw, rng, (22, top - 1), (30, 30, 30), 8)
    if rng.random() < 0.6:
        label(draw, rng, (8, 4), (20, 20, 20), int(rng.integers(10, 18)), 3)
    return image


def gis_screen(rng: np.random.Generator) -> Any:
    """A map inside a program's window: tool bar, list of layers, status line."""
    inner = [street_map, topographic_map, world_map, choropleth][int(rng.integers(4))](rng)
    grey = colour(rng, (0.0, 0.06), (0.85, 0.97)) if rng.random() < 0.7 else dark(rng)
    ink = (30, 30, 30) if sum(grey) > 380 else (220, 220, 220)
    image, draw = blank(rng, grey)
    width, height = image.size
    left, top = int(width * rng.uniform(0.15, 0.35)), int(rng.integers(18, 36))
    image.paste(inner.resize((width - left, height - top - 10)), (left, top))
    draw.rectangle([0, 0, width, 9], fill=near(rng, (60, 90, 150)))
    for number in range(int(rng.integers(6, 18))):
        draw.rectangle(
            [4 + 13 * number, 12, 13 + 13 * number, top - 3], fill=near(rng, grey, 50), outline=near(rng, grey, 90)
        )
    for row in range(int(rng.integers(4, 14))):
        down = top + 6 + 12 * row
        draw.rectangle([6, down, 13, down + 7], fill=vivid(rng), outline=ink)
        label(draw, rng, (17, down - 1), ink, 8, 2)
    draw.rectangle([0, top, left - 2, height - 10], outline=near(rng, grey, 60))
    return image


def transit_map(rng: np.random.Generator) -> Any:
    """Lines at multiples of 45 degrees with stations on white."""
    image, draw = blank(rng, light(rng))
    width, height = image.size
    for _ in range(int(rng.integers(3, 9))):
        tint, at = vivid(rng), np.array([rng.uniform(0, width), rng.uniform(0, height)])
        points = [tuple(at)]
        for turn in rng.integers(0, 8, int(rng.integers(3, 7))):
            at = at + rng.uniform(25, 80) * np.array([np.cos(turn * np.pi / 4), np.sin(turn * np.pi / 4)])
            points.append(tuple(at))
        draw.line(points, fill=tint, width=int(rng.integers(3, 7)), joint="curve")
        for x, y in points:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=(255, 255, 255), outline=(20, 20, 20))
            label(draw, rng, (x + 6, y - 4), (30, 30, 30), 7)
    return image


def floor_plan(rng: np.random.Generator) -> Any:
    """Rooms, doors and measures; half of them as white lines on blue."""
    blue = rng.random() < 0.5
    image, draw = blank(rng, near(rng, (30, 70, 140)) if blue else light(rng))
    ink = (235, 240, 250) if blue else (40, 40, 40)
    boxes = [(10.0, 10.0, image.size[0] - 10.0, image.size[1] - 10.0)]
    for _ in range(int(rng.integers(4, 14))):
        x0, y0, x1, y1 = boxes.pop(int(rng.integers(len(boxes))))
        cut = rng.uniform(0.3, 0.7)
        if x1 - x0 > y1 - y0:
            boxes += [(x0, y0, x0 + cut * (x1 - x0), y1), (x0 + cut * (x1 - x0), y0, x1, y1)]
        else:
            boxes += [(x0, y0, x1, y0 + cut * (y1 - y0)), (x0, y0 + cut * (y1 - y0), x1, y1)]
    thick = int(rng.integers(1, 5))
    for x0, y0, x1, y1 in boxes:
        draw.rectangle([x0, y0, x1, y1], outline=ink, width=thick)
        if min(x1 - x0, y1 - y0) > 16:
            radius = rng.uniform(8, 16)
            draw.arc([x0 - radius, y0 - radius, x0 + radius, y0 + radius], 0, 90, fill=ink)
            label(draw, rng, (x0 + 6, y0 + 6), ink, 8)
    return image


KINDS = (street_map, topographic_map, world_map, choropleth, gis_screen, transit_map, floor_plan)
