"""Tars made by code: each image is of one colour that tells its number."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(number: int, width: int = 40, height: int = 40) -> Image.Image:
    """A flat grey of `number`."""
    return Image.new("RGB", (width, height), (number, number, number))


def encoded(image: Image.Image, encoding: str = "PNG") -> bytes:
    held = io.BytesIO()
    image.save(held, encoding)
    return held.getvalue()


def halves(width: int = 64, height: int = 48) -> Image.Image:
    """White on the left, black on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 255
    return Image.fromarray(pixels)


def webdataset_members(number: int, passport: Mapping[str, Any] | None = None) -> list[tuple[str, bytes]]:
    key = f"{number:06d}"
    return [
        (f"{key}.png", encoded(picture(number))),
        (f"{key}.txt", f"number {number}".encode()),
        (f"{key}.json", json.dumps(passport or {"key": key}).encode()),
    ]


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w", form: int = tarfile.USTAR_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:  # type: ignore[call-overload]
        for name, data in members:
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            tar.addfile(facts, io.BytesIO(data))
    return path


def write_shards(folder: Path, counts: Iterable[int]) -> str:
    """webdataset tars of so many samples each, numbered through; returns their pattern."""
    number = 0
    for shard, count in enumerate(counts):
        rows = [member for at in range(number, number + count) for member in webdataset_members(at)]
        write_tar(folder / f"part-{shard:02d}.tar", rows)
        number += count
    return str(folder / "*.tar")
