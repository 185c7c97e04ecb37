"""Where shards lie: patterns of local paths and fsspec URLs, and reading ranges of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

from trainer.errors import UserError

Storage = Mapping[str, Any]
"""What the file system takes: keys, endpoints… (`storage_options` of pandas and others)."""
Range = tuple[int, int, int]
"""(number of the file, first byte, byte after the last)."""
MOST_OPEN = 256
"""Local files a process keeps open."""
MERGED_BYTES = 16 << 20
"""Ranges that touch share one request up to so many bytes."""


@dataclass(frozen=True)
class Files:
    """A list of files and how to reach them; travels to worker processes, which open the files themselves."""

    urls: tuple[str, ...]
    storage: Storage = field(default_factory=dict)
    _open: dict[int, int] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"urls": self.urls, "storage": self.storage, "_open": {}}

    def is_remote(self) -> bool:
        """Whether any file must be asked for over a network."""
        return any(not is_local(url) for url in self.urls)

    def read(self, ranges: Sequence[Range]) -> list[bytes | Exception]:
        """The bytes of each range, in order, or what was wrong with it; remote ones are asked for at once."""
        found: list[bytes | Exception] = [b""] * len(ranges)
        far: list[int] = []
        for at, (number, start, stop) in enumerate(ranges):
            if is_local(self.urls[number]):
                found[at] = self._read_local(number, start, stop)
            else:
                far.append(at)
        if far:
            for at, data in zip(far, self._read_remote([ranges[at] for at in far]), strict=True):
                found[at] = data
        return [_whole(data, stop - start) for data, (_, start, stop) in zip(found, ranges, strict=True)]

    def _read_local(self, number: int, start: int, stop: int) -> bytes | Exception:
        try:
            return os.pread(self._descriptor(number), stop - start, start)
        except OSError as error:
            return error

    def _descriptor(self, number: int) -> int:
        found = self._open.pop(number, None)
        if found is None:
            if len(self._open) >= MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            found = os.open(local_path(self.urls[number]), os.O_RDONLY)
        self._open[number] = found
        return found

    def _read_remote(self, ranges: Sequence[Range]) -> list[bytes | Exception]:
        merged, place = merge(ranges)
        home = file_system(self.urls[merged[0][0]], self.storage)
        blocks = home.cat_ranges(
            [home._strip_protocol(self.urls[number]) for number, _, _ in merged],
            [start for _, start, _ in merged],
            [stop for _, _, stop in merged],
            on_error="return",
        )
        found: list[bytes | Exception] = []
        for at, (_, start, stop) in zip(place, ranges, strict=True):
            block, first = blocks[at], merged[at][1]
            found.append(block if isinstance(block, Exception) else block[start - first : stop - first])
        return found


def _whole(data: bytes | Exception, size: int) -> bytes | Exception:
    if isinstance(data, bytes) and len(data) != size:
        return OSError(f"the file ends {size - len(data)} bytes before the sample does")
    return data


def merge(ranges: Sequence[Range]) -> tuple[list[Range], list[int]]:
    """Ranges that touch made one, and the number of the merged range that holds each of the given ones."""
    merged: list[Range] = []
    place = [0] * len(ranges)
    for at in sorted(range(len(ranges)), key=lambda at: ranges[at]):
        number, start, stop = ranges[at]
        if merged and merged[-1][0] == number and merged[-1][2] >= start and stop - merged[-1][1] <= MERGED_BYTES:
            merged[-1] = (number, merged[-1][1], max(stop, merged[-1][2]))
        else:
            merged.append((number, start, stop))
        place[at] = len(merged) - 1
    return merged, place


def expand(patterns: str | Sequence[str], storage: Storage) -> list[str]:
    """The files that patterns name, sorted, each once: local ones as absolute paths, others as URLs.

    A pattern is a path or URL with `*`, `?`, `[…]` and braces (`{0000..0031}`, `{train,val}`).

    Raises:
        UserError: a pattern matches no file, or its store gives no answer.
    """
    from braceexpand import braceexpand

    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in braceexpand(pattern):
            files = _matches(name, storage)
            if not files:
                raise UserError(f"no shard matches {name!r}: a path or URL of tar files is wanted, with * or {{0..9}}")
            found.update(files)
    return sorted(found)


def _matches(name: str, storage: Storage) -> list[str]:
    if is_local(name):
        path = local_path(name)
        return [path] if os.path.isfile(path) else [each for each in glob.glob(path) if os.path.isfile(each)]
    home = file_system(name, storage)
    try:
        files = home.glob(name) if glob.has_magic(name) else [name] * home.isfile(name)
    except FileNotFoundError:
        files = []
    except Exception as error:
        raise UserError(f"{name}: the store cannot be asked for it ({' '.join(str(error).split())})") from error
    return [home.unstrip_protocol(each) for each in files]


def is_local(url: str) -> bool:
    """Whether plain file calls reach it."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    """The absolute path of a local file."""
    return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))


def file_system(url: str, storage: Storage) -> Any:
    """The fsspec file system that a URL lies on.

    Raises:
        UserError: no such protocol, or its package is missing.
    """
    import fsspec

    protocol = url.split("://", 1)[0] if "://" in url else "file"
    try:
        return fsspec.filesystem(protocol, **({} if protocol == "file" else storage))
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: {' '.join(str(error).split())}") from error


def opened(url: str, storage: Storage) -> IO[bytes]:
    """A file opened for reading."""
    if is_local(url):
        return open(local_path(url), "rb")
    return cast(IO[bytes], file_system(url, storage).open(url, "rb"))


def identity(url: str, storage: Storage) -> tuple[int, str]:
    """(bytes, a text that changes when the file does)."""
    if is_local(url):
        facts = os.stat(local_path(url))
        return facts.st_size, f"{local_path(url)} {facts.st_size} {facts.st_mtime_ns}"
    found = file_system(url, storage).info(url)
    seen = [str(found[name]) for name in ("ETag", "LastModified", "mtime", "updated") if name in found]
    return int(found["size"]), " ".join([url, str(found["size"]), *seen])
