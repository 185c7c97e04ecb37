from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.captioner import TEXTS, make_blip2
from tests.trainer.data import write_tar

KINDS = 4
"""Colours of images, each with a caption of its own."""


def picture(number: int) -> bytes:
    """A noisy image of its kind's colour."""
    rng = np.random.default_rng(number)
    colour = [(220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 220)][number % KINDS]
    pixels = np.clip(np.array(colour) + rng.normal(0, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.fixture(scope="session")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP2 in transformers' own format, with random weights."""
    return make_blip2(tmp_path_factory.mktemp("models") / "blip2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images with a table as Hugging Face's `imagefolder` has it."""
    made = tmp_path / "images"
    made.mkdir()
    lines = []
    for number in range(40):
        (made / f"{number:03d}.jpg").write_bytes(picture(number))
        lines.append({"file_name": f"{number:03d}.jpg", "text": TEXTS[number % KINDS]})
    (made / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


def shard(path: Path, count: int = 40, start: int = 0) -> Path:
    """A tar of such images, with texts."""
    rows = []
    for number in range(start, start + count):
        rows += [(f"{number:03d}.jpg", picture(number)), (f"{number:03d}.txt", TEXTS[number % KINDS].encode())]
    return write_tar(path, rows)
