"""The detector that is shipped: its folder, and what the outliers stage gets from it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.scorers import DetectorConfig, DetectorScorer, score_batches
from stages.vision import shipped_model
from trainer.detector.config import Split
from trainer.detector.images import SUFFIXES, split_of
from trainer.detector.model import load, load_network, score

FOLDER = shipped_model("detector")
REAL = os.environ.get("CURATION_REAL_DATA")


@pytest.fixture(scope="module")
def scorer() -> DetectorScorer:
    made = DetectorScorer(DetectorConfig())
    made.check()
    return made


def logits(scorer: DetectorScorer, images: list[Any]) -> np.ndarray:
    preprocess = scorer.preprocess()
    transform = preprocess.transform()
    run = scorer.load(preprocess)
    pixels = [transform(image.convert("RGB")) for image in images]
    found = score_batches(run, 64, pixels, [""] * len(pixels), scorer.columns)
    return found["detector_logit"].to_numpy(zero_copy_only=False)


def test_it_is_small_and_names_its_outputs() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["label_names"] == ["other", "rs"]
    assert config["pretrained_cfg"]["input_size"] == [3, 128, 128]


def test_its_card_is_of_these_weights_and_holds_their_figures() -> None:
    card = (FOLDER / "README.md").read_text()
    assert hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest() in card
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    left = json.loads((FOLDER / "leave_out.json").read_text())
    for figure in (metrics["test"]["balanced_accuracy"], left["overall"]["unseen_balanced_accuracy"]):
        assert f"{100 * figure:.2f} %" in card
    assert (FOLDER / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_its_files_decide_the_scores_identity(scorer: DetectorScorer) -> None:
    assert {Path(path).name for path in scorer.files()} >= {
        "config.json",
        "model.safetensors",
        "descriptors.safetensors",
    }
    named = DetectorScorer(DetectorConfig(model=str(FOLDER)))
    sha256 = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in scorer.files()}
    assert scorer.digest(sha256.__getitem__) == named.digest(sha256.__getitem__)


def test_the_stage_scores_as_the_trainer_does(scorer: DetectorScorer) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((300, 200)) for _ in range(4)]
    model, transform = load(FOLDER)
    wanted = score(model, transform, [np.asarray(image) for image in images])
    assert np.allclose(logits(scorer, images), wanted, atol=0.02)
    alone = score(load_network(FOLDER), transform, [np.asarray(image) for image in images])
    assert np.abs(wanted - alone).max() > 0.1, "the perceptron over descriptors says nothing"


def test_a_flat_placeholder_is_no_satellite_image(scorer: DetectorScorer) -> None:
    page = Image.new("RGB", (200, 120), (255, 255, 255))
    assert logits(scorer, [page])[0] < 0


def held_out(data: Path, source: str, count: int) -> list[Any]:
    """Images of a source that the training left for the test, by the shipped config."""
    config = json.loads((FOLDER / "training.json").read_text())["config"]
    files = sorted(p for p in (data / config["sources"][source]["folder"]).rglob("*") if p.suffix.lower() in SUFFIXES)
    split = Split(**config["split"])
    tested = [p for p in files if split_of(hashlib.sha256(p.read_bytes()).hexdigest(), split, config["seed"]) == "test"]
    assert len(tested) >= count
    return [Image.open(tested[at]) for at in np.linspace(0, len(tested) - 1, count).astype(int)]


@pytest.mark.skipif(not REAL, reason="CURATION_REAL_DATA is not set")
def test_it_tells_held_out_images_apart(scorer: DetectorScorer) -> None:
    data = Path(str(REAL))
    counts = {"aid": 70, "hurricane": 30, "flickr8k": 50, "intel": 50}
    images = [image for source, count in counts.items() for image in held_out(data, source, count)]
    said = logits(scorer, images) > 0
    assert said[:100].mean() >= 0.95
    assert (~said[100:]).mean() >= 0.95
