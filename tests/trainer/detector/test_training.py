from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.trainer.detector.conftest import ONE
from trainer.detector import metrics
from trainer.detector.augment import LUMA
from trainer.detector.batches import chosen, read_pool
from trainer.detector.config import Config
from trainer.detector.evaluation import labels_of
from trainer.detector.model import build, divide_logits, load, save, score, silence_dead_channels, transform_for
from trainer.detector.prepared import prepare
from trainer.detector.training import Machine, State, follow, learning_rate, train
from trainer.detector.views import askew, greyed, turned, zoomed
from trainer.errors import UserError


def run(config: Config, data: Path, folder: Path, stop_after: int | None = None, machine: Machine = ONE) -> State:
    pool = read_pool(config, data)
    prepared = prepare(chosen(pool, "train"), config, folder / "prepared", machine)
    return train(prepared, chosen(pool, "validation"), config, folder, machine, stop_after=stop_after)


def test_a_separable_toy_world_is_learned(undrawn: Config, toy_data: Path, tmp_path: Path) -> None:
    config = replace(undrawn, training=replace(undrawn.training, steps=80, checkpoint_every=80))
    state = run(config, toy_data, tmp_path)
    unseen = [p for p in read_pool(config, toy_data) if p.split == "test"]
    scores = score(state.average, transform_for(config.model), (p.pixels for p in unseen))
    assert metrics.auc(scores, labels_of(unseen)) > 0.95
    assert state.history[-1]["loss"] < 0.69


def test_a_training_cut_in_two_ends_at_the_same_weights(toy: Config, toy_data: Path, tmp_path: Path) -> None:
    whole = run(toy, toy_data, tmp_path / "whole")
    run(toy, toy_data, tmp_path / "cut", stop_after=10)
    cut = run(toy, toy_data, tmp_path / "cut")
    assert whole.step == cut.step == toy.training.steps
    for one, two in ((whole.average, cut.average), (whole.model, cut.model)):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_another_seed_gives_other_weights_and_no_other_checkpoint(toy: Config, toy_data: Path, tmp_path: Path) -> None:
    run(toy, toy_data, tmp_path, stop_after=1)
    with pytest.raises(UserError, match="checkpoint is of another training"):
        run(replace(toy, seed=toy.seed + 1), toy_data, tmp_path)


def test_timm_loads_what_was_saved_with_the_same_log_odds(toy: Config, tmp_path: Path) -> None:
    model = build(toy.model, 0).eval()
    folder = save(model, toy.model, tmp_path / "model")
    loaded, transform = load(folder)
    assert loaded.default_cfg["label_names"] == ["other", "rs"]
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half())
    pixels = [np.random.default_rng(n).integers(0, 255, (50, 70, 3), dtype=np.uint8) for n in range(5)]
    ours = score(model, transform_for(toy.model), pixels)
    assert np.allclose(ours, score(loaded, transform, pixels), atol=1e-5)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        outputs = plain(transform(Image.fromarray(pixels[0]))[None])[0]
    assert float(outputs[1] - outputs[0]) == pytest.approx(ours[0], abs=1e-4)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json and model.safetensors are wanted"):
        load(tmp_path)


def test_the_temperature_divides_the_log_odds(toy: Config) -> None:
    model = build(toy.model, 0).eval()
    pixels = [np.random.default_rng(n).integers(0, 255, (40, 40, 3), dtype=np.uint8) for n in range(3)]
    before = score(model, transform_for(toy.model), pixels)
    divide_logits(model, 2.5)
    assert np.allclose(score(model, transform_for(toy.model), pixels), before / 2.5, atol=1e-5)


def test_a_channel_that_never_varied_cannot_explode(toy: Config) -> None:
    model = build(replace(toy.model, architecture="mobilenetv4_conv_small"), 0).eval()
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for layer in layers[:2]:
            assert layer.running_var is not None
            layer.running_var[0] = 1e-9
            layer.weight[0] = 30.0
    pixels = [np.random.default_rng(n).integers(0, 255, (40, 40, 3), dtype=np.uint8) for n in range(3)]
    assert np.abs(score(model, transform_for(toy.model), pixels)).max() > 100
    assert silence_dead_channels(model) == 2
    assert np.abs(score(model, transform_for(toy.model), pixels)).max() < 1
    assert not layers[0].weight[0]
    assert layers[0].weight[1:].all()


def test_a_new_model_is_undecided(toy: Config) -> None:
    pixels = [np.random.default_rng(n).integers(0, 255, (40, 40, 3), dtype=np.uint8) for n in range(8)]
    for architecture in ("test_resnet", "mobilenetv4_conv_small"):
        model = build(replace(toy.model, architecture=architecture), 0).eval()
        assert np.abs(score(model, transform_for(toy.model), pixels)).max() < 1


def test_an_unknown_architecture_is_named(toy: Config) -> None:
    with pytest.raises(UserError, match="'resnot'"):
        build(replace(toy.model, architecture="resnot"), 0)


def test_a_batch_takes_all_eight_symmetries() -> None:
    image = torch.arange(12).reshape(1, 2, 2, 3)
    found = {tuple(turned(image, np.random.default_rng(seed)).flatten().tolist()) for seed in range(100)}
    assert len(found) == 8


def test_the_average_moves_by_its_decay() -> None:
    average, model = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(4.0)  # type: ignore[union-attr]
        model.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    follow(average, model, 0.75)
    assert average.weight.tolist() == [1.5, 1.5]
    assert average.running_mean.tolist() == [1.0, 1.0]  # type: ignore[union-attr]
    assert average.num_batches_tracked.item() == 7  # type: ignore[union-attr]


def test_the_learning_rate_warms_up_and_ends_at_a_hundredth(toy: Config) -> None:
    rates = [learning_rate(step, toy) for step in range(toy.training.steps + 1)]
    assert max(rates) == rates[toy.training.warmup] == toy.training.lr
    assert rates[0] < rates[1] <= toy.training.lr
    assert rates[-1] == pytest.approx(toy.training.lr / 100)


def test_the_first_steps_see_smaller_pictures(toy: Config) -> None:
    config = replace(toy, training=replace(toy.training, early_share=0.5, early_size=24))
    half = toy.training.steps // 2
    assert [config.size_at(step) for step in (0, half - 1, half)] == [24, 24, 32]


def test_the_early_size_changes_what_is_learned(toy: Config, toy_data: Path, tmp_path: Path) -> None:
    early = replace(toy, training=replace(toy.training, early_share=0.5, early_size=24))
    one, two = (run(config, toy_data, tmp_path / str(n), stop_after=1) for n, config in enumerate((toy, early)))
    assert one.history[-1]["loss"] != two.history[-1]["loss"]


def test_asking_for_a_gpu_that_is_not_there_is_a_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        Machine.found("cuda", 1, None)


def test_a_zoom_leaves_a_window_of_the_batch() -> None:
    whole = torch.arange(2 * 3 * 40 * 40).reshape(2, 3, 40, 40)
    rng = np.random.default_rng(0)
    sides = set()
    for _ in range(30):
        window = zoomed(whole, rng, 0.5)
        sides.add(window.shape[-1])
        first = int(window[0, 0, 0, 0])
        top, left = divmod(first, 40)
        side = window.shape[-1]
        assert torch.equal(window, whole[..., top : top + side, left : left + side])
    assert min(sides) >= 20
    assert len(sides) > 5
    assert zoomed(whole, rng, 1.0).shape == whole.shape


@pytest.mark.parametrize("degrees", [-45.0, -20.0, 30.0])
def test_a_batch_askew_is_the_plane_turned_without_corners(degrees: float) -> None:
    down, across = torch.meshgrid(*2 * [torch.linspace(-1, 1, 129)], indexing="ij")
    found = askew(torch.stack([down, across, torch.ones_like(down)])[None], degrees)[0]
    assert torch.allclose(found[2], torch.ones_like(down)), "nothing from beyond the border"
    middle = found[:2, 64, 64]
    right = found[:2, 64, 100] - middle
    assert torch.allclose(middle, torch.zeros(2), atol=0.02)
    assert float(torch.rad2deg(torch.atan2(right[0], right[1]))) == pytest.approx(degrees, abs=1.0)
    assert float(found[:2].abs().max()) > 0.95, "as much of the picture as fits"


def test_a_share_of_a_batch_is_grey_and_the_rest_untouched() -> None:
    inputs = torch.rand(400, 3, 4, 4)
    found = greyed(inputs, np.random.default_rng(0), 0.25)
    is_grey = (found[:, 0] == found[:, 1]).all(dim=(1, 2))
    assert 60 < int(is_grey.sum()) < 140
    assert torch.equal(found[~is_grey], inputs[~is_grey])
    luma = LUMA[0] * inputs[:, 0] + LUMA[1] * inputs[:, 1] + LUMA[2] * inputs[:, 2]
    assert torch.allclose(found[is_grey, 0], luma[is_grey], atol=1e-6)
    assert torch.equal(greyed(inputs, np.random.default_rng(0), 0.0), inputs)
