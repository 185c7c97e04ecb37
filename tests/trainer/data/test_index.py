from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.shards import write_tar as write_ours
from tests.conftest import S3
from tests.trainer.data import encoded, picture, webdataset_members, write_shards, write_tar
from trainer.data.files import expand, merge
from trainer.data.index import Index, open_index
from trainer.data.tars import contents
from trainer.errors import UserError


def texts(index: Index) -> list[str]:
    blocks = index.read(range(len(index)))
    return [contents(block)["txt"].decode() if isinstance(block, bytes) else str(block) for block in blocks]


def our_shards(root: Path, layout: str = "webdataset") -> Path:
    """Two tars and their index, written by the pipeline's own code."""
    rows = []
    (root / "shards" / "train").mkdir(parents=True)
    for shard in range(2):
        samples = [
            ({"key": f"{n:032x}", "caption": f"number {n}", "format": "png", "sha256": ""}, encoded(picture(n)))
            for n in range(shard * 3, shard * 3 + 3)
        ]
        name = f"shards/train/our-train-{shard:04d}.tar"
        with (root / name).open("wb") as file:
            rows += write_ours(file, samples, name, layout)  # type: ignore[arg-type]
    pq.write_table(pa.Table.from_pylist(rows), root / "shards" / "index.parquet")
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_our_shards_are_read_by_their_own_index(tmp_path: Path, cache: Path) -> None:
    root = our_shards(tmp_path)
    index = open_index(str(root / "shards/train/*.tar"), cache=cache)
    assert texts(index) == [f"number {n}" for n in range(6)]
    assert index.keys[4].as_py() == f"{4:032x}"
    assert index.name(4) == f"our-train-0001.tar:{4:032x}"
    assert not cache.exists()


def test_an_index_that_is_not_of_this_tar_is_not_believed(tmp_path: Path, cache: Path) -> None:
    root = our_shards(tmp_path)
    first, second = sorted((root / "shards/train").iterdir())
    first.write_bytes(first.read_bytes()[:8_000])
    with second.open("ab") as file:
        file.write(bytes(20_480))
    index = open_index(str(root / "shards/train/*.tar"), cache=cache)
    assert texts(index) == [f"number {n}" for n in (0, 1, 3, 4, 5)]
    assert len(list(cache.glob("*.parquet"))) == 2
    assert index.damage[0].startswith(f"{first}: it ends at byte")


def test_rs5m_layout_is_read(tmp_path: Path, cache: Path) -> None:
    index = open_index(str(our_shards(tmp_path, "rs5m") / "shards/train/*.tar"), cache=cache)
    block = index.read([5])[0]
    assert isinstance(block, bytes)
    assert set(contents(block)) == {"img_content", "img_name", "caption"}


def test_foreign_tars_are_walked_through_once(tmp_path: Path, cache: Path) -> None:
    pattern = write_shards(tmp_path / "foreign", [2, 0, 3])
    index = open_index(pattern, cache=cache)
    assert texts(index) == [f"number {n}" for n in range(5)]
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(kept) == 3
    again = open_index(pattern, cache=cache)
    assert texts(again) == texts(index)
    assert again.digest == index.digest
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    write_tar(tmp_path / "foreign/part-00.tar", webdataset_members(9))
    assert texts(open_index(pattern, cache=cache))[0] == "number 9"


def test_gzip_is_unpacked_once_and_its_damage_named(tmp_path: Path, cache: Path) -> None:
    plain = Path(write_shards(tmp_path, [4]).replace("*", "part-00")).read_bytes()
    whole, cut = tmp_path / "a.tar.gz", tmp_path / "b.tgz"
    whole.write_bytes(gzip.compress(plain))
    cut.write_bytes(gzip.compress(os.urandom(10_240) + plain)[:-4_000])
    index = open_index(str(whole), cache=cache)
    assert texts(index) == [f"number {n}" for n in range(4)]
    assert texts(open_index(str(whole), cache=cache)) == texts(index)
    assert len(list(cache.glob("*.tar"))) == 1
    both = open_index([str(whole), str(cut)], cache=cache)
    assert len(both) == 4
    assert "b" in both.damage[0]
    assert "compression is damaged" in both.damage[0]


def test_the_digest_names_samples_and_order_not_the_place(tmp_path: Path, cache: Path) -> None:
    one, same, other = (
        open_index(write_shards(tmp_path / name, counts), cache=cache)
        for name, counts in (("one", [2, 3]), ("same", [2, 3]), ("other", [3, 2]))
    )
    assert one.digest == same.digest != other.digest


def test_remote_tars_are_read_by_ranges(tmp_path: Path, cache: Path, s3: S3) -> None:
    import s3fs

    root = our_shards(tmp_path)
    s3fs.S3FileSystem(**s3.options).put(str(root / "shards"), s3.url("run/shards"), recursive=True)
    ours = open_index(s3.url("run/shards/train/our-train-{0000..0001}.tar"), storage=s3.options, cache=cache)
    assert not cache.exists()
    assert texts(ours) == [f"number {n}" for n in range(6)]
    assert texts(ours) == texts(open_index(s3.url("run/shards/*/*.tar"), storage=s3.options, cache=cache))
    assert ours.digest == open_index(str(root / "shards/train/*.tar"), cache=cache).digest
    s3fs.S3FileSystem(**s3.options).put(str(root / "shards/train"), s3.url("bare"), recursive=True)
    assert texts(open_index(s3.url("bare/*.tar"), storage=s3.options, cache=cache)) == texts(ours)
    store = s3fs.S3FileSystem(**s3.options)
    store.mkdir("nothing-above")
    for path in (root / "shards/train").glob("*.tar"):
        store.put(str(path), f"nothing-above/{path.name}")
    assert texts(open_index("s3://nothing-above/*.tar", storage=s3.options, cache=cache)) == texts(ours)
    assert ours.files.read([(0, 10**6, 10**6 + 5)])[0].__class__ is not bytes


def test_ranges_that_touch_are_one_request() -> None:
    merged, place = merge([(1, 10, 20), (0, 5, 9), (1, 0, 10), (1, 21, 30)])
    assert merged == [(0, 5, 9), (1, 0, 20), (1, 21, 30)]
    assert place == [1, 0, 1, 2]


def test_patterns(tmp_path: Path) -> None:
    write_shards(tmp_path, [1, 1, 1])
    names = [str(tmp_path / f"part-0{n}.tar") for n in range(3)]
    assert expand(str(tmp_path / "part-{00..01}.tar"), {}) == names[:2]
    assert expand([f"file://{names[2]}", str(tmp_path / "*.tar")], {}) == names
    with pytest.raises(UserError, match=r"no shard matches .*part-03\.tar"):
        expand(str(tmp_path / "part-{00..03}.tar"), {})
    with pytest.raises(UserError, match="nosuch"):
        expand("nosuch://bucket/*.tar", {})
    with pytest.raises(UserError, match=r"^s3://bucket/\*\.tar: the store cannot be asked for it"):
        expand(
            "s3://bucket/*.tar",
            {
                "key": "k",
                "secret": "s",
                "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"},
                "config_kwargs": {"retries": {"max_attempts": 0}},
            },
        )


def test_no_sample_at_all_is_the_users_mistake(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"this is text" * 100)
    with pytest.raises(UserError, match=r"none of 1 tars holds a sample .*no valid header at byte 0"):
        open_index(str(tmp_path / "a.tar"), cache=cache)


def test_a_tar_that_vanishes_is_named_and_its_samples_fail_alone(tmp_path: Path, cache: Path) -> None:
    index = open_index(write_shards(tmp_path, [2, 2]), cache=cache)
    (tmp_path / "part-00.tar").unlink()
    blocks = index.read(range(4))
    assert [isinstance(block, bytes) for block in blocks] == [False, False, True, True]
    assert "part-00.tar" in str(blocks[0])
    assert np.array_equal(index.tar, [0, 0, 1, 1])
