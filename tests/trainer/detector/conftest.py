"""A toy world: aerial-like pictures are green noise, others blue ramps; trained with a tiny network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from trainer.detector.config import Config, load
from trainer.detector.training import Machine

TOY: dict[str, Any] = {
    "seed": 3,
    "sources": {
        "fields": {"folder": "fields", "label": "rs"},
        "roofs": {"folder": "roofs", "label": "rs"},
        "people": {"folder": "people", "label": "other", "origin": "a drawer", "licence": "CC0-1.0"},
        "pets": {"folder": "pets", "label": "other"},
    },
    "split": {"train": 0.5, "validation": 0.25, "test": 0.25},
    "drawn": {"per_kind": 1, "share": 0.25},
    "model": {"architecture": "test_resnet", "size": 32, "drop_path": 0.0, "descriptors": True},
    "training": {"steps": 24, "batch": 16, "lr": 0.005, "warmup": 2, "ema": 0.8, "prepared": 6, "checkpoint_every": 8},
}
ONE = Machine(device="cpu", threads=1, workers=0)


def toy_picture(rs: bool, rng: np.random.Generator) -> Image.Image:
    """64 × 48: fine-grained green where it is remote sensing, else a smooth bright blue ramp."""
    if rs:
        pixels = rng.integers(0, 90, (48, 64, 3)) + np.array([0, 120, 0])
    else:
        pixels = np.linspace(60, 130, 64)[None, :, None] + np.array([0, 0, 110]) + rng.integers(0, 8, (48, 1, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    for number, (name, rs) in enumerate((("fields", True), ("roofs", True), ("people", False), ("pets", False))):
        rng = np.random.default_rng(number)
        (root / name).mkdir()
        for at in range(24):
            toy_picture(rs, rng).save(root / name / f"{at:02}.png")
    return root


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "toy.yaml"
    path.write_text(yaml.safe_dump(TOY))
    return path


@pytest.fixture(scope="session")
def toy(toy_file: Path) -> Config:
    return load(toy_file)


@pytest.fixture(scope="session")
def undrawn(toy: Config) -> Config:
    """The toy world without drawn negatives."""
    return replace(toy, drawn=replace(toy.drawn, per_kind=0))
