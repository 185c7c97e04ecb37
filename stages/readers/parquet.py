"""Parquet: ranges of row groups, or one huge row group streamed; columns are read when asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.readers.batch import Batch, BrokenFile, Piece, find_name, one_array
from stages.readers.checked import CheckedText, read_checked
from stages.readers.roles import role_names
from stages.sources import Source, SourceFile
from stages.storage import Store, is_local, strip_protocol
from stages.where import parse

UNIT_ROWS = 1 << 20
UNIT_BYTES = 256 << 20
"""Uncompressed, of all columns. A row group above either bound is streamed in batches."""
STREAM_ROWS = 1 << 16
STREAM_BYTES = 32 << 20
READ_BUFFER = 1 << 20


def pieces(source: Source, role: str = "data") -> Iterator[Piece]:
    """Ranges of row groups within the bounds; a file whose footer cannot be read is one piece that will say so."""
    for number, file in enumerate(source.files[role]):
        try:
            with open_parquet(source, file) as parquet:
                sizes = _row_group_sizes(parquet.metadata)
        except BrokenFile:
            yield Piece(role=role, file=number)
            continue
        for start, stop in _ranges(sizes, UNIT_ROWS, UNIT_BYTES):
            rows = sum(count for count, _ in sizes[start:stop])
            yield Piece(role=role, file=number, start=start, stop=stop, rows=rows)


def read(source: Source, piece: Piece) -> Iterator[Batch]:
    """The rows of a piece at once; a huge row group is streamed.

    Raises:
        BrokenFile: footer or pages that cannot be read.
    """
    file = source.files[piece.role][piece.file]
    with open_parquet(source, file) as parquet:
        groups = list(range(piece.start, piece.stop if piece.stop >= 0 else parquet.num_row_groups))
        sizes = _row_group_sizes(parquet.metadata)
        if len(groups) == 1 and _is_huge(*sizes[groups[0]]):
            yield from _stream(parquet, groups[0], file.url, needed_columns(source))
        else:
            for start, stop in _ranges([sizes[group] for group in groups], UNIT_ROWS, UNIT_BYTES):
                yield _whole(parquet, groups[start:stop], file.url)


@contextlib.contextmanager
def open_parquet(source: Source, file: SourceFile) -> Iterator[pq.ParquetFile]:
    """The file opened: local ones by pyarrow's own reader, others through fsspec."""
    with contextlib.ExitStack() as stack:
        with damage(file.url):
            if is_local(file.url):
                where: Any = strip_protocol(file.url)
            else:
                where = stack.enter_context(Store(file.url, source.storage_options).open(file.url))
            metadata = pq.ParquetFile(where).metadata
            parquet = pq.ParquetFile(
                where,
                metadata=metadata,
                buffer_size=READ_BUFFER,
                pre_buffer=False,
                read_dictionary=_few_valued(source, metadata.schema.names),
            )
        yield stack.enter_context(parquet)


@contextlib.contextmanager
def damage(url: str) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into `BrokenFile`; what the system says passes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, pa.ArrowMemoryError) or getattr(error, "errno", None) is not None:
            raise
        raise BrokenFile(f"{url}: {str(error).strip().splitlines()[0]}") from error


def _few_valued(source: Source, present: Sequence[str]) -> list[str]:
    """The file's columns that repeat a few values, to be decoded for kept rows only."""
    wanted = {name.lower() for name in role_names(source).get("licence", ())}
    return [name for name in present if name.lower() in wanted]


def needed_columns(source: Source) -> list[str]:
    """Every column that the source's roles and conditions name, in order."""
    names = [name for wanted in role_names(source).values() for name in wanted]
    names += [condition["column"] for condition in source.unsafe]
    if source.where:
        names += sorted(parse(source.where).columns())
    return list(dict.fromkeys(names))


def _row_group_sizes(metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return [(group.num_rows, group.total_byte_size) for group in groups]


def _is_huge(rows: int, size: int) -> bool:
    return rows > UNIT_ROWS or size > UNIT_BYTES


def _ranges(sizes: list[tuple[int, int]], most_rows: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Consecutive row groups within the bounds; a larger one stands alone."""
    start, rows, size = 0, 0, 0
    for index, (more_rows, more_bytes) in enumerate(sizes):
        if index > start and (rows + more_rows > most_rows or size + more_bytes > most_bytes):
            yield start, index
            start, rows, size = index, 0, 0
        rows, size = rows + more_rows, size + more_bytes
    if start < len(sizes):
        yield start, len(sizes)


def _whole(parquet: pq.ParquetFile, groups: list[int], url: str) -> Batch:
    metadata = parquet.metadata
    counts = [metadata.row_group(group).num_rows for group in groups]
    one_group = np.arange(max(counts), dtype=np.int64)

    def load(name: str) -> pa.Array:
        with damage(url):
            table = parquet.read_row_groups(groups, columns=[name], use_threads=False)
        return one_array(table.column(name))

    def checked(name: str) -> CheckedText | None:
        if not is_local(url) or not _is_text(parquet.schema, name):
            return None
        start = sum(metadata.row_group(group).num_rows for group in range(groups[0]))
        return read_checked(strip_protocol(url), name, start, sum(counts))

    return Batch(
        rows=sum(counts),
        names=parquet.schema_arrow.names,
        load=load,
        row_numbers=one_group if len(groups) == 1 else np.concatenate([one_group[:count] for count in counts]),
        row_groups=np.repeat(np.array(groups, np.int32), counts),
        is_filled=lambda name: all(_filled(metadata, group, name) for group in groups),
        checked=checked,
    )


def _is_text(columns: pq.ParquetSchema, name: str) -> bool:
    """Whether exactly one column has this name, is no list and is declared to be text."""
    found = [columns.column(index) for index in range(len(columns)) if columns.column(index).path == name]
    return len(found) == 1 and found[0].max_repetition_level == 0 and found[0].logical_type.type == "STRING"


def _filled(metadata: pq.FileMetaData, group: int, name: str) -> bool:
    """Whether statistics of a row group prove a text column free of null and empty values."""
    row_group = metadata.row_group(group)
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        if column.path_in_schema == name:
            found = column.statistics
            if found is None or not found.has_min_max or not found.has_null_count:
                return False
            return found.null_count == 0 and len(found.min) > 0
    return False


def _stream(parquet: pq.ParquetFile, group: int, url: str, wanted: list[str]) -> Iterator[Batch]:
    """One row group in batches of bounded bytes, decoding only the columns that may be asked for."""
    rows, size = _row_group_sizes(parquet.metadata)[group]
    batch_rows = max(1, min(STREAM_ROWS, STREAM_BYTES * rows // max(size, 1)))
    names = parquet.schema_arrow.names
    columns = [exact for name in wanted if (exact := find_name(names, name)) is not None]
    record_batches = parquet.iter_batches(
        batch_rows, row_groups=[group], columns=list(dict.fromkeys(columns)), use_threads=False
    )
    done = 0
    while True:
        with damage(url):
            part = next(record_batches, None)
        if part is None:
            return
        yield Batch(
            rows=part.num_rows,
            names=names,
            load=part.column,
            row_numbers=np.arange(done, done + part.num_rows, dtype=np.int64),
            row_groups=np.full(part.num_rows, group, np.int32),
        )
        done += part.num_rows
