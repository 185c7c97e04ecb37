from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from demo import fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    fit.ensure(made)
    return made


def test_models_load_from_their_folders_and_tell_unseen_scenes_apart(folder: Path) -> None:
    import open_clip
    import timm

    unseen = fit.draw(60, 99)
    clip = open_clip.create_model(f"local-dir:{folder / 'clip'}").eval()
    detector = timm.create_model(f"local-dir:{folder / 'detector'}", pretrained=True).eval()
    scores = fit.detector_scores(detector, unseen)
    assert scores[unseen.overhead].min() > scores[~unseen.overhead].max()
    scores = fit.clip_scores(clip, unseen)
    assert np.mean(scores[~unseen.overhead] < scores[unseen.overhead].min()) > 0.6


def test_fitted_models_are_kept(folder: Path) -> None:
    weights = folder / "detector" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    fit.ensure(folder)
    assert weights.stat().st_mtime_ns == before
    assert json.loads((folder / "detector" / "config.json").read_text())["label_names"] == ["other", "rs"]


def test_fitting_is_deterministic() -> None:
    examples = fit.draw(60, 5)
    first, second = (fit.fit_detector(examples, steps=3).state_dict() for _ in range(2))
    assert all(np.array_equal(first[name].numpy(), second[name].numpy()) for name in first)
