"""Tar files as sequences of samples: members in a row whose names agree up to the first dot."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = 512
LONG_NAME, PAX = b"L", b"x"
"""Types of headers that tell something of the next member."""
MOST_EXTENSION = 1 << 20
"""Bytes of such a header, at most."""


class DamagedTar(Exception):
    """What is wrong with a tar, and where."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    begin: int
    """Its first header."""
    offset: int
    """Its data."""
    size: int

    @property
    def end(self) -> int:
        """After its last padded block."""
        return self.offset + self.size + -self.size % BLOCK


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample: `size` bytes from `offset`, headers and padding included."""

    key: str
    offset: int
    size: int


def members(file: IO[bytes]) -> Iterator[Member]:
    """Regular files from the file's start to the end mark, or to the end of the file where there is no mark.

    Raises:
        DamagedTar: a header is none, or the file ends within one.
    """
    offset, begin, name = 0, None, None
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if not block or block.count(0) == BLOCK:
            return
        header = _header(block, offset)
        if header.size < 0:
            raise DamagedTar(f"a size below 0 at byte {offset}")
        begin = offset if begin is None else begin
        data, size = offset + BLOCK, header.size
        offset = data + size + -size % BLOCK
        if header.type in (LONG_NAME, PAX):
            name = _extended_name(file.read(min(size, MOST_EXTENSION)), header.type) or name
            continue
        if header.isreg():
            yield Member(name or header.name, begin, data, size)
        begin, name = None, None


def _header(block: bytes, offset: int) -> tarfile.TarInfo | _Plain:
    """What a header tells; tarfile reads all kinds, and takes five times as long as a plain file's needs."""
    plain = _plain(block)
    if plain:
        return plain
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DamagedTar(f"no valid header at byte {offset} ({error})") from error


@dataclass(frozen=True, slots=True)
class _Plain:
    """The header of a regular file of less than 8 GB with a name of at most 100 bytes."""

    name: str
    size: int
    type: bytes = tarfile.REGTYPE

    def isreg(self) -> bool:
        return True


def _plain(block: bytes) -> _Plain | None:
    if len(block) != BLOCK or block[156:157] != tarfile.REGTYPE or block[345] or block[124] & 0x80:
        return None
    try:
        size, stated = (int(block[start:stop].strip(b" \0"), 8) for start, stop in ((124, 136), (148, 156)))
    except ValueError:
        return None
    if stated != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        return None
    return _Plain(block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape"), size)


def _extended_name(data: bytes, kind: bytes) -> str | None:
    if kind == LONG_NAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    for line in data.split(b"\n"):
        _, _, record = line.partition(b" ")
        if record.startswith(b"path="):
            return record[5:].decode("utf-8", "surrogateescape")
    return None


def split_name(name: str) -> tuple[str, str]:
    """(key, extension in lower case): cut at the first dot behind the last slash, as webdataset cuts.

    The extension is empty for a name that belongs to no sample.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else (name, "")


def scan(file: IO[bytes], length: int) -> tuple[list[Entry], str | None]:
    """The whole samples of an uncompressed tar of `length` bytes, and what is wrong with it, if anything is.

    Where a tar is cut off or a header is damaged, the sample that this touches and all behind it are lost.
    """
    found: list[Entry] = []
    key, first, end = None, 0, 0
    try:
        for member in members(file):
            of, extension = split_name(member.name)
            if not extension:
                continue
            if of != key:
                found += [Entry(key, first, end - first)] if key is not None else []
                key, first = of, member.begin
            if member.end > length:
                raise DamagedTar(f"it ends at byte {length}, within {member.name}")
            end = member.end
    except DamagedTar as error:
        return found, str(error)
    found += [Entry(key, first, end - first)] if key is not None else []
    return found, None if _has_end(file, length) else "it has no end mark, so samples may be missing"


def _has_end(file: IO[bytes], length: int) -> bool:
    file.seek(max(0, length - BLOCK))
    return file.read(BLOCK).count(0) == BLOCK


def contents(block: bytes) -> dict[str, bytes]:
    """The members of one sample by their extensions; of two with the same one the first.

    Raises:
        DamagedTar: a header is none, or a member reaches beyond the block.
    """
    found: dict[str, bytes] = {}
    for member in members(io.BytesIO(block)):
        if member.offset + member.size > len(block):
            raise DamagedTar(f"{member.name} reaches beyond its sample")
        found.setdefault(split_name(member.name)[1], block[member.offset : member.offset + member.size])
    return found
