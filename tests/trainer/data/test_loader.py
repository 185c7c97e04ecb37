from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import S3
from tests.trainer.data import encoded, halves, picture, webdataset_members, write_shards, write_tar
from trainer.data import Augment, Batch, CaptionOptions, Index, Loader, LoaderOptions, State, open_index
from trainer.data.loader import PREFETCHED, SPARE
from trainer.errors import UserError

PLAIN = LoaderOptions(batch_size=4, size=16, workers=0, seed=11, augment=None)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, cache: Path) -> Index:
    return open_index(write_shards(tmp_path / "shards", [7, 1, 11, 4]), cache=cache)


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def run(index: Index, options: LoaderOptions = PLAIN, epochs: int = 1, **others: Any) -> list[Batch]:
    state = others.pop("state", None)
    return list(Loader(index, options, **others).batches(epochs, state))


def test_batches_hold_images_texts_and_keys_that_belong_together(index: Index) -> None:
    batches = run(index)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    for batch in batches:
        assert batch.images.shape == (len(batch), 3, 16, 16)
        assert batch.images.dtype is torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for image, text, key in zip(batch.images, batch.texts, batch.keys, strict=True):
            assert text == f"number {int(key)}"
            assert image.unique().tolist() == [int(key)]


def test_every_epoch_is_exact_and_in_another_order(index: Index) -> None:
    found = keys(run(index, epochs=3))
    epochs = [found[start : start + 23] for start in (0, 23, 46)]
    assert len(found) == 69
    assert all(sorted(epoch) == [f"{n:06d}" for n in range(23)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_workers_change_nothing(index: Index) -> None:
    options = replace(PLAIN, augment=Augment())
    here, there = run(index, options, 2), run(index, replace(options, workers=2), 2)
    assert keys(here) == keys(there)
    assert all(torch.equal(a.images, b.images) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("ranks", [2, 5, 23])
def test_ranks_share_every_batch_alike(index: Index, ranks: int) -> None:
    found = [run(index, epochs=2, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert len({len(each) for each in found}) == 1
    assert len({tuple(len(batch) for batch in each) for each in found}) == 1
    seen = Counter(key for each in found for key in keys(each))
    assert sum(seen.values()) == 46 - 46 % (4 * ranks) % ranks
    assert set(seen.values()) <= {1, 2}


def test_a_run_goes_on_at_the_very_sample_with_other_ranks_and_workers(index: Index) -> None:
    whole = keys(run(index, epochs=2))
    first = Loader(index, PLAIN, rank=0, ranks=1)
    stream = first.batches(2)
    before = [next(stream) for _ in range(3)]
    state = State.from_json(json.loads(json.dumps(before[-1].state.to_json())))
    assert (state.epoch, state.samples) == (0, 12)
    assert keys(run(index, epochs=2, state=state)) == whole[12:]
    assert keys(run(index, replace(PLAIN, batch_size=5, workers=2), 2, state=state)) == whole[12:]
    halves_of_it = [run(index, replace(PLAIN, batch_size=2), 2, state=state, rank=rank, ranks=2) for rank in (0, 1)]
    dealt = [key for pair in zip(*halves_of_it, strict=True) for batch in pair for key in batch.keys]
    assert dealt == whole[12:]
    assert first.steps(2, state) == len(run(index, epochs=2, state=state))


def test_a_state_of_other_shards_is_refused(index: Index, tmp_path: Path, cache: Path) -> None:
    state = run(index)[0].state
    other = open_index(write_shards(tmp_path / "others", [7, 2]), cache=cache)
    with pytest.raises(UserError, match="checkpoint's data"):
        run(other, state=state)
    assert run(index, epochs=1, state=run(index)[-1].state) == []


def test_more_ranks_than_shards_are_fine_more_than_samples_are_not(index: Index) -> None:
    assert len(run(index, rank=6, ranks=7)) == len(run(index, rank=0, ranks=7)) == 1
    with pytest.raises(UserError, match="23 samples cannot be dealt to 24 ranks"):
        Loader(index, PLAIN, rank=0, ranks=24)
    with pytest.raises(UserError, match="rank 3 of 3"):
        Loader(index, PLAIN, rank=3, ranks=3)


def damaged_shard(folder: Path, cache: Path, bad: int, good: int = 20) -> Index:
    rows = [each for number in range(good) for each in webdataset_members(number)]
    half = encoded(halves(200, 200), "JPEG")[:900]
    rows += [each for n in range(bad) for each in [(f"bad{n}.jpg", half), (f"bad{n}.txt", b"half an image")]]
    return open_index(str(write_tar(folder / "a.tar", rows)), cache=cache)


def test_damaged_samples_are_named_and_replaced(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = Loader(damaged_shard(tmp_path, cache, 3), PLAIN)
    batches = list(loader.batches(2))
    assert sum(len(batch) for batch in batches) == 46
    assert not any(key.startswith("bad") for key in keys(batches))
    assert set(loader.damaged) == {f"a.tar:bad{n}" for n in range(3)}
    assert "cannot be decoded" in loader.damaged["a.tar:bad0"]
    assert capsys.readouterr().err.count("damaged sample a.tar:bad1: ") == 1
    again = Loader(damaged_shard(tmp_path, cache, 3), replace(PLAIN, workers=2))
    assert keys(list(again.batches(2))) == keys(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_much_damage_ends_the_run_in_one_sentence(tmp_path: Path, cache: Path, workers: int) -> None:
    loader = Loader(damaged_shard(tmp_path, cache, 14, 40), replace(PLAIN, workers=workers))
    with pytest.raises(UserError, match=r"^1\d samples are damaged, and damage_limit allows 10; the first: a\.tar:bad"):
        list(loader.batches(1))
    hopeless = Loader(damaged_shard(tmp_path, cache, 6, 0), replace(PLAIN, workers=workers))
    with pytest.raises(UserError, match=r"^9 samples drawn in a row are damaged; the first: a\.tar:bad"):
        list(hopeless.batches(1))


def test_a_tar_cut_off_is_named_and_the_rest_is_used(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = write_shards(tmp_path, [3, 3])
    cut = tmp_path / "part-01.tar"
    cut.write_bytes(cut.read_bytes()[:8_000])
    assert sorted(keys(run(open_index(pattern, cache=cache)))) == [f"{n:06d}" for n in range(5)]
    assert f"damaged tar {cut}: it ends at byte 8000" in capsys.readouterr().err


def test_what_a_sample_lacks_is_said(tmp_path: Path, cache: Path) -> None:
    rows = [each for number in range(8) for each in webdataset_members(number)]
    rows += [("x.txt", b"text alone"), ("y.png", encoded(picture(1))), ("z.png", encoded(picture(1))), ("z.json", b"{")]
    loader = Loader(open_index(str(write_tar(tmp_path / "a.tar", rows)), cache=cache), PLAIN)
    list(loader.batches(1))
    assert loader.damaged["a.tar:x"] == "has no image, only txt"
    assert loader.damaged["a.tar:y"] == "has no caption"
    assert "json cannot be read" in loader.damaged["a.tar:z"]


def test_both_of_rs5ms_layouts_are_read(tmp_path: Path, cache: Path) -> None:
    now = [("k1.img_content", encoded(picture(1))), ("k1.img_name", b"k1"), ("k1.caption", b"one")]
    then = [("k2.input.image", encoded(picture(2), "JPEG")), ("k2.input.name", b"k2"), ("k2.input.caption", b"two")]
    only_json = [("k3.webp", encoded(picture(3), "WEBP")), ("k3.json", json.dumps({"caption": "three"}).encode())]
    index = open_index(str(write_tar(tmp_path / "a.tar", [*now, *then, *only_json])), cache=cache)
    [batch] = run(index)
    assert dict(zip(batch.keys, batch.texts, strict=True)) == {"k1": "one", "k2": "two", "k3": "three"}


def test_a_planted_left_and_right_caption_stays_true(tmp_path: Path, cache: Path) -> None:
    """White is on the left: captions that say so see it there in every epoch, others see it everywhere."""
    rows = []
    for number in range(12):
        said = "White lies on the left."
        part = {"text": said, "origin": "metadata", "fact": "position", "orientation_dependent": number % 2 == 0}
        rows += [
            (f"{number}.png", encoded(halves())),
            (f"{number}.txt", said.encode()),
            (f"{number}.json", json.dumps({"caption_parts": [part]}).encode()),
        ]
    index = open_index(str(write_tar(tmp_path / "a.tar", rows)), cache=cache)
    sides: dict[bool, list[bool]] = {True: [], False: []}
    for batch in run(index, replace(PLAIN, augment=Augment()), 4):
        for image, key in zip(batch.images.numpy(), batch.keys, strict=True):
            sides[int(key) % 2 == 0].append(bool(image[:, :, :8].mean() > image[:, :, 8:].mean() + 150))
    assert all(sides[True])
    assert 0 < np.mean(sides[False]) < 0.8


def test_images_and_captions_differ_by_epoch_and_repeat_by_seed(tmp_path: Path, cache: Path) -> None:
    passport = {"captions": [{"text": f"text {n}", "source": "s", "origin": "alt_text"} for n in range(5)]}
    rows = [("a.png", encoded(halves())), ("a.txt", b"a"), ("a.json", json.dumps(passport).encode())]
    index = open_index(str(write_tar(tmp_path / "a.tar", rows)), cache=cache)
    options = replace(PLAIN, batch_size=1, augment=Augment(), captions=CaptionOptions(weights={"alt_text": 1}))
    first, second = run(index, options, 6), run(index, options, 6)
    assert [b.texts for b in first] == [b.texts for b in second]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    assert len({batch.texts[0] for batch in first}) > 2
    assert not torch.equal(first[0].images, first[1].images)
    assert [b.texts for b in run(index, replace(options, seed=12), 6)] != [b.texts for b in first]


def test_the_pixels_ground_size_follows_the_view(tmp_path: Path, cache: Path) -> None:
    facts = json.dumps({"pixel_x_m": 0.5, "pixel_y_m": 0.5}).encode()
    rows = [("a.png", encoded(picture(5, 64, 64))), ("a.txt", b"A field."), ("a.json", facts)]
    index = open_index(str(write_tar(tmp_path / "a.tar", rows)), cache=cache)
    [batch] = run(index, replace(PLAIN, captions=CaptionOptions(gsd="restate")))
    assert batch.texts == ["A field. A pixel covers 2 m."]


def lengths(texts: list[str]) -> torch.Tensor:
    return torch.tensor([len(text) for text in texts])


def test_workers_tokenize(index: Index) -> None:
    for batch in run(index, replace(PLAIN, workers=2), tokenize=lengths):
        assert torch.equal(batch.tokens, lengths(batch.texts))


def test_batches_over_s3_are_the_local_ones(tmp_path: Path, cache: Path, index: Index, s3: S3) -> None:
    import s3fs

    s3fs.S3FileSystem(**s3.options).put(str(tmp_path / "shards"), s3.url("shards"), recursive=True)
    far = open_index(s3.url("shards/*.tar"), storage=s3.options, cache=cache)
    for run_length in (1, 3):
        options = replace(PLAIN, run=run_length)
        assert keys(run(far, replace(options, workers=2))) == keys(run(index, options))
        assert keys(run(far, options)) == keys(run(index, options))


def test_senseless_options_are_refused() -> None:
    for name, value in (("batch_size", 0), ("size", 0), ("run", 0), ("workers", -1), ("damage_limit", -0.1)):
        with pytest.raises(UserError, match=f"{name} is {value}"):
            LoaderOptions(**{name: value})  # type: ignore[arg-type]


def test_real_images_with_their_captions(real_data: Path, tmp_path: Path, cache: Path) -> None:
    lines = (real_data / "rs/aid/captions.jsonl").read_text().splitlines()[:30]
    assert lines
    names = sorted((real_data / "rs/aid").rglob("*.jpg"))[:30]
    rows = [
        each
        for n, name in enumerate(names)
        for each in [(f"{n}.jpg", name.read_bytes()), (f"{n}.txt", os.fsencode(name.parent.name))]
    ]
    index = open_index(str(write_tar(tmp_path / "a.tar", rows)), cache=cache)
    loader = Loader(index, LoaderOptions(batch_size=10, workers=2))
    batches = list(loader.batches(1))
    assert not loader.damaged
    assert torch.cat([batch.images for batch in batches]).float().std() > 20


def test_memory_of_batches_is_used_again_once_nobody_holds_them(index: Index) -> None:
    options = replace(PLAIN, batch_size=1, workers=2)
    places = [batch.images.data_ptr() for batch in Loader(index, options).batches(3)]
    assert len(places) == 69
    assert len(set(places)) <= 2 * PREFETCHED + SPARE
    held = [batch.images[:, :1] for batch in Loader(index, options).batches(3)]
    assert len({each.data_ptr() for each in held}) == 69
    assert [int(each.max()) for each in held] == [int(key) for key in keys(run(index, options, 3))]
