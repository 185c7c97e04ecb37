"""Procedural scenes, seen from above and seen from the ground, drawn with numpy and Pillow from a seed.

They have what tells the two apart (no horizon, no sky, objects without a standing side, texture everywhere) at sizes
and in kinds that vary; and those from above are muted, rough and hazy as a sensor sees the ground, so that a detector
trained on real images knows them for what they show.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Rng = np.random.Generator
Colour = tuple[int, int, int]
Painter = Callable[[Rng, int, int], Image.Image]


def overhead(kind: str, rng: Rng, size: tuple[int, int]) -> Image.Image:
    """A scene seen from above, RGB, of (width, height) px; `kind` is one of `OVERHEAD`."""
    return _with_grain(_as_sensed(OVERHEAD[kind](rng, *size), rng), rng, 5.0)


def ground(kind: str, rng: Rng, size: tuple[int, int]) -> Image.Image:
    """A scene seen from the ground, RGB, of (width, height) px; `kind` is one of `GROUND`."""
    return _with_grain(GROUND[kind](rng, *size), rng, 1.5)


def noise(rng: Rng, width: int, height: int, cells: float, octaves: int = 3) -> np.ndarray:
    """Smooth noise in [0, 1], float32 of (height, width), with about `cells` blobs across the longer side."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        step = max(width, height) / (cells * 2**octave)
        shape = (int(height / step) + 3, int(width / step) + 3)
        grid = Image.fromarray(rng.random(shape, np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)) * 0.5**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / (high - low + 1e-6)


def _with_grain(image: Image.Image, rng: Rng, sigma: float) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    grain = rng.normal(0, sigma, pixels.shape[:2]).astype(np.float32)[..., None]
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def _as_sensed(image: Image.Image, rng: Rng) -> Image.Image:
    """Trees, relief at every scale, muted colours under haze, and the blur of optics."""
    width, height = image.size
    _plant_trees(image, rng)
    pixels = np.asarray(image, np.float32)
    relief = 60 * noise(rng, width, height, max(width, height) / 9) + 36 * noise(rng, width, height, 6, 4) - 48
    pixels = pixels + relief[..., None]
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = 0.88 * (grey + 0.4 * (pixels - grey)) + 0.12 * np.array([150, 156, 160], np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))


def _plant_trees(image: Image.Image, rng: Rng) -> None:
    """Dark crowns with their shadows, a pixel or two wide, in groves."""
    draw, (width, height) = ImageDraw.Draw(image), image.size
    groves = noise(rng, width, height, 5)
    for x, y in rng.uniform(0, 1, (width * height // 160, 2)) * (width, height):
        if groves[int(y), int(x)] > 0.6:
            r, shade = rng.uniform(0.8, 2.6), int(rng.integers(30, 70))
            draw.ellipse([x - r + 1, y - r + 1, x + r + 1, y + r + 1], fill=(24, 30, 22))
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(shade, shade + 18, shade - 8))


def _blend(low: Colour, high: Colour, weight: np.ndarray) -> Image.Image:
    """Each pixel between two colours, by a weight in [0, 1] of (height, width)."""
    ends = np.asarray(low, np.float32), np.asarray(high, np.float32)
    pixels = ends[0] + (ends[1] - ends[0]) * weight[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _jitter(rng: Rng, colour: Colour, by: int = 18) -> Colour:
    """Lighter or darker, and a third as much of another hue."""
    lighter = int(rng.integers(-by, by + 1))
    hue = rng.integers(-(by // 3), by // 3 + 1, 3)
    red, green, blue = (int(np.clip(c + lighter + h, 0, 255)) for c, h in zip(colour, hue, strict=True))
    return red, green, blue


def _pick(rng: Rng, colours: list[Colour]) -> Colour:
    return _jitter(rng, colours[int(rng.integers(len(colours)))])


def _axes(rng: Rng, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in px along two perpendicular axes turned by a random angle about the middle."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x - width / 2, y - height / 2
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _cuts(rng: Rng, reach: float, low: float, high: float) -> np.ndarray:
    """Positions from -reach to reach with random gaps between low and high px."""
    gaps = rng.uniform(low, high, int(2 * reach / low) + 2)
    return np.cumsum(gaps) - reach


def _quad(rng: Rng, x: float, y: float, length: float, breadth: float, angle: float) -> list[tuple[float, float]]:
    """Corners of a turned rectangle about (x, y)."""
    along = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    across = np.array([-np.sin(angle), np.cos(angle)]) * breadth / 2
    middle = np.array([x, y])
    corners = [along + across, along - across, -along - across, -along + across]
    return [(float(c[0]), float(c[1])) for c in (middle + corner for corner in corners)]


# ---------------------------------------------------------------- seen from above


def _fields(rng: Rng, width: int, height: int) -> Image.Image:
    u, v = _axes(rng, width, height)
    reach, scale = float(max(width, height)), max(width, height) / rng.uniform(3, 7)
    columns = np.searchsorted(_cuts(rng, reach, scale * 0.5, scale * 1.6), u)
    rows = np.searchsorted(_cuts(rng, reach, scale * 0.5, scale * 1.6), v)
    parcel = (columns * 131 + rows * 71) % 97
    palette = [(92, 128, 60), (140, 150, 80), (168, 146, 96), (116, 92, 62), (196, 182, 116), (70, 104, 52)]
    colours = np.array([_pick(rng, palette) for _ in range(97)], np.float32)
    furrows = np.sin(np.where(parcel % 2 == 0, u, v) * rng.uniform(0.5, 1.4)) * (parcel % 3 != 0) * 9
    pixels = colours[parcel] + furrows[..., None] + (noise(rng, width, height, 12)[..., None] - 0.5) * 26
    edge = (np.diff(parcel, axis=0, prepend=parcel[:1]) != 0) | (np.diff(parcel, axis=1, prepend=parcel[:, :1]) != 0)
    pixels[edge] = (104, 92, 74)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _town(rng: Rng, width: int, height: int) -> Image.Image:
    image = _blend((84, 96, 66), (150, 144, 120), noise(rng, width, height, 14))
    draw = ImageDraw.Draw(image)
    angle, block = rng.uniform(0, np.pi / 2), max(width, height) / rng.uniform(4, 8)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle, reach = np.array([width / 2, height / 2]), int(max(width, height) / block) + 1
    roofs: list[Colour] = [(160, 82, 64), (126, 122, 120), (180, 172, 160), (98, 84, 76), (206, 202, 196)]
    for i in range(-reach, reach + 1):
        for start, end in (((i, -reach), (i, reach)), ((-reach, i), (reach, i))):
            ends = [tuple((turn @ (np.array(p) * block) + middle).tolist()) for p in (start, end)]
            draw.line(ends, fill=(118, 116, 116), width=max(2, int(block * 0.14)))
        for j in range(-reach, reach + 1):
            for du, dv in ((0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7)):
                x, y = turn @ ((np.array([i + du, j + dv]) + rng.uniform(-0.05, 0.05, 2)) * block) + middle
                length, breadth = rng.uniform(0.16, 0.32, 2) * block
                shade = _quad(rng, x + block * 0.03, y + block * 0.03, length, breadth, angle)
                draw.polygon(shade, fill=(46, 46, 44))
                draw.polygon(_quad(rng, x, y, length, breadth, angle), fill=_pick(rng, roofs))
    return image


def _river(rng: Rng, width: int, height: int) -> Image.Image:
    image = np.asarray(_blend((72, 98, 50), (158, 150, 96), noise(rng, width, height, 9)), np.float32).copy()
    u, v = _axes(rng, width, height)
    span = max(width, height)
    bend = np.sin(u / span * rng.uniform(5, 12) + rng.uniform(0, 6)) * span * rng.uniform(0.05, 0.16)
    bend += np.sin(u / span * rng.uniform(14, 24)) * span * 0.03
    distance = np.abs(v - bend - rng.uniform(-0.15, 0.15) * span)
    breadth = span * rng.uniform(0.03, 0.08)
    image[distance < breadth * 1.35] = (176, 166, 134)
    image[distance < breadth] = _jitter(rng, (58, 84, 92))
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def _coast(rng: Rng, width: int, height: int) -> Image.Image:
    u, _ = _axes(rng, width, height)
    level = u / max(width, height) + (noise(rng, width, height, 4, 4) - 0.5) * 0.5 + rng.uniform(-0.12, 0.12)
    land = np.asarray(_blend((78, 108, 58), (168, 158, 118), noise(rng, width, height, 16)), np.float32)
    deep = np.clip(-level * 4, 0, 1)
    sea = np.asarray(_blend(_jitter(rng, (74, 150, 158)), (16, 52, 92), deep), np.float32)
    pixels = np.where(level[..., None] > 0, land, sea)
    pixels[(level > 0) & (level < 0.04)] = (214, 200, 160)
    pixels[(level > -0.012) & (level < 0)] = (228, 234, 232)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _airport(rng: Rng, width: int, height: int) -> Image.Image:
    image = _blend((112, 124, 76), (168, 160, 116), noise(rng, width, height, 10))
    draw = ImageDraw.Draw(image)
    span, angle = max(width, height), rng.uniform(0, np.pi)
    x, y = width * rng.uniform(0.35, 0.65), height * rng.uniform(0.35, 0.65)
    side = np.array([-np.sin(angle), np.cos(angle)]) * span * rng.uniform(0.16, 0.24)
    apron = _jitter(rng, (164, 164, 160))
    draw.polygon(_quad(rng, x + side[0] * 1.3, y + side[1] * 1.3, span * 0.5, span * 0.2, angle), fill=apron)
    draw.polygon(_quad(rng, x + side[0] * 0.6, y + side[1] * 0.6, span * 0.9, span * 0.03, angle), fill=(124, 124, 122))
    draw.polygon(_quad(rng, x, y, span * 1.5, span * 0.09, angle), fill=(78, 78, 80))
    along = np.array([np.cos(angle), np.sin(angle)])
    for step in np.arange(-0.7, 0.7, 0.06):
        dash = np.array([x, y]) + along * span * step
        draw.polygon(_quad(rng, dash[0], dash[1], span * 0.03, span * 0.006, angle), fill=(236, 236, 232))
    for step in np.arange(-0.2, 0.21, rng.uniform(0.07, 0.12)):
        plane = np.array([x, y]) + side * 1.3 + along * span * step
        for turn, length in ((0.0, 0.05), (np.pi / 2, 0.06)):
            draw.polygon(_quad(rng, plane[0], plane[1], span * length, span * 0.01, angle + turn), fill=(246, 246, 246))
    return image


def _forest(rng: Rng, width: int, height: int) -> Image.Image:
    crowns = noise(rng, width, height, 48, 2) * 0.7 + noise(rng, width, height, 5) * 0.3
    image = _blend((18, 42, 24), _jitter(rng, (98, 128, 66)), crowns)
    draw = ImageDraw.Draw(image)
    points = [(float(t * width), float(height * (rng.uniform(0.1, 0.9)))) for t in np.linspace(-0.1, 1.1, 4)]
    draw.line(points, fill=(178, 162, 128), width=max(2, width // 60), joint="curve")
    for _ in range(int(rng.integers(1, 5))):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.04, 0.12) * width
        draw.polygon(_quad(rng, x, y, 2 * r, r, rng.uniform(0, np.pi)), fill=_jitter(rng, (138, 142, 88)))
    return image


def _desert(rng: Rng, width: int, height: int) -> Image.Image:
    u, v = _axes(rng, width, height)
    warp = noise(rng, width, height, 5) * 40 + noise(rng, width, height, 2) * 60
    dunes = 0.5 + 0.5 * np.sin((u + warp) * rng.uniform(0.1, 0.25) + np.sin(v * 0.02) * 2)
    shade = dunes * 0.6 + noise(rng, width, height, 6) * 0.4
    return _blend(_jitter(rng, (142, 104, 70)), _jitter(rng, (226, 192, 142)), shade)


def _tanks(rng: Rng, width: int, height: int) -> Image.Image:
    image = _blend((128, 124, 116), (170, 164, 152), noise(rng, width, height, 12))
    draw = ImageDraw.Draw(image)
    cell = min(width, height) / rng.uniform(3.2, 5.5)
    for x in np.arange(cell * rng.uniform(0.2, 0.6), width, cell):
        draw.line([(x - cell / 2, 0), (x - cell / 2, height)], fill=(96, 94, 92), width=max(2, int(cell * 0.08)))
        for y in np.arange(cell * rng.uniform(0.2, 0.6), height, cell):
            radius = cell * rng.uniform(0.22, 0.4)
            if rng.random() < 0.25:
                draw.polygon(
                    _quad(rng, x, y, radius * 2, radius, 0.0), fill=_pick(rng, [(120, 70, 60), (90, 100, 116)])
                )
                continue
            off = radius * 0.25
            draw.ellipse([x - radius + off, y - radius + off, x + radius + off, y + radius + off], fill=(60, 58, 56))
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=_jitter(rng, (226, 226, 222)))
            draw.ellipse([x - radius / 3, y - radius / 3, x + radius / 3, y + radius / 3], outline=(160, 160, 158))
    return image


# ---------------------------------------------------------------- seen from the ground


def _sky(rng: Rng, width: int, height: int, horizon: float) -> Image.Image:
    """Sky above the horizon (a share of the height), brighter towards it; ground below is painted later."""
    fall = np.clip(np.linspace(0, 1 / horizon, height, dtype=np.float32), 0, 1)[:, None].repeat(width, 1)
    top = _pick(rng, [(74, 128, 206), (104, 148, 200), (128, 138, 160), (88, 84, 140)])
    low = _pick(rng, [(226, 236, 246), (246, 214, 180), (214, 218, 224)])
    return _blend(top, low, fall)


def _landscape(rng: Rng, width: int, height: int) -> Image.Image:
    horizon = rng.uniform(0.5, 0.66)
    image = _sky(rng, width, height, horizon)
    draw = ImageDraw.Draw(image)
    x, y, r = rng.uniform(0.1, 0.9) * width, rng.uniform(0.08, 0.25) * height, rng.uniform(0.03, 0.06) * width
    draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 246, 214))
    for layer, colour in enumerate([(120, 138, 160), (84, 112, 110), (62, 98, 58)]):
        base = height * (horizon + layer * 0.09)
        ridge = noise(rng, width, 2, 4 + layer * 2)[0] * height * 0.2
        outline = [(float(i), float(base - ridge[i])) for i in range(0, width, 4)]
        draw.polygon([(0.0, float(height)), *outline, (float(width), float(height))], fill=_jitter(rng, colour))
    for _ in range(int(rng.integers(3, 9))):
        x, foot = rng.uniform(0, width), height * rng.uniform(0.75, 0.98)
        tall = height * rng.uniform(0.15, 0.4)
        draw.polygon(
            [(x - tall * 0.2, foot), (x + tall * 0.2, foot), (x, foot - tall)], fill=_jitter(rng, (34, 66, 38))
        )
    _hut(rng, draw, rng.uniform(0.1, 0.5) * width, height * rng.uniform(0.85, 0.95), min(width, height) * 0.45)
    return image


def _hut(rng: Rng, draw: ImageDraw.ImageDraw, left: float, foot: float, side: float) -> None:
    """A gable with door and windows, `side` px wide: what stands upright tells where one looks from."""
    eaves, wall = foot - 0.5 * side, _jitter(rng, (196, 158, 112))
    draw.polygon(
        [(left - 0.1 * side, eaves), (left + 1.1 * side, eaves), (left + 0.5 * side, eaves - 0.5 * side)],
        fill=(122, 58, 44),
    )
    draw.rectangle([left, eaves, left + side, foot], fill=wall)
    draw.rectangle([left + 0.4 * side, foot - 0.36 * side, left + 0.6 * side, foot], fill=(82, 50, 34))
    for x in (0.1, 0.7):
        draw.rectangle(
            [left + x * side, eaves + 0.1 * side, left + (x + 0.2) * side, eaves + 0.3 * side],
            fill=(58, 74, 98),
            outline=(240, 240, 236),
            width=2,
        )


def _street(rng: Rng, width: int, height: int) -> Image.Image:
    horizon = rng.uniform(0.42, 0.55)
    image = _sky(rng, width, height, horizon)
    draw = ImageDraw.Draw(image)
    eye = width * rng.uniform(0.4, 0.6), height * horizon
    draw.polygon([(0, height), (width, height), (width, eye[1]), (0, eye[1])], fill=_jitter(rng, (150, 146, 140)))
    draw.polygon([eye, (width * 0.85, height), (width * 0.15, height)], fill=_jitter(rng, (76, 76, 80)))
    for side in (0.0, float(width)):
        for near, far in ((0.0, 0.35), (0.35, 0.6), (0.6, 0.78)):
            left, right = side + (eye[0] - side) * near, side + (eye[0] - side) * far
            tall = [height * rng.uniform(0.45, 0.7) * (1 - share) for share in (near, far)]
            feet = [eye[1] + (height - eye[1]) * (1 - share) * 0.7 for share in (near, far)]
            wall = [(left, feet[0]), (left, eye[1] - tall[0]), (right, eye[1] - tall[1]), (right, feet[1])]
            draw.polygon(wall, fill=_pick(rng, [(172, 120, 96), (196, 186, 168), (120, 126, 140)]))
            for floor in range(4):
                line = [eye[1] - t * (0.15 + 0.2 * floor) for t in tall]
                draw.line([(left, line[0]), (right, line[1])], fill=(56, 64, 76), width=max(2, height // 60))
    return image


def _portrait(rng: Rng, width: int, height: int) -> Image.Image:
    wall = _blend(_pick(rng, [(70, 84, 110), (150, 120, 96)]), (206, 204, 198), noise(rng, width, height, 2, 1))
    image = wall.filter(ImageFilter.GaussianBlur(6))
    draw = ImageDraw.Draw(image)
    x, y, r = (
        width * rng.uniform(0.4, 0.6),
        height * rng.uniform(0.42, 0.48),
        min(width, height) * rng.uniform(0.17, 0.24),
    )
    skin = _pick(rng, [(232, 192, 164), (190, 140, 104), (120, 82, 60)])
    coat = _pick(rng, [(40, 44, 60), (150, 40, 44), (50, 90, 70)])
    draw.ellipse([x - r * 2.2, y + r * 1.5, x + r * 2.2, y + r * 6], fill=coat)
    draw.rectangle([x - r * 0.4, y + r * 0.8, x + r * 0.4, y + r * 1.9], fill=skin)
    draw.ellipse(
        [x - r * 1.15, y - r * 1.5, x + r * 1.15, y + r * 0.7], fill=_pick(rng, [(40, 28, 22), (150, 110, 60)])
    )
    draw.ellipse([x - r * 0.9, y - r * 1.1, x + r * 0.9, y + r * 1.2], fill=skin)
    for side in (-0.38, 0.38):
        draw.ellipse([x + r * (side - 0.1), y - r * 0.2, x + r * (side + 0.1), y], fill=(30, 26, 30))
    draw.arc(
        [x - r * 0.4, y + r * 0.3, x + r * 0.4, y + r * 0.8], 10, 170, fill=(140, 50, 56), width=max(2, int(r * 0.08))
    )
    return image


def _still_life(rng: Rng, width: int, height: int) -> Image.Image:
    edge = int(height * rng.uniform(0.5, 0.65))
    rise = np.linspace(0, 1, height, dtype=np.float32)[:, None].repeat(width, 1)
    image = _blend(_pick(rng, [(226, 220, 206), (190, 204, 212)]), (150, 146, 140), rise)
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, edge, width, height], fill=_pick(rng, [(132, 92, 60), (90, 66, 52), (200, 190, 178)]))
    for _ in range(int(rng.integers(2, 6))):
        x, r = width * rng.uniform(0.12, 0.88), min(width, height) * rng.uniform(0.07, 0.15)
        foot = edge + (height - edge) * rng.uniform(0.15, 0.6)
        colour = _pick(rng, [(204, 60, 50), (232, 168, 50), (110, 160, 70), (70, 90, 150)])
        draw.ellipse([x - r * 1.2, foot - r * 0.25, x + r * 1.5, foot + r * 0.3], fill=(56, 42, 34))
        if rng.random() < 0.4:
            draw.rectangle([x - r * 0.5, foot - r * 3, x + r * 0.5, foot], fill=colour)
            draw.rectangle([x - r * 0.2, foot - r * 4, x + r * 0.2, foot - r * 3], fill=colour)
        else:
            draw.ellipse([x - r, foot - 2 * r, x + r, foot], fill=colour)
        draw.ellipse([x - r * 0.4, foot - r * 1.7, x - r * 0.1, foot - r * 1.4], fill=(250, 248, 240))
    return image


def _seaside(rng: Rng, width: int, height: int) -> Image.Image:
    horizon = rng.uniform(0.4, 0.6)
    image = _sky(rng, width, height, horizon)
    draw = ImageDraw.Draw(image)
    level, colour = int(height * horizon), _pick(rng, [(40, 92, 140), (52, 120, 128)])
    draw.rectangle([0, level, width, height], fill=colour)
    for _ in range(60):
        x, y = rng.uniform(0, width), rng.uniform(level, height)
        length = width * 0.12 * (y - level) / (height - level + 1) + 3
        draw.line([(x, y), (x + length, y)], fill=_jitter(rng, (150, 190, 206)), width=1)
    shore = height * rng.uniform(0.82, 0.92)
    draw.polygon(
        [(0, height), (0, shore), (width, shore + height * 0.06), (width, height)], fill=_jitter(rng, (214, 194, 150))
    )
    x, sail = width * rng.uniform(0.2, 0.8), height * rng.uniform(0.12, 0.25)
    draw.polygon([(x, level - sail), (x, level), (x + sail * 0.5, level)], fill=(248, 246, 240))
    draw.rectangle([x - sail * 0.3, level, x + sail * 0.5, level + sail * 0.1], fill=(96, 54, 40))
    return image


OVERHEAD: dict[str, Painter] = {
    "fields": _fields,
    "town": _town,
    "river": _river,
    "coast": _coast,
    "airport": _airport,
    "forest": _forest,
    "desert": _desert,
    "tanks": _tanks,
}
GROUND: dict[str, Painter] = {
    "landscape": _landscape,
    "street": _street,
    "portrait": _portrait,
    "still_life": _still_life,
    "seaside": _seaside,
}
