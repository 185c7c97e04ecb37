from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demo import fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    fit.ensure(made)
    return made


def test_the_clip_loads_from_its_folder_and_tells_unseen_scenes_apart(folder: Path) -> None:
    import open_clip

    unseen = fit.draw(60, 99)
    clip = open_clip.create_model(f"local-dir:{folder / 'clip'}").eval()
    scores = fit.clip_scores(clip, unseen)
    assert np.mean(scores[~unseen.overhead] < scores[unseen.overhead].min()) > 0.6


def test_a_fitted_model_is_kept(folder: Path) -> None:
    weights = folder / "clip" / "open_clip_model.safetensors"
    before = weights.stat().st_mtime_ns
    fit.ensure(folder)
    assert weights.stat().st_mtime_ns == before


def test_fitting_is_deterministic() -> None:
    examples = fit.draw(60, 5)
    first, second = (fit.fit_clip(examples, steps=3).state_dict() for _ in range(2))
    assert all(np.array_equal(first[name].numpy(), second[name].numpy()) for name in first)
