from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.trainer.data import webdataset_members, write_tar
from trainer.data.tars import DamagedTar, contents, members, scan, split_name


def scanned(path: Path) -> tuple[list[str], str | None]:
    with path.open("rb") as file:
        entries, damage = scan(file, path.stat().st_size)
    return [entry.key for entry in entries], damage


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tar", [each for number in range(5) for each in webdataset_members(number)])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_sample_is_one_block_in_every_kind_of_tar(tmp_path: Path, form: int) -> None:
    long = "a/" * 40 + "sample" if form == tarfile.USTAR_FORMAT else "ä" * 120
    rows = [(f"{long}-{n}.{e}", f"{e} {n}".encode()) for n in range(3) for e in ("jpg", "txt")]
    path = write_tar(tmp_path / "a.tar", rows, form=form)
    data = path.read_bytes()
    entries, damage = scan(io.BytesIO(data), len(data))
    assert damage is None
    assert [entry.key for entry in entries] == [f"{long}-{n}" for n in range(3)]
    for number, entry in enumerate(entries):
        block = data[entry.offset : entry.offset + entry.size]
        assert contents(block) == {"jpg": f"jpg {number}".encode(), "txt": f"txt {number}".encode()}


def test_names_are_cut_as_webdataset_cuts_them() -> None:
    assert split_name("a/b.c/d.e.JPG") == ("a/b.c/d", "e.jpg")
    assert split_name("x.input.image") == ("x", "input.image")
    assert split_name("README") == ("README", "")
    assert split_name("a/.hidden")[1] == ""


def test_a_tar_cut_off_gives_the_samples_before_the_cut(shard: Path) -> None:
    keys, damage = scanned(shard)
    assert (len(keys), damage) == (5, None)
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        cut = tar.getmember("000003.png").offset_data + 20
    shard.write_bytes(whole[:cut])
    keys, damage = scanned(shard)
    assert keys == ["000000", "000001", "000002"]
    assert damage == f"it ends at byte {cut}, within 000003.png"


def test_a_damaged_header_and_a_missing_end_are_named(shard: Path) -> None:
    whole = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        header = tar.getmember("000002.txt").offset
        last = tar.getmember("000004.png").offset
    shard.write_bytes(whole[:last])
    assert scanned(shard) == ([f"{n:06d}" for n in range(4)], "it has no end mark, so samples may be missing")
    whole[header + 5] ^= 0x40
    shard.write_bytes(whole)
    keys, damage = scanned(shard)
    assert keys == ["000000", "000001"]
    assert damage is not None
    assert f"no valid header at byte {header}" in damage


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, form: int) -> None:
    names = ["a", "a" * 100, "a" * 60 + "/" + "b" * 60, "ä.jpg", "x/y.txt"]
    path = write_tar(tmp_path / "a.tar", [(name, b"." * (511 + at)) for at, name in enumerate(names)], form=form)
    with tarfile.open(path) as tar, path.open("rb") as file:
        expected = [(each.name, each.offset_data, each.size) for each in tar if each.isreg()]
        assert [(each.name, each.offset, each.size) for each in members(file)] == expected


@pytest.mark.parametrize(("at", "said"), [(0, "no valid header"), (124, "no valid header"), (150, "no valid header")])
def test_a_byte_of_a_header_that_differs_is_damage(shard: Path, at: int, said: str) -> None:
    whole = bytearray(shard.read_bytes())
    whole[at] ^= 1
    with pytest.raises(DamagedTar, match=f"{said} at byte 0"):
        list(members(io.BytesIO(bytes(whole))))


def test_a_size_below_nothing_ends_the_walk() -> None:
    header = tarfile.TarInfo("a.jpg")
    header.size = -512
    with pytest.raises(DamagedTar, match="a size below 0 at byte 0"):
        list(members(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)))
