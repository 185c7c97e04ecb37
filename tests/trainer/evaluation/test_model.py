from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.errors import UserError
from trainer.evaluation.model import Choice, load

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3)).astype(np.uint8))


def weights(clip: Path) -> dict[str, Any]:
    return load_file(clip / "open_clip_model.safetensors")


def in_itra(key: str) -> str:
    """ITRA's name of a weight: towers are two backbones, the logit scale stands outside."""
    if key.startswith("visual."):
        return key.replace("visual.", "image_backbone.", 1)
    return key if key == "logit_scale" else f"text_backbone.{key}"


@pytest.mark.parametrize("form", ["plain", "state_dict", "itra"])
def test_checkpoints_of_every_form_are_the_same_model(clip: Path, tmp_path: Path, form: str) -> None:
    state = weights(clip)
    if form == "itra":
        state = {f"module.{in_itra(key)}": value for key, value in state.items()}
    torch.save(state if form == "plain" else {"epoch": 5, "state_dict": state}, tmp_path / "c.pt")
    wanted = load(Choice(model=str(clip)))
    found = load(Choice(model=str(clip), checkpoint=tmp_path / "c.pt"))
    assert np.array_equal(found.images([PICTURE]), wanted.images([PICTURE]))
    assert np.array_equal(found.texts(["a river"]), wanted.texts(["a river"]))


def test_quick_gelu_changes_the_features_and_is_never_guessed(clip: Path, tmp_path: Path) -> None:
    torch.save(weights(clip), tmp_path / "c.pt")
    with pytest.raises(UserError, match="say --quick-gelu yes"):
        load(Choice(model="ViT-B-32", checkpoint=tmp_path / "c.pt"))
    exact, quick = (load(Choice(model=str(clip), quick_gelu=said)).images([PICTURE])[0] for said in (False, True))
    assert np.abs(exact - quick).max() > 1e-4
    shutil.copytree(clip, tmp_path / "quick")
    config = json.loads((clip / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (tmp_path / "quick" / "open_clip_config.json").write_text(json.dumps(config))
    assert np.array_equal(load(Choice(model=str(tmp_path / "quick"))).images([PICTURE])[0], quick)


def test_users_mistakes_are_sentences(clip: Path, tmp_path: Path) -> None:
    state = weights(clip)
    torch.save({key: value for key, value in state.items() if key != "ln_final.bias"}, tmp_path / "short.pt")
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "empty").mkdir()
    for choice, sentence in (
        (Choice(model=str(clip), checkpoint=tmp_path / "short.pt"), r"of another model .*ln_final\.bias is missing"),
        (Choice(model=str(clip), checkpoint=tmp_path / "bad.pt"), r"bad\.pt: cannot be read"),
        (Choice(model=str(clip), checkpoint=tmp_path / "none.pt"), r"none\.pt: the file was not found"),
        (Choice(model="ViT-B-32"), "its weights are wanted"),
        (Choice(model="ViT-Z-99", pretrained="x"), "no open_clip name, no hub id"),
        (Choice(model=str(tmp_path / "empty")), r"no open_clip_config\.json"),
    ):
        with pytest.raises(UserError, match=sentence):
            load(choice)


def test_a_model_that_gives_nan_is_refused(clip: Path, tmp_path: Path) -> None:
    state = weights(clip)
    state["text_projection"] = torch.full_like(state["text_projection"], float("nan"))
    torch.save(state, tmp_path / "nan.pt")
    encoder = load(Choice(model=str(clip), checkpoint=tmp_path / "nan.pt"))
    with pytest.raises(UserError, match="not finite"):
        encoder.texts(["a river"])
