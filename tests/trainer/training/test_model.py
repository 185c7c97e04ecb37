from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.training import batch, made, write_model
from trainer.adapters import NAME
from trainer.errors import UserError
from trainer.evaluation.model import Choice, load
from trainer.training.model import encode_text, export, frozen, replace_with


def test_texts_cut_behind_their_end_have_the_same_features_and_gradients(tiny: Path) -> None:
    clip = made(tiny)
    tokens = batch(clip, 6).tokens
    assert int(tokens.argmax(dim=-1).max()) < 20
    found = []
    for encode in (lambda: encode_text(clip.model, tokens, clip.device), lambda: clip.model.encode_text(tokens)):
        clip.model.zero_grad()
        features = encode()
        features.square().sum().backward()
        weights = [each.grad.clone() for each in clip.model.transformer.parameters() if each.grad is not None]
        found.append((features.detach(), *weights))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_folder_loads_in_open_clip_and_in_the_evaluation(tiny: Path, tmp_path: Path) -> None:
    clip = made(tiny, quick_gelu=True, normalisation="rs5m")
    with torch.no_grad():
        clip.model.logit_scale.add_(0.5)
    export(clip, tmp_path)
    folder = f"local-dir:{tmp_path / 'model'}"
    assert open_clip.get_model_config(folder)["quick_gelu"] is True
    model = open_clip.create_model(folder)
    assert model.visual.preprocess_cfg["mean"] == pytest.approx([0.406, 0.423, 0.390], abs=1e-3)
    state = torch.load(tmp_path / "best.pt", weights_only=True)
    own = clip.model.state_dict()
    for found in (model.state_dict(), state):
        assert set(found) == set(own)
        assert all(torch.equal(found[name], own[name]) for name in own)
    judged = load(Choice(model=str(tmp_path / "model"), device="cpu"))
    tokens = judged.tokenizer(["a lake"])
    clip.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(judged.model.encode_text(tokens), clip.model.encode_text(tokens))


def test_quick_gelu_is_another_model_than_gelu(tiny: Path) -> None:
    features = []
    for quick in (True, False):
        clip = made(tiny, quick_gelu=quick)
        assert clip.described["quick_gelu"] is quick
        with torch.no_grad():
            features.append(clip.encode(*inputs(clip))[1])
    assert float((features[0] - features[1]).abs().max()) > 1e-4


def inputs(clip: Any) -> tuple[torch.Tensor, torch.Tensor]:
    some = batch(clip, 3)
    return some.images, some.tokens


def test_a_bare_state_dict_of_a_model_with_two_activations_needs_it_said(tmp_path: Path) -> None:
    torch.save({"logit_scale": torch.ones(())}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="say --quick-gelu yes"):
        made(Path("ViT-B-32"), checkpoint=str(tmp_path / "weights.pt"))


@pytest.mark.parametrize("dialect", ["plain", "itra", "safetensors"])
def test_a_training_begins_with_a_checkpoint(tiny: Path, tmp_path: Path, dialect: str) -> None:
    other = made(write_model(tmp_path / "other", seed=5)).model.state_dict()
    path = tmp_path / "weights.pt"
    if dialect == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(other, path)
    elif dialect == "itra":
        renamed = {
            f"module.image_backbone.{name.removeprefix('visual.')}"
            if name.startswith("visual.")
            else f"module.text_backbone.{name}": tensor
            for name, tensor in other.items()
        }
        torch.save({"state_dict": renamed}, path)
    else:
        torch.save(other, path)
    found = made(tiny, checkpoint=str(path)).model.state_dict()
    assert all(torch.equal(found[name], other[name]) for name in other)


def test_a_checkpoint_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = made(write_model(tmp_path / "other", embed_dim=24)).model.state_dict()
    torch.save(other, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"--checkpoint .*weights.pt: of another model than .*has another size"):
        made(tiny, checkpoint=str(tmp_path / "weights.pt"))


def test_an_untrained_model_is_drawn_from_its_seed() -> None:
    name = Path("RN50")
    states = [made(name, seed=seed).model.state_dict()["text_projection"] for seed in (1, 1, 2)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_keeps_still_and_the_other_is_trained(tiny: Path, tower: str) -> None:
    clip = made(tiny, freeze=tower)
    still = {name for name, weight in clip.model.named_parameters() if not weight.requires_grad}
    image = {name for name, _ in clip.model.named_parameters() if name.startswith("visual.")}
    rest = {name for name, _ in clip.model.named_parameters()} - image - {"logit_scale"}
    assert still == (image if tower == "image" else rest)
    clip.train()
    assert clip.model.visual.training is (tower == "text")
    assert clip.model.transformer.training is (tower == "image")


def test_towers_of_a_custom_text_model_freeze_as_modules(tmp_path: Path) -> None:
    clip = made(write_model_custom(tmp_path), freeze="text")
    assert frozen(clip.model, "text") == [clip.model.text]
    assert not any(weight.requires_grad for weight in clip.model.text.parameters())
    with torch.no_grad():
        assert clip.encode(*inputs(clip))[1].shape == (3, 16)


def write_model_custom(folder: Path) -> Path:
    """The same model with a text tower of its own."""
    from demo.models import save_open_clip
    from tests.trainer.training import CONFIG

    config = CONFIG | {"custom_text": True}
    model = open_clip.model.CustomTextCLIP(CONFIG["embed_dim"], CONFIG["vision_cfg"], CONFIG["text_cfg"])
    return save_open_clip(model, folder / "custom", config)


def test_lora_is_merged_and_other_parts_stand_beside(tiny: Path, tmp_path: Path) -> None:
    from trainer.adapters import PeftOptions

    for kind in ("lora", "pfeiffer"):
        clip = made(tiny, peft=PeftOptions(kind=kind))
        with torch.no_grad():
            for weight in clip.trained:
                weight.add_(0.05)
        out = tmp_path / kind
        export(clip, out)
        clip.model.eval()
        judged = load(Choice(model=str(out / "model"), device="cpu"))
        tokens = judged.tokenizer(["a lake", "two lakes"])
        with torch.no_grad():
            ours = clip.model.encode_text(tokens)
            torch.testing.assert_close(judged.model.encode_text(tokens), ours, rtol=1e-4, atol=1e-5)
        assert (out / "model" / NAME).exists() is (kind == "pfeiffer")
        plain = load_file(out / "model" / "open_clip_model.safetensors")
        assert set(plain) == set(open_clip.create_model(f"local-dir:{tiny}").state_dict())


def test_a_tower_cannot_be_frozen_beside_peft(tiny: Path) -> None:
    from trainer.adapters import PeftOptions

    with pytest.raises(UserError, match=r"freeze is 'text': with peft.kind 'lora' say peft.towers"):
        made(tiny, freeze="text", peft=PeftOptions(kind="lora"))


def test_a_file_is_the_old_one_where_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"old")
    (tmp_path / "weights.pt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):
        replace_with(path, lambda file: torch.save({"a": torch.zeros(100_000)}, file))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
