from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from descriptors import WIDTH, describe
from tests.trainer.detector.conftest import ONE
from trainer.detector.batches import Batches, chosen, read_pool
from trainer.detector.config import Config
from trainer.detector.prepared import prepare
from trainer.errors import UserError


def test_batches_are_made_once_and_again_when_the_config_changes(toy: Config, toy_data: Path, tmp_path: Path) -> None:
    pool = chosen(read_pool(toy, toy_data), "train")
    made = prepare(pool, toy, tmp_path / "p", ONE)
    assert made.images.shape == (6 * 16, 32, 32, 3)
    assert made.features is None
    images, picks = Batches(pool, toy)[2]
    assert (made.images[32:48] == images).all()
    assert made.labels[32:48].tolist() == [pool[pick].label for pick in picks]
    written = (tmp_path / "p" / "images.npy").stat().st_mtime_ns
    assert prepare(pool, toy, tmp_path / "p", ONE).digest == made.digest
    assert (tmp_path / "p" / "images.npy").stat().st_mtime_ns == written
    other = prepare(pool, replace(toy, training=replace(toy.training, harder=0.9)), tmp_path / "p", ONE)
    assert other.digest != made.digest
    assert (tmp_path / "p" / "images.npy").stat().st_mtime_ns != written


def test_descriptors_are_of_the_pictures_as_they_are_and_of_another_view(
    toy: Config, toy_data: Path, tmp_path: Path
) -> None:
    pool = chosen(read_pool(toy, toy_data), "train")
    made = prepare(pool, toy, tmp_path / "p", ONE)
    assert made.described is not None
    assert made.described.shape == (2, len(made.images), WIDTH)
    pixels = torch.from_numpy(made.images[20:30]).permute(0, 3, 1, 2).float() / 255
    assert np.allclose(made.described[0, 20:30], describe(pixels).numpy(), atol=1e-4)
    assert np.isfinite(made.described).all()
    assert np.abs(made.described[1] - made.described[0]).max(1).min() > 0, "no view is the picture itself"
    without = replace(toy, model=replace(toy.model, descriptors=False))
    assert prepare(pool, without, tmp_path / "q", ONE).described is None


def test_half_of_a_draw_is_of_each_class_and_nothing_of_what_is_left_out(
    toy: Config, toy_data: Path, tmp_path: Path
) -> None:
    pool = chosen(read_pool(toy, toy_data), "train")
    everything = prepare(pool, toy, tmp_path, ONE)
    without = prepare(pool, toy, tmp_path, ONE, {"fields"})
    assert without.digest != everything.digest
    sources = np.array([picture.source for picture in pool])[np.load(tmp_path / "picks.npy")]
    drawn = np.concatenate([without.draw(np.random.default_rng(seed), 16) for seed in range(20)])
    assert everything.labels[drawn].sum() == 20 * 8
    assert "fields" not in sources[drawn]
    assert {"roofs", "people", "pets"} <= set(sources[drawn])
    assert "fields" in sources[everything.rows]


def test_one_class_alone_is_refused(toy: Config, toy_data: Path, tmp_path: Path) -> None:
    pool = chosen(read_pool(toy, toy_data), "train")
    with pytest.raises(UserError, match="pictures of both classes"):
        prepare(pool, toy, tmp_path, ONE, {"fields", "roofs"})
