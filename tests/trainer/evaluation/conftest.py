"""A tiny CLIP in open_clip's format, and benchmarks of coloured pictures in their published layouts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.models import make_open_clip

COLOURS = {"Forest": (20, 110, 30), "River": (40, 60, 200), "SeaLake": (10, 30, 120)}


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model so small that a second thread of torch only waits for the first."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_open_clip(tmp_path_factory.mktemp("clip") / "model", seed=1)
    torch.set_num_threads(threads)


def write_picture(path: Path, seed: int, colour: tuple[int, int, int] = (90, 90, 90), side: int = 48) -> Path:
    """A noisy picture of a colour."""
    noise = np.random.default_rng(seed).integers(-40, 40, (side, side, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(noise + np.array(colour), 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def eurosat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of four pictures in EuroSAT's own folders; one picture is cut short."""
    root = tmp_path_factory.mktemp("eurosat")
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(4):
            write_picture(root / "2750" / name / f"{name}_{index}.png", 10 * number + index, colour)
    (root / "2750" / "River" / "River_9.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return root


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EuroSAT with four prompts a class instead of 105, and three of its classes."""
    path = tmp_path_factory.mktemp("few") / "few.yaml"
    path.write_text(
        "templates: {few: [{form: '{one} image of {c}.', one: [an, an aerial, a satellite, a low resolution]}]}\n"
        "benchmarks: {eurosat: {templates: few, classes: {woods: [Forest], river: [], lake or sea: [SeaLake]}}}"
    )
    return path


@pytest.fixture(scope="session")
def rsicd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(Karpathy's JSON, images): twelve test images of three captions, some alike, two images of the same bytes."""
    root = tmp_path_factory.mktemp("rsicd")
    described = []
    for index in range(12):
        colour = list(COLOURS.values())[index % 3]
        write_picture(root / "images" / f"{index}.png", 100 + min(index, 10), colour if index < 10 else (5, 200, 5))
        texts = [f"picture number {index} .", "many green trees are in a forest .", f"a thing of kind {index % 3} ."]
        described.append(
            {"filename": f"{index}.png", "split": "test", "sentences": [{"raw": f"{text} "} for text in texts]}
        )
    (root / "dataset.json").write_text(json.dumps({"images": described}))
    return root / "dataset.json", root / "images"


@pytest.fixture(scope="session")
def air_slt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scene of 600 × 820 px and two sentences."""
    root = tmp_path_factory.mktemp("selo") / "AIR-SLT"
    pixels = np.random.default_rng(0).integers(0, 255, (600, 820, 3)).astype(np.uint8)
    pixels[:300, :300] = (20, 160, 30)
    (root / "imgs").mkdir(parents=True)
    (root / "annotations").mkdir()
    Image.fromarray(pixels).save(root / "imgs" / "scene.png")
    square = [[20, 20], [280, 20], [280, 280], [20, 280]]
    other = [[500, 300], [700, 300], [700, 500]]
    notes = [
        {"caption": "a green field", "jpg_name": "scene.png", "points": [square]},
        {"caption": "noise", "jpg_name": "scene.png", "points": [square, other]},
    ]
    (root / "annotations" / "anno.json").write_text(json.dumps(notes))
    return root
