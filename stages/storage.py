"""Local paths and fsspec URLs alike: the few file operations the project needs, safe on both.

File systems publish by rename or link, object stores by create-if-absent PUT (they have no rename).
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from stages.errors import UserError

READ_GAP = 64 << 10
"""Ranges closer than this share one read."""
READ_MOST = 16 << 20
"""… as long as the read stays below this."""
_CREDENTIALS = re.compile(r"^([^/:@\s]+):([^@\s]+)@")
"""`KEY:SECRET@` before a bucket; secrets may hold slashes, buckets no colons."""


@dataclass(frozen=True)
class Store:
    """A folder: a local path or an fsspec URL, with the options its file system takes."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of file systems on which files lie that the store's tables point at, by protocol."""

    @cached_property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The fsspec file system."""
        return file_system(self.url, self.options)

    @property
    def is_local(self) -> bool:
        """Whether plain file calls work on `full(path)`."""
        return is_local(self.url)

    def full(self, path: str) -> str:
        """The path as the file system wants it; full URLs and absolute paths stay as they are."""
        if "://" in path or os.path.isabs(path):
            return strip_protocol(path)
        base = strip_protocol(self.url)
        return f"{base.rstrip('/')}/{path}" if path else base

    def home(self, path: str) -> fsspec.AbstractFileSystem:
        """The file system `path` lies on: the store's, unless it is a full URL or path of another kind."""
        elsewhere = protocol(path) != protocol(self.url) and ("://" in path or os.path.isabs(path))
        return file_system(path, self.others.get(protocol(path))) if elsewhere else self.fs

    def exists(self, path: str) -> bool:
        """Whether the file or folder is there now."""
        home = self.home(path)
        home.invalidate_cache()
        return bool(home.exists(self.full(path)))

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return int(self.home(path).size(self.full(path)))

    def open(self, path: str) -> IO[bytes]:
        """A file opened for reading."""
        home = self.home(path)
        if isinstance(home, LocalFileSystem):
            return open(self.full(path), "rb")
        return cast(IO[bytes], home.open(self.full(path), "rb"))

    def read(self, path: str) -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self.open(path) as file:
            return file.read()

    def list(self, path: str = "") -> list[str]:
        """Files below `path`, relative to the store, sorted; empty when the folder does not exist."""
        base = self.full("")
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(self.full(path))
        except FileNotFoundError:
            return []
        return sorted(os.path.relpath(name, base) for name in found)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically."""
        if not self.is_local:
            self.fs.pipe_file(self.full(path), data)
            return
        final = Path(self.full(path))
        temporary = self._temporary(final, data)
        try:
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet; False when somebody was first."""
        if not self.is_local:
            try:
                self.fs.pipe_file(self.full(path), data, mode="create")
            except FileExistsError:
                return False
            return True
        final = Path(self.full(path))
        temporary = self._temporary(final, data)
        try:
            os.link(temporary, final)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    @staticmethod
    def _temporary(final: Path, data: bytes) -> Path:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def open_new(self, path: str) -> IO[bytes]:
        """A new file to write; on object stores it appears when closed, on local ones at once."""
        if not self.is_local:
            return cast(IO[bytes], self.fs.open(self.full(path), "wb"))
        final = Path(self.full(path))
        final.parent.mkdir(parents=True, exist_ok=True)
        return open(final, "wb")

    def remove(self, path: str) -> None:
        """Delete a file; nothing happens when it is not there."""
        try:
            self.fs.rm_file(self.full(path))
        except FileNotFoundError:
            return

    def move(self, source: str, target: str) -> None:
        """Rename within the store (a copy and delete on object stores), replacing `target`."""
        if self.is_local:
            final = Path(self.full(target))
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.full(source), final)
        else:
            self.fs.mv(self.full(source), self.full(target))

    def sha256(self, path: str) -> str:
        """Digest of a file's bytes, read in pieces."""
        digest = hashlib.sha256()
        with self.open(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each (offset, size), in the order given; sorted neighbours share a read."""
        with self.open(path) as file:
            start, data = 0, b""
            for index, (offset, size) in enumerate(ranges):
                if not start <= offset <= offset + size <= start + len(data):
                    start, length = offset, _stretch(ranges, index)
                    file.seek(start)
                    data = file.read(length)
                piece = data[offset - start : offset - start + size]
                if len(piece) != size:
                    raise OSError(f"{path} ends before byte {offset + size}")
                yield piece


def _stretch(ranges: Sequence[tuple[int, int]], index: int) -> int:
    """How far to read from range `index` on, so that close followers come along."""
    start, size = ranges[index]
    end = start + size
    for offset, more in ranges[index + 1 :]:
        if offset < start or offset > end + READ_GAP or offset + more - start > READ_MOST:
            break
        end = max(end, offset + more)
    return end - start


def protocol(url: str) -> str:
    """`file` for paths, else what stands before `://`."""
    return url.split("://", 1)[0] if "://" in url else "file"


def is_local(url: str) -> bool:
    """Whether the URL is a path of this machine's file systems."""
    return protocol(url) == "file"


def strip_protocol(url: str) -> str:
    """A path as its file system wants it: absolute when local, bucket/key without credentials on stores."""
    kind = protocol(url)
    if kind == "file":
        return str(LocalFileSystem._strip_protocol(url))
    return _CREDENTIALS.sub("", url.split("://", 1)[1])


def file_system(url: str, options: Mapping[str, Any] | None = None) -> fsspec.AbstractFileSystem:
    """The fsspec file system of a URL. `KEY:SECRET@` before an s3 bucket counts as its credentials.

    Raises:
        UserError: an unknown protocol, or `memory://`, which no worker process could see.
    """
    kind = protocol(url)
    if kind == "memory":
        raise UserError(f"{url}: memory:// cannot be used, since workers are processes of their own")
    settings = dict(options or {})
    credentials = _CREDENTIALS.match(url.split("://", 1)[-1])
    if credentials and kind in ("s3", "s3a"):
        settings.setdefault("key", unquote(credentials[1]))
        settings.setdefault("secret", unquote(credentials[2]))
    try:
        return fsspec.filesystem(kind, **settings)
    except (ValueError, ImportError) as error:
        raise UserError(f"{kind}:// cannot be opened: {error}") from error
