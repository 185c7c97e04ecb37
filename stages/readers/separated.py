"""TSV, split at LF and tabs only and never quoted; CSV as RFC 4180 has it."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from stages.errors import UnitError
from stages.readers import lines
from stages.readers.batch import Batch, Piece, table_batch
from stages.readers.lines import CHUNK_BYTES, LONGEST_LINE, ByteStream, Lines
from stages.readers.roles import invalid_utf8
from stages.sources import Source, SourceFile

_BOM = b"\xef\xbb\xbf"
_TAB = 9
CSV_ROWS = 1 << 15
_Records = Iterator[tuple[int, list[str] | None]]


def tsv_pieces(source: Source, role: str = "data") -> Iterator[Piece]:
    """Byte ranges; compressed files whole."""
    return lines.pieces(source.files[role], role)


def csv_pieces(source: Source) -> Iterator[Piece]:
    """Whole files: a quoted field may hold any line break."""
    return lines.whole_files(source.files["data"], "data")


def read_tsv(source: Source, piece: Piece) -> Iterator[Batch]:
    """Rows with as many fields as there are columns; blank lines are no rows, all others are bad ones."""
    file = source.files[piece.role][piece.file]
    names, has_header = tsv_columns(source, file)
    for part in lines.read_lines(source, file, piece.start, piece.stop):
        if part.offset == 0:
            part = _after_head(part, names, has_header)
        fields = Fields(part, len(names))
        yield table_batch(fields.table(names), fields.row_numbers, fields.bad_rows)


def tsv_columns(source: Source, file: SourceFile) -> tuple[list[str], bool | None]:
    """Column names, and whether the first line holds them (None: if it equals them)."""
    if "names" in source.options:
        return list(source.options["names"]), None
    with lines.open_bytes(source, file) as stream:
        head = stream.readline(LONGEST_LINE).removeprefix(_BOM).rstrip(b"\r\n")
    first = head.decode("utf-8", "replace").split("\t")
    if has_header(source):
        return first, True
    return [str(position) for position in range(len(first))], False


def has_header(source: Source) -> bool:
    """What the options say; without them, a header is expected unless columns are given as positions."""
    if "header" in source.options:
        return bool(source.options["header"])
    values = (item["column"] if isinstance(item, dict) else item for item in source.columns.values())
    return not any(isinstance(value, int) for value in values)


def _after_head(part: Lines, names: Sequence[str], header: bool | None) -> Lines:
    """Without a byte order mark and the header line."""
    if len(part.starts) == 0:
        return part
    starts, ends = part.starts.copy(), part.ends
    if part.data[:3].tobytes() == _BOM:
        starts[0] += 3
    first = part.data[starts[0] : ends[0]].tobytes().decode("utf-8", "replace")
    is_names = first.casefold().split("\t") == [name.casefold() for name in names]
    skip = int(header is True or (header is None and is_names))
    return Lines(part.data, starts[skip:], ends[skip:], part.offset, part.too_long)


class Fields:
    """The fields of lines, found with array operations; a column is copied out when asked for."""

    def __init__(self, part: Lines, count: int) -> None:
        """`count` is how many fields a row has."""
        data = part.data
        filled = part.ends > part.starts
        starts, ends = part.starts[filled], part.ends[filled]
        tabs = np.flatnonzero(data == _TAB)
        first = np.searchsorted(tabs, starts)
        good = np.searchsorted(tabs, ends) - first == count - 1
        spoilt = invalid_utf8(_slices(data, starts, ends))
        if spoilt is not None:
            good &= ~spoilt
        self.data = data
        self.bad_rows = part.too_long + len(good) - int(good.sum())
        inner = tabs[first[good][:, None] + np.arange(count - 1)] if count > 1 else np.zeros((int(good.sum()), 0), int)
        self.starts = np.concatenate([starts[good][:, None], inner + 1], axis=1)
        self.ends = np.concatenate([inner, ends[good][:, None]], axis=1)
        self.row_numbers = (starts[good] + part.offset).astype(np.int64)

    def column(self, index: int) -> pa.Array:
        """One field of every row, as text."""
        return _slices(self.data, self.starts[:, index], self.ends[:, index])

    def table(self, names: Sequence[str]) -> pa.Table:
        """All columns; names that repeat get their position appended."""
        unique = [name if name not in names[:i] else f"{name}_{i}" for i, name in enumerate(names)]
        return pa.table([self.column(i) for i in range(len(names))], names=unique)


def _slices(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> pa.Array:
    """Ascending stretches of `data` as a string array (unchecked).

    The stretches and the gaps between them tile the buffer, so one offsets array holds both; every second is taken.
    """
    if len(starts) == 0:
        return pa.array([], pa.string())
    bounds = np.stack([starts, ends], axis=1).astype(np.int32).ravel()
    tiles = pa.Array.from_buffers(pa.string(), len(bounds) - 1, [None, pa.py_buffer(bounds), pa.py_buffer(data)])
    return tiles.take(pa.array(np.arange(0, len(bounds) - 1, 2)))


def read_csv(source: Source, piece: Piece) -> Iterator[Batch]:
    """Rows of a quoted file with as many fields as its columns; others are bad.

    A quote that is never closed makes one bad row of what follows, up to `LONGEST_LINE` characters.
    """
    file = source.files[piece.role][piece.file]
    with lines.open_bytes(source, file) as stream:
        records: _Records = _records(stream, str(source.options.get("delimiter", ",")))
        names, records = _csv_names(source, records, file)
        rows: list[list[str]] = []
        numbers: list[int] = []
        bad, size = 0, 0
        for offset, fields in records:
            if fields is None or len(fields) != len(names) or not _encodes(fields):
                bad += 1
                continue
            if offset == 0 and "names" in source.options and _is_header(fields, names):
                continue
            rows.append(fields)
            numbers.append(offset)
            size += sum(map(len, fields))
            if len(rows) >= CSV_ROWS or size >= CHUNK_BYTES:
                yield _csv_batch(rows, names, numbers, bad)
                rows, numbers, bad, size = [], [], 0, 0
        yield _csv_batch(rows, names, numbers, bad)


def _csv_names(source: Source, records: _Records, file: SourceFile) -> tuple[list[str], _Records]:
    """Column names, and the records that are left."""
    if "names" in source.options:
        return list(source.options["names"]), records
    head = next(records, None)
    if head is None or head[1] is None:
        raise UnitError(f"{file.url}: the first line cannot be read as CSV")
    if has_header(source):
        return head[1], records
    return [str(position) for position in range(len(head[1]))], itertools.chain([head], records)


def _is_header(fields: list[str], names: list[str]) -> bool:
    return [field.casefold() for field in fields] == [name.casefold() for name in names]


def _csv_batch(rows: list[list[str]], names: list[str], numbers: list[int], bad: int) -> Batch:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    table = pa.table([pa.array(column, pa.string()) for column in columns], names=names)
    return table_batch(table, np.array(numbers, np.int64), bad)


def _records(stream: ByteStream, delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """(byte offset, fields) of each record; None for one that cannot be parsed."""
    csv.field_size_limit(LONGEST_LINE)
    text = _CountingLines(stream)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        offset = text.position
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield offset, None
            continue
        if fields:
            yield offset, fields


class _CountingLines:
    """Lines as text, undecodable bytes kept as surrogates, counting the bytes handed out."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.position = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        first = self.position == 0
        self.position += len(line)
        return (line.removeprefix(_BOM) if first else line).decode("utf-8", "surrogateescape")


def _encodes(fields: Sequence[str]) -> bool:
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True
