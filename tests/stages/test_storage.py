"""The same file operations on a local folder and on a real S3 server."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from stages.errors import UserError
from stages.storage import Store, strip_protocol
from tests.conftest import S3


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "root"))
    s3: S3 = request.getfixturevalue("s3")
    return Store(s3.url("some/root"), s3.options)


def test_write_read_list_remove(store: Store) -> None:
    assert store.list() == []
    store.write("a/b.txt", b"one")
    store.write("a/b.txt", b"two")
    store.write("c.txt", b"")
    assert store.read("a/b.txt") == b"two"
    assert store.list() == ["a/b.txt", "c.txt"]
    assert store.list("a") == ["a/b.txt"]
    assert store.exists("c.txt")
    store.remove("c.txt")
    store.remove("c.txt")
    assert not store.exists("c.txt")
    with pytest.raises(FileNotFoundError):
        store.read("c.txt")


def test_create_lets_the_first_writer_win(store: Store) -> None:
    assert store.create("unit.json", b"first")
    assert not store.create("unit.json", b"second")
    assert store.read("unit.json") == b"first"


def test_move_replaces(store: Store) -> None:
    store.write("from.tar", b"new")
    store.write("dir/to.tar", b"old")
    store.move("from.tar", "dir/to.tar")
    assert store.list() == ["dir/to.tar"]
    assert store.read("dir/to.tar") == b"new"


def test_a_new_file_streams(store: Store) -> None:
    with store.open_new("big/file.bin") as file:
        for _ in range(3):
            file.write(b"x" * 1000)
    assert store.size("big/file.bin") == 3000
    assert store.sha256("big/file.bin") == hashlib.sha256(b"x" * 3000).hexdigest()


def test_ranges_come_in_the_order_asked(store: Store) -> None:
    data = bytes(range(256)) * 1000
    store.write("blob", data)
    ranges = [(0, 10), (10, 5), (200_000, 7), (40, 3), (41, 100)]
    assert list(store.read_ranges("blob", ranges)) == [data[o : o + n] for o, n in ranges]
    with pytest.raises(OSError, match="ends before byte"):
        list(store.read_ranges("blob", [(len(data) - 1, 2)]))


def test_memory_and_unknown_protocols_are_refused() -> None:
    with pytest.raises(UserError, match="memory:// cannot be used"):
        _ = Store("memory://x").fs
    with pytest.raises(UserError, match="nosuch://"):
        _ = Store("nosuch://x").fs


def test_credentials_in_a_url_do_not_reach_the_path() -> None:
    assert strip_protocol("s3://KEY:SECRET@bucket/a@b/c") == "bucket/a@b/c"


def test_paths_of_another_kind_are_read_where_they_lie(store: Store, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"abc")
    assert store.read(str(tmp_path / "weights.bin")) == b"abc"
    assert store.exists(str(tmp_path / "weights.bin"))
    assert not store.exists(str(tmp_path / "nothing.bin"))
