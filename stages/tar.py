"""Tar files whose bytes depend on names and contents alone.

Plain USTAR: mode 0644, owner 0, time 0, no directories; the end is padded with zeros to a whole record
of 10,240 bytes, as POSIX tar does.
"""

from __future__ import annotations

from typing import Protocol

BLOCK = 512
RECORD = 10_240


class Sink(Protocol):
    """What a tar is written to."""

    def write(self, data: bytes) -> int:
        """Append bytes."""


_BEFORE_SIZE = b"0000644\0" + 2 * b"0000000\0"
"""Mode, owner, group."""
_SUM = slice(148, 156)
_AFTER_SUM = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK - _SUM.stop, b"\0")
"""A regular file, no link, USTAR, no names of owners."""
_REST_OF_SUM = 8 * ord(" ") + sum(_AFTER_SUM)


def header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a regular file.

    Raises:
        ValueError: a name beyond 100 bytes or a size of 8 GiB or more.
    """
    path = name.encode()
    if len(path) > 100 or size >= 8 << 30:
        raise ValueError(f"{name[:120]!r} of {size} bytes does not fit a USTAR header")
    start = path.ljust(100, b"\0") + _BEFORE_SIZE + b"%011o\0%011o\0" % (size, 0)
    total = sum(start) + _REST_OF_SUM
    return start + b"%06o\0 " % total + _AFTER_SUM


def padding(size: int, unit: int = BLOCK) -> bytes:
    """The zeros that fill `size` bytes up to a whole number of units."""
    return bytes(-size % unit)


class TarWriter:
    """Appends members to a sink and knows where their data lies."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.offset = 0
        """Bytes written so far: where the next header begins."""

    def add(self, name: str, data: bytes) -> int:
        """Append one file; returns the offset of its data."""
        start = self.offset + BLOCK
        self._write(b"".join((header(name, len(data)), data, padding(len(data)))))
        return start

    def close(self) -> None:
        """Write the end of the archive: two zero blocks, then zeros to the end of the record."""
        self._write(bytes(2 * BLOCK))
        self._write(padding(self.offset, RECORD))

    def _write(self, data: bytes) -> None:
        self.sink.write(data)
        self.offset += len(data)
