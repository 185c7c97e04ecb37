"""Which samples there are, and where: an index of tars, so that any sample is one range read.

Shards of this project bring their index along (`index.parquet` beside the splits). Any other tar is walked through
once, header by header, and what was found is kept in a cache. A compressed tar is unpacked into the cache, since
nothing in it can be reached without all that stands before.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.files import Files, Storage, expand, identity, opened
from trainer.data.tars import scan
from trainer.errors import UserError

COLUMNS = ("key", "offset", "size")
PUBLISHED = "index.parquet"
MOST_BEHIND = 2 * 512 + 10_240
"""Bytes between the last sample and the end of its tar, at most: the end mark and the padding of a record."""
LANES = 8
"""Tars looked at together."""
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, eq=False)
class Index:
    """Samples, numbered in the order of their tars and of their places there."""

    files: Files
    keys: Any
    """Arrow strings."""
    tar: NDArray[np.int32]
    """Which of the files each lies in."""
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    damage: tuple[str, ...] = ()
    """What is wrong with which tar."""

    def __len__(self) -> int:
        return len(self.tar)

    def name(self, number: int) -> str:
        """A sample as messages name it: its tar and its key."""
        return f"{os.path.basename(self.files.urls[self.tar[number]])}:{self.keys[number].as_py()}"

    def read(self, numbers: Sequence[int]) -> list[bytes | Exception]:
        """The tar blocks of samples, or what was wrong with each."""
        ranges = [(int(self.tar[n]), int(self.offset[n]), int(self.offset[n] + self.size[n])) for n in numbers]
        return self.files.read(ranges)

    @cached_property
    def digest(self) -> str:
        """Names the samples and their order, wherever the tars lie: what a resumed run must find again."""
        found = hashlib.blake2b(digest_size=16)
        for url in self.files.urls:
            found.update(os.path.basename(url).encode() + b"\0")
        for column in (self.tar, self.offset, self.size):
            found.update(np.ascontiguousarray(column).astype("<i8").tobytes())
        for start in range(0, len(self.keys), 1 << 16):
            found.update("\0".join(self.keys[start : start + (1 << 16)].to_pylist()).encode("utf-8", "replace"))
        return found.hexdigest()


def default_cache() -> Path:
    """Where indexes and unpacked tars are kept: `rs-curation/shards` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rs-curation" / "shards"


def open_index(
    patterns: str | Sequence[str], *, storage: Storage | None = None, cache: str | Path | None = None
) -> Index:
    """The samples of all tars that match.

    Args:
        patterns: paths or fsspec URLs with `*` and braces.
        storage: options of the file system.
        cache: folder for the indexes of foreign tars; by default the user's cache folder.

    Raises:
        UserError: a pattern matches no file, or there is no sample in any.
    """
    storage = storage or {}
    urls = expand(patterns, storage)
    published = _published(urls, storage)
    opener = _Opener(storage, Path(cache) if cache else default_cache())
    with ThreadPoolExecutor(LANES) as lanes:
        tars = list(lanes.map(opener.open, urls, [published.get(url) for url in urls]))
    if not any(tar.table.num_rows for tar in tars):
        problem = next((f" ({tar.url}: {tar.damage})" for tar in tars if tar.damage), "")
        raise UserError(f"{patterns!r}: none of {len(urls)} tars holds a sample{problem}")
    return _joined(tars, storage)


@dataclass(frozen=True, slots=True)
class _Tar:
    url: str
    """Where it is read from."""
    table: Any
    damage: str | None = None


def _joined(tars: Sequence[_Tar], storage: Storage) -> Index:
    import pyarrow as pa

    table = pa.concat_tables([tar.table.select(COLUMNS) for tar in tars])
    lengths = [tar.table.num_rows for tar in tars]
    return Index(
        files=Files(tuple(tar.url for tar in tars), storage),
        keys=table.column("key").combine_chunks(),
        tar=np.repeat(np.arange(len(tars), dtype=np.int32), lengths),
        offset=table.column("offset").to_numpy(),
        size=table.column("size").to_numpy(),
        damage=tuple(f"{tar.url}: {tar.damage}" for tar in tars if tar.damage),
    )


def _published(urls: Sequence[str], storage: Storage) -> dict[str, Any]:
    """The part of each tar in the `index.parquet` one folder above its own, where there is one."""
    found: dict[str, Any] = {}
    homes: dict[str, dict[str, str]] = {}
    for url in urls:
        folder, _, name = url.rpartition("/")
        home, _, split = folder.rpartition("/")
        if "://" in folder and "://" not in home:
            continue  # the tars lie in the bucket itself, and nothing is above it
        homes.setdefault(home, {})[f"{split}/{name}"] = url
    for home, names in homes.items():
        for tar, table in _parts(f"{home}/{PUBLISHED}", storage):
            url = names.get("/".join(tar.split("/")[-2:]), "")
            if url:
                found[url] = table
    return found


def _parts(path: str, storage: Storage) -> Iterator[tuple[str, Any]]:
    """(tar, rows) of an index; nothing where there is none, or another kind of file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(path, storage) as file:
            table = pq.read_table(file, columns=["tar", *COLUMNS], read_dictionary=["tar"])
    except (OSError, pa.ArrowException, KeyError):
        return
    if not table.num_rows:
        return
    column = table.column("tar").unify_dictionaries().combine_chunks()
    codes = column.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
        yield column.dictionary[int(codes[start])].as_py(), table.slice(start, stop - start)


@dataclass(frozen=True)
class _Opener:
    """Finds the samples of one tar: in the published index, in the cache, or by walking through it."""

    storage: Storage
    cache: Path

    def open(self, url: str, published: Any) -> _Tar:
        try:
            length, identified = identity(url, self.storage)
            if published is not None and _fits(published, length):
                return _Tar(url, published)
            return self._foreign(url, length, hashlib.blake2b(identified.encode(), digest_size=16).hexdigest())
        except OSError as error:
            return _Tar(url, _table([]), f"it cannot be read ({error})")

    def _foreign(self, url: str, length: int, name: str) -> _Tar:
        unpacked, known = self.cache / f"{name}.tar", self.cache / f"{name}.parquet"
        if known.is_file():
            return _load(str(unpacked) if unpacked.is_file() else url, known)
        self.cache.mkdir(parents=True, exist_ok=True)
        problem = None
        with opened(url, self.storage) as file:
            if file.read(2) == GZIP:
                file.seek(0)
                problem = _unpack(file, unpacked)
                url, length = str(unpacked), unpacked.stat().st_size
        with opened(url, self.storage) as file:
            entries, damage = scan(file, length)
        _store(known, _table(entries), problem or damage)
        return _load(url, known)


def _fits(table: Any, length: int) -> bool:
    """Whether the index is that of a tar of so many bytes, whole."""
    end = int(np.max(table.column("offset").to_numpy() + table.column("size").to_numpy()))
    return 0 < length - end <= MOST_BEHIND


def _table(entries: Sequence[Any]) -> Any:
    import pyarrow as pa

    keys = [each.key.encode("utf-8", "replace").decode() for each in entries]
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "offset": pa.array([each.offset for each in entries], pa.int64()),
            "size": pa.array([each.size for each in entries], pa.int64()),
        }
    )


def _store(path: Path, table: Any, damage: str | None) -> None:
    import pyarrow.parquet as pq

    with _published_as(path) as temporary:
        pq.write_table(table.replace_schema_metadata({"damage": damage or ""}), temporary, compression="zstd")


def _load(url: str, path: Path) -> _Tar:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return _Tar(url, table.replace_schema_metadata(None), table.schema.metadata[b"damage"].decode() or None)


def _unpack(file: IO[bytes], path: Path) -> str | None:
    """Write what a gzip stream holds to a file; returns what is wrong with it, if it ends early."""
    problem = None
    with _published_as(path) as temporary, temporary.open("wb") as out:
        try:
            shutil.copyfileobj(gzip.GzipFile(fileobj=file), out, 1 << 20)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problem = f"its compression is damaged ({error})"
    return problem


@contextlib.contextmanager
def _published_as(path: Path) -> Iterator[Path]:
    """A file to write that gets its name when all is written: ranks may do the same at once."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
