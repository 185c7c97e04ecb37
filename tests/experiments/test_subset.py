from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.subset import draw, main
from tests.trainer.data import write_shards
from trainer.data import Index, Loader, LoaderOptions, open_index


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return open_index(write_shards(tmp_path / "all", [7, 1, 11, 4]), cache=tmp_path / "cache")


def opened(folder: Path, tmp_path: Path) -> Index:
    return open_index(f"{folder}/*.tar", cache=tmp_path / "cache")


def test_a_subset_holds_so_many_samples_as_they_were(index: Index, tmp_path: Path) -> None:
    draw(index, 10, 3, tmp_path / "some", each=4)
    found = opened(tmp_path / "some", tmp_path)
    assert not found.damage
    assert json.loads((tmp_path / "some/sizes.json").read_text()) == {
        "subset-0000.tar": 4,
        "subset-0001.tar": 4,
        "subset-0002.tar": 2,
    }
    whole = dict(zip(index.keys.to_pylist(), index.read(range(23)), strict=True))
    some = dict(zip(found.keys.to_pylist(), found.read(range(10)), strict=True))
    assert len(some) == 10
    assert all(whole[key] == block for key, block in some.items())
    [batch] = Loader(found, LoaderOptions(batch_size=10, size=8, workers=0, augment=None)).batches(1)
    assert sorted(batch.keys) == sorted(some)


def test_the_seed_alone_decides(index: Index, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw(index, 8, seed, tmp_path / name)
    a, b, c = ((tmp_path / name / "subset-0000.tar").read_bytes() for name in "abc")
    assert a == b != c


def test_every_sample_is_as_likely_as_another(index: Index, tmp_path: Path) -> None:
    counts = dict.fromkeys(index.keys.to_pylist(), 0)
    for seed in range(100):
        draw(index, 5, seed, tmp_path / "out")
        for key in opened(tmp_path / "out", tmp_path).keys.to_pylist():
            counts[key] += 1
    assert sum(counts.values()) == 500
    assert min(counts.values()) > 5  # 21.7 expected, standard deviation 4.1
    assert max(counts.values()) < 39


def test_mistakes_are_one_sentence(index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data, count, said in (("all/*.tar", "24", "24 samples of 23"), ("none/*.tar", "1", "no shard matches")):
        assert main(["--data", str(tmp_path / data), "--count", count, "--out", str(tmp_path / "o")]) == 2
        assert said in capsys.readouterr().err
