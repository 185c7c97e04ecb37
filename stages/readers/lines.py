"""Files of lines, split at LF only: whole ones through a decompressor, plain ones by byte range."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from stages.readers.batch import BrokenFile, Piece
from stages.sources import Source, SourceFile
from stages.storage import Store

RANGE_BYTES = 64 << 20
CHUNK_BYTES = 8 << 20
LONGEST_LINE = 16 << 20
"""A longer line is no row anybody meant: it counts as bad, and is never held whole."""
LINE_BYTES = 200
"""A guess, for progress."""
_GZIP_RATIO = 3
_NO_TEXT = {
    b"\x1f\x8b": "gzip data",
    b"BZh91AY&SY": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"PK\x03\x04": "a zip archive",
    b"PAR1\x15": "parquet",
}
"""First bytes of what a file of lines may be instead; its lines would all be bad, or none."""
_DECOMPRESS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(frozen=True)
class Lines:
    """Consecutive lines of a file, without copying them apart."""

    data: np.ndarray
    """Their bytes (uint8), the last line ended by LF like the others."""
    starts: np.ndarray
    """Where each begins in `data`."""
    ends: np.ndarray
    """Where each ends, exclusive, before its LF and a CR in front of it."""
    offset: int
    """Where `data` begins in the (decompressed) file."""
    too_long: int = 0
    """Lines above `LONGEST_LINE` that stood here and were skipped."""


def pieces(files: tuple[SourceFile, ...], role: str) -> Iterator[Piece]:
    """Byte ranges of plain files, and compressed files whole; empty files have none."""
    for number, file in enumerate(files):
        if is_compressed(file.url):
            rows = file.size * _GZIP_RATIO // LINE_BYTES
            yield Piece(role=role, file=number, rows=rows)
            continue
        for start in range(0, file.size, RANGE_BYTES):
            stop = min(start + RANGE_BYTES, file.size)
            yield Piece(role=role, file=number, start=start, stop=stop, rows=(stop - start) // LINE_BYTES)


def whole_files(files: tuple[SourceFile, ...], role: str) -> Iterator[Piece]:
    """A piece a file, for formats that cannot be entered in the middle; empty files have none."""
    for number, file in enumerate(files):
        if file.size:
            yield Piece(role=role, file=number, rows=file.size // LINE_BYTES)


def is_compressed(url: str) -> bool:
    """Whether the name says so."""
    return url.lower().endswith(tuple(_DECOMPRESS))


def open_bytes(source: Source, file: SourceFile) -> ByteStream:
    """The file's decompressed bytes, as a stream."""
    raw = Store(file.url, source.storage_options).open(file.url)
    for ending, opener in _DECOMPRESS.items():
        if file.url.lower().endswith(ending):
            return ByteStream(opener(raw, "rb"), file.url)
    return ByteStream(raw, file.url)


class ByteStream:
    """A file being read, whose damage, if it was compressed, is a `BrokenFile`, like data that is no text."""

    def __init__(self, stream: IO[bytes], url: str) -> None:
        self.stream = stream
        self.url = url
        self._at_start = True

    def read(self, size: int = -1) -> bytes:
        """The next bytes; none at the end."""
        with self._damage():
            return self._text(self.stream.read(size))

    def readline(self, size: int = -1) -> bytes:
        """Bytes through the next LF, `size` at most."""
        with self._damage():
            return self._text(self.stream.readline(size))

    def seek(self, offset: int) -> None:
        """Go on from a byte."""
        self._at_start = False
        self.stream.seek(offset)

    def _text(self, data: bytes) -> bytes:
        if self._at_start:
            self._at_start = not data
            for magic, kind in _NO_TEXT.items():
                if data.startswith(magic):
                    endings = ", ".join(_DECOMPRESS)
                    raise BrokenFile(f"{self.url} holds {kind}, not text; compressed files are told by {endings}")
        return data

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and (error.errno is not None or isinstance(error, ConnectionError)):
                raise
            raise BrokenFile(f"{self.url}: {error}") from error


def read_lines(source: Source, file: SourceFile, start: int = 0, stop: int = -1) -> Iterator[Lines]:
    """The lines that begin in [start, stop) of a file, in chunks of about `CHUNK_BYTES`.

    Raises:
        BrokenFile: compressed data that ends early or is damaged.
    """
    with open_bytes(source, file) as stream:
        position, skipping = start, False
        if start:
            stream.seek(start - 1)
            position, skipping = start - 1, True
        yield from _Splitter(position, skipping, stop).run(stream)


class _Splitter:
    """Cuts a stream of bytes after its LFs, holding one unfinished line at most."""

    def __init__(self, position: int, skipping: bool, stop: int) -> None:
        self.position = position
        """Where the unfinished line begins."""
        self.skipping = skipping
        """Within a line that does not count: it began before the range, or is too long."""
        self.stop = stop
        self.rest = b""
        self.too_long = 0

    def run(self, stream: ByteStream) -> Iterator[Lines]:
        while data := stream.read(CHUNK_BYTES):
            if self.skipping:
                data = self._skip(data)
            if not data:
                continue
            data = self.rest + data
            cut = data.rfind(b"\n") + 1
            self.rest = data[cut:]
            if cut:
                yield from self._lines(data[:cut])
            if self._beyond():
                return
            if len(self.rest) > LONGEST_LINE:
                self.too_long += 1
                self.position += len(self.rest)
                self.rest, self.skipping = b"", True
        if self.rest and not self._beyond():
            yield from self._lines(self.rest + b"\n")
        if self.too_long:
            empty = np.zeros(0, np.int64)
            yield Lines(np.zeros(0, np.uint8), empty, empty, self.position, self.too_long)

    def _skip(self, data: bytes) -> bytes:
        """What follows the line being skipped."""
        cut = data.find(b"\n") + 1
        self.skipping = cut == 0
        self.position += cut or len(data)
        return data[cut:] if cut else b""

    def _beyond(self) -> bool:
        return 0 <= self.stop <= self.position

    def _lines(self, data: bytes) -> Iterator[Lines]:
        """`data` ends with LF and begins at `position`; lines from `stop` on belong to the next range."""
        array = np.frombuffer(data, np.uint8)
        breaks = np.flatnonzero(array == 10)
        starts = np.concatenate([[0], breaks[:-1] + 1])
        offset, self.position = self.position, self.position + len(data)
        if self.stop >= 0:
            count = int(np.searchsorted(starts, self.stop - offset))
            starts, breaks = starts[:count], breaks[:count]
        if len(starts):
            ends = breaks - ((breaks > starts) & (array[breaks - 1] == 13))
            long = ends - starts > LONGEST_LINE
            yield Lines(array, starts[~long], ends[~long], offset, self.too_long + int(long.sum()))
            self.too_long = 0
