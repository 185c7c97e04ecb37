from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainer.detector import positives
from trainer.detector.batches import DRAWN, LAND, Batches, chosen, read_pool
from trainer.detector.config import Config, Source
from trainer.detector.images import Picture
from trainer.detector.negatives import KINDS


def picture(source: str, label: int) -> Picture:
    return Picture(source=source, label=label, split="train", name="", pixels=np.zeros((40, 40, 3), np.uint8))


def test_half_of_a_batch_is_remote_sensing(toy: Config, toy_data: Path) -> None:
    pool = chosen(read_pool(toy, toy_data), "train")
    batches = Batches(pool, toy)
    images, rows = batches[0]
    assert images.shape == (16, 32, 32, 3)
    assert sum(pool[row].label for row in rows) == 8
    assert len(batches) == toy.training.prepared


def test_a_batch_is_the_same_whoever_makes_it(toy: Config, toy_data: Path) -> None:
    batches = Batches(chosen(read_pool(toy, toy_data), "train"), toy)
    pairs = list(zip(batches.loader(0), batches.loader(2), strict=True))
    assert len(pairs) == toy.training.prepared
    for number, (one, two) in enumerate(pairs):
        assert (one[0] == two[0]).all()
        assert (one[1] == two[1]).all()
        assert (one[0].numpy() == batches[number][0]).all()


def test_small_and_weighted_sources_get_more_than_their_share_and_drawn_kinds_what_the_config_says(toy: Config) -> None:
    pool = [picture("large", 1)] * 900 + [picture("small", 1)] * 100
    pool += [picture("photos", 0)] * 100 + [picture(DRAWN + "logo", 0)] * 5 + [picture(DRAWN + "table", 0)] * 20
    sources = {
        "large": Source(folder="l", label="rs"),
        "small": Source(folder="s", label="rs", weight=3.0),
        "photos": Source(folder="p", label="other"),
    }
    training = replace(toy.training, balance=0.5)
    config = replace(toy, sources=sources, training=training, drawn=replace(toy.drawn, share=0.3))
    chances = Batches(pool, config).chances
    rs, other = chances[:1000], chances[1000:]
    assert rs[900:].sum() / rs.sum() == pytest.approx(0.5)
    assert other[100:].sum() / other.sum() == pytest.approx(0.3)
    assert other[100:105].sum() == pytest.approx(other[105:].sum())


def test_drawn_land_is_a_share_of_the_positives_and_only_to_train_on(undrawn: Config, toy_data: Path) -> None:
    config = replace(undrawn, drawn=replace(undrawn.drawn, per_kind=2, positives=0.2))
    pool = read_pool(config, toy_data)
    land = [picture for picture in pool if picture.source.startswith(LAND)]
    assert len(land) == 2 * len(positives.KINDS)
    assert {(picture.label, picture.split) for picture in land} == {(1, "train")}
    train = chosen(pool, "train")
    chances = Batches(train, config).chances
    of_class = np.array([picture.label == 1 for picture in train])
    of_land = np.array([picture.source.startswith(LAND) for picture in train])
    assert chances[of_land].sum() / chances[of_class].sum() == pytest.approx(0.2)
    assert not any(picture.source.startswith(LAND) for picture in read_pool(undrawn, toy_data))


def test_what_is_left_out_is_not_there(toy: Config, toy_data: Path) -> None:
    pool = read_pool(toy, toy_data)
    kind = DRAWN + next(iter(KINDS))
    found = {p.source for part in ("train", "validation", "test") for p in chosen(pool, part, {"fields", kind})}
    assert found == {p.source for p in pool} - {"fields", kind}
    with pytest.raises(ValueError, match="none of"):
        chosen(pool, "exam")
