"""Text pages, screenshots, tables, logos and posters."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.detector.negatives.canvas import (
    Colour,
    blank,
    blob,
    colour,
    dark,
    font,
    label,
    light,
    near,
    picture,
    ramp,
    shade,
    side,
    smooth,
    vivid,
    words,
)


def text_page(rng: np.random.Generator) -> Any:
    """A page in one or two columns with headings, perhaps with a figure's box."""
    paper = light(rng) if rng.random() < 0.85 else near(rng, (235, 220, 185))
    image, draw = blank(rng, paper)
    width, height = image.size
    columns, size, ink = int(rng.integers(1, 3)), int(rng.integers(6, 12)), dark(rng)
    face = font(rng, size)
    for column in range(columns):
        left, down = 10 + column * (width - 10) / columns, 8.0
        measure = (width - 20) / columns
        while down < height - size:
            if rng.random() < 0.06:
                draw.text((left, down), words(rng, 2), fill=ink, font=font(rng, size + 4, 1))
                down += size + 8
            elif rng.random() < 0.03:
                draw.rectangle(
                    [left, down, left + measure - 10, down + 34], outline=ink, fill=near(rng, (215, 215, 215))
                )
                down += 40
            else:
                text = words(rng, int(measure / size / 3) + 1)
                draw.text((left, down), text[: int(measure / size * 1.7)], fill=ink, font=face)
                down += size * 1.35
    return image


def screenshot(rng: np.random.Generator) -> Any:
    """A web page or program: header, navigation, cards with pictures' stand-ins, buttons."""
    night = rng.random() < 0.3
    ground = dark(rng) if night else light(rng)
    ink, accent = ((225, 225, 230) if night else (40, 40, 45)), vivid(rng)
    image, draw = blank(rng, ground)
    width, height = image.size
    draw.rectangle([0, 0, width, 20], fill=accent if rng.random() < 0.5 else near(rng, ground, 30))
    for number in range(int(rng.integers(2, 7))):
        label(draw, rng, (8 + 44 * number, 5), ink, 9)
    panel = int(width * rng.uniform(0.0, 0.3))
    draw.rectangle([0, 21, panel, height], fill=near(rng, ground, 22))
    for row in range(24, height, 16):
        if panel > 30:
            label(draw, rng, (5, row), ink, 8, 2)
    across, wide = panel + 8, int(rng.integers(50, 110))
    while across < width - 20:
        down = 28
        while down < height - 20:
            tall = int(rng.integers(26, 80))
            box = [across, down, min(across + wide, width - 4), min(down + tall, height - 2)]
            draw.rectangle(box, fill=near(rng, ground, 16), outline=near(rng, ground, 60))
            if rng.random() < 0.5:
                draw.rectangle(
                    [box[0] + 3, box[1] + 3, box[2] - 3, box[1] + tall // 2], fill=colour(rng, (0.1, 0.7), (0.3, 0.9))
                )
            for line in range(down + tall // 2 + 3, down + tall - 8, 9):
                label(draw, rng, (across + 4, line), ink, 7, 2)
            down += tall + 6
        across += wide + 6
    for _ in range(int(rng.integers(0, 3))):
        x, y = rng.uniform(panel, width - 50), rng.uniform(30, height - 20)
        draw.rounded_rectangle([x, y, x + 46, y + 14], 4, fill=accent)
        label(draw, rng, (x + 6, y + 2), (255, 255, 255), 8)
    return image


def code_screen(rng: np.random.Generator) -> Any:
    """Coloured source text or a terminal on a dark ground."""
    image, draw = blank(rng, dark(rng) if rng.random() < 0.8 else light(rng))
    width, height = image.size
    size = int(rng.integers(7, 12))
    inks = [colour(rng, (0.1, 0.8), (0.7, 1.0)) for _ in range(5)]
    for row, down in enumerate(range(6, height - size, int(size * 1.4))):
        draw.text((4, down), str(row + 1), fill=(120, 120, 120), font=font(rng, size, 4))
        across = 26.0 + 14 * int(rng.integers(0, 4))
        for _ in range(int(rng.integers(0, 6))):
            word = words(rng, 1)
            draw.text((across, down), word, fill=inks[int(rng.integers(5))], font=font(rng, size, 4))
            across += (len(word) + 1) * size * 0.62
            if across > width:
                break
    return image


def table(rng: np.random.Generator) -> Any:
    """A spreadsheet or a printed table."""
    image, draw = blank(rng, light(rng))
    width, height = image.size
    tall, wide, head = int(rng.integers(11, 20)), int(rng.integers(30, 70)), colour(rng, (0.0, 0.6), (0.6, 0.95))
    draw.rectangle([0, 0, width, tall], fill=head)
    for row, down in enumerate(range(0, height, tall)):
        if row and row % 2 and head[0] % 2:
            draw.rectangle([0, down, width, down + tall], fill=near(rng, (240, 243, 248), 4))
        draw.line([(0, down), (width, down)], fill=(190, 190, 190))
        for across in range(0, width, wide):
            text = words(rng, 1) if rng.random() < 0.3 else f"{rng.uniform(0, 999):.2f}"
            draw.text((across + 3, down + 2), text, fill=(30, 30, 30), font=font(rng, 8, 0))
    for across in range(0, width, wide):
        draw.line([(across, 0), (across, height)], fill=(190, 190, 190))
    return image


def logo(rng: np.random.Generator) -> Any:
    """A mark of simple shapes with a name."""
    image, draw = blank(rng, light(rng) if rng.random() < 0.7 else vivid(rng))
    width, height = image.size
    x, y, r = (
        width * rng.uniform(0.3, 0.7),
        height * rng.uniform(0.3, 0.5),
        min(width, height) * rng.uniform(0.15, 0.32),
    )
    for _ in range(int(rng.integers(1, 5))):
        tint, kind = vivid(rng), int(rng.integers(5))
        box = [x - r, y - r, x + r, y + r]
        if kind == 0:
            draw.ellipse(box, fill=tint)
        elif kind == 1:
            draw.rounded_rectangle(box, r / 4, fill=tint)
        elif kind == 2:
            draw.arc(box, rng.uniform(0, 180), rng.uniform(200, 400), fill=tint, width=max(2, int(r / 5)))
        elif kind == 3:
            draw.regular_polygon((x, y, r), int(rng.integers(3, 8)), rotation=float(rng.uniform(0, 90)), fill=tint)
        else:
            draw.polygon(blob(rng, (x, y), r, 0.15), fill=tint)
        r, x = r * rng.uniform(0.5, 0.85), x + rng.normal(0, r / 4)
    size = int(rng.integers(14, 40))
    draw.text(
        (width * 0.1, height * 0.72), words(rng, int(rng.integers(1, 3))).upper(), fill=dark(rng), font=font(rng, size)
    )
    return image


def poster(rng: np.random.Generator) -> Any:
    """Large words on a gradient: covers, slides, banners."""
    width, height = side(rng)
    stops: list[Colour] = [colour(rng, (0.1, 0.9), (0.1, 1.0)) for _ in range(int(rng.integers(2, 4)))]
    image, draw = picture(shade(ramp(rng, width, height), stops))
    for _ in range(int(rng.integers(0, 4))):
        at = (rng.uniform(0, width), rng.uniform(0, height))
        draw.polygon(blob(rng, at, rng.uniform(20, 90), 0.1), fill=colour(rng, (0.1, 0.9), (0.2, 1.0)))
    down = rng.uniform(0.05, 0.4) * height
    for _ in range(int(rng.integers(1, 5))):
        size = int(rng.integers(12, 40))
        draw.text(
            (12, down), words(rng, 2), fill=light(rng) if rng.random() < 0.7 else dark(rng), font=font(rng, size, 1)
        )
        down += size * 1.3
    return image


def barcode(rng: np.random.Generator) -> Any:
    """A square code or a bar code."""
    image, draw = blank(rng, (255, 255, 255))
    width, height = image.size
    if rng.random() < 0.6:
        count = int(rng.integers(21, 42))
        modules = (rng.random((count, count)) < 0.5).astype(np.uint8)
        for row, column in ((0, 0), (0, count - 7), (count - 7, 0)):
            modules[row : row + 7, column : column + 7] = 1
            modules[row + 1 : row + 6, column + 1 : column + 6] = 0
            modules[row + 2 : row + 5, column + 2 : column + 5] = 1
        code, _ = picture(np.repeat((255 * (1 - modules))[..., None], 3, axis=2).astype(np.uint8))
        reach = int(min(width, height) * 0.9)
        image.paste(code.resize((reach, reach), 0), ((width - reach) // 2, (height - reach) // 2))
        return image
    across = 10.0
    while across < width - 14:
        bar = float(rng.integers(1, 5))
        draw.rectangle([across, 10, across + bar, height - 30], fill=(0, 0, 0))
        across += bar + float(rng.integers(2, 5))
    draw.text(
        (20, height - 24), "".join(str(d) for d in rng.integers(0, 10, 12)), fill=(0, 0, 0), font=font(rng, 14, 4)
    )
    return image


def old_scan(rng: np.random.Generator) -> Any:
    """Ink drawing and handwriting-like strokes on stained paper."""
    width, height = side(rng)
    stain = smooth(rng, width, height, 4, 4)
    image, draw = picture(shade(stain, [(196, 170, 120), (240, 228, 196)]))
    ink = near(rng, (60, 40, 30))
    for down in range(12, height - 10, int(rng.integers(10, 20))):
        across = 10.0
        while across < width - 12:
            length = rng.uniform(4, 30)
            times = np.arange(0, length, 1.0)
            wave = down + 3 * np.sin(times * rng.uniform(0.6, 1.4)) * rng.uniform(0.4, 1.0)
            if len(times) > 1:
                draw.line(list(zip(across + times, wave, strict=True)), fill=ink, width=1)
            across += length + rng.uniform(3, 8)
    return image


KINDS = (text_page, screenshot, code_screen, table, logo, poster, barcode, old_scan)
