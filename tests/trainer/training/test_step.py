from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainer.training import ALONE, CONFIG, batch, halved, made, write_model
from trainer.training.loss import contrastive, text_ids
from trainer.training.model import Clip
from trainer.training.step import LARGEST_SCALE, Average, _draw_alike, gradients, learning_rate, optimizer_for, take

OFF = torch.amp.GradScaler("cpu", enabled=False)


def gradient(clip: Clip) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in clip.model.named_parameters() if weight.grad is not None}


def found(clip: Clip, size: int, texts: list[str] | None = None) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients) of twelve samples in chunks of `size`."""
    clip.model.zero_grad()
    clip.train()
    whole = batch(clip, 12, texts=texts)
    loss = gradients(clip, halved(whole, size), text_ids(whole.texts), ALONE, OFF, step=3)
    return float(loss), gradient(clip)


@pytest.mark.parametrize("same_text", ["negative", "positive"])
def test_chunks_have_the_gradients_of_the_whole_batch(tiny: Path, same_text: str) -> None:
    clip = made(tiny, same_text=same_text)
    texts = [f"a field of kind {at % 5}" for at in range(12)]
    loss, whole = found(clip, 12, texts)
    for size in (6, 4, 5):
        chunked, parts = found(clip, size, texts)
        assert chunked == pytest.approx(loss, abs=1e-5)
        assert parts.keys() == whole.keys()
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)


def test_a_chunk_draws_the_same_dropout_in_both_passes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", vision_cfg=CONFIG["vision_cfg"] | {"patch_dropout": 0.5})
    clip = made(model)
    loss, parts = found(clip, 4)
    clip.model.zero_grad()
    whole = batch(clip, 12)
    features = []
    for number, part in enumerate(halved(whole, 4)):
        _draw_alike(clip, ALONE, 3, number)
        features.append(clip.encode(part.images, part.tokens))
    sides = [torch.cat(side) for side in zip(*features, strict=True)]
    held = contrastive(sides[0], sides[1], clip.model.logit_scale.exp(), ALONE)
    held.backward()
    assert loss == pytest.approx(float(held.detach()), abs=1e-5)
    for name, wanted in gradient(clip).items():
        torch.testing.assert_close(parts[name], wanted, rtol=1e-4, atol=1e-5)
    assert found(clip, 4)[0] == loss
    _draw_alike(clip, ALONE, 4, 0)
    images, texts = clip.encode(whole.images, whole.tokens)
    assert float(contrastive(images, texts, clip.model.logit_scale.exp(), ALONE).detach()) != loss


def test_activations_computed_again_give_the_same_gradients(tiny: Path) -> None:
    loss, whole = found(made(tiny), 12)
    again, parts = found(made(tiny, recompute=True), 6)
    assert again == pytest.approx(loss, abs=1e-5)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)


def test_running_statistics_move_once_a_step(tmp_path: Path) -> None:
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    clip = made(write_model(tmp_path / "resnet", vision_cfg=vision))
    name = "visual.bn1.num_batches_tracked"
    found(clip, 6)
    assert int(clip.model.state_dict()[name]) == 2
    found(clip, 12)
    assert int(clip.model.state_dict()[name]) == 3


def test_gains_biases_and_the_temperature_do_not_decay(tiny: Path) -> None:
    clip = made(tiny, weight_decay=0.3)
    decays = {id(w): group["weight_decay"] for group in optimizer_for(clip).param_groups for w in group["params"]}
    named = {name: decays[id(weight)] for name, weight in clip.model.named_parameters()}
    assert named["logit_scale"] == named["ln_final.weight"] == named["visual.ln_pre.bias"] == 0
    assert named["transformer.resblocks.0.attn.in_proj_bias"] == 0
    assert named["text_projection"] == named["token_embedding.weight"] == named["visual.conv1.weight"] == 0.3
    assert len(named) == len(decays)


def test_the_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    rates = [learning_rate(step, 12, 2.0, 4) for step in range(12)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[8] == pytest.approx(1.0)
    assert 0 < rates[11] < 0.1
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(1, 2, 2.0, 4) == 2.0


def test_a_step_clips_the_gradient_and_tells_its_norm(tiny: Path) -> None:
    clip = made(tiny, clip=0.01, warmup=0)
    clip.train()
    some = batch(clip, 8, texts=["a lake"] * 3 + [f"hill {at}" for at in range(5)])
    told = take(clip, optimizer_for(clip), OFF, [some], ALONE, step=0, steps=5)
    loss, repeats, norm = told.values.tolist()
    assert loss > 0
    assert norm > 0.01
    assert repeats == 3 / 8
    held = torch.nn.utils.get_total_norm([weight.grad for weight in clip.trained if weight.grad is not None])
    assert float(held) == pytest.approx(0.01, rel=1e-3)
    assert (told.lr, told.keys) == (clip.config.lr, some.keys)


def test_cosines_are_never_multiplied_by_more_than_a_hundred(tiny: Path) -> None:
    clip = made(tiny)
    with torch.no_grad():
        clip.model.logit_scale.fill_(7.0)
    told = take(clip, optimizer_for(clip), OFF, [batch(clip, 4)], ALONE, step=0, steps=5)
    assert clip.model.logit_scale.item() == pytest.approx(LARGEST_SCALE)
    assert float(told.scale) == pytest.approx(100)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_near_to_single(tiny: Path, precision: str) -> None:
    losses = []
    for kind in ("fp32", precision):
        clip = made(tiny, precision=kind)
        scaler = torch.amp.GradScaler("cpu", enabled=kind == "fp16")
        told = take(clip, optimizer_for(clip), scaler, [batch(clip, 8)], ALONE, step=0, steps=5)
        losses.append(float(told.values[0]))
        assert all(weight.dtype is torch.float32 for weight in clip.trained)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_mean_of_the_weights_follows_them_and_changes_places(tiny: Path) -> None:
    clip = made(tiny, ema=0.5)
    mean = Average.of(clip)
    assert mean is not None
    before = clip.trained[0].detach().clone()
    with torch.no_grad():
        clip.trained[0].add_(1.0)
    mean.follow(clip, step=0)
    torch.testing.assert_close(mean.weights[0], before + 0.9)
    mean.follow(clip, step=100)
    torch.testing.assert_close(mean.weights[0], before + 0.95)
    mean.swap(clip)
    torch.testing.assert_close(clip.trained[0].detach(), before + 0.95)
    torch.testing.assert_close(mean.weights[0], before + 1.0)
    assert Average.of(made(tiny)) is None
