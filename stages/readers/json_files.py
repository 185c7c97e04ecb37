"""JSON lines, and JSON documents streamed: a list of objects, or an object of parallel lists."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from stages.errors import UnitError
from stages.readers import lines
from stages.readers.batch import Batch, BrokenFile, Piece, find_name, records_batch
from stages.readers.lines import Lines
from stages.readers.parquet import needed_columns
from stages.readers.roles import text_names
from stages.sources import Source, SourceFile

BATCH_ROWS = 1 << 14
BATCH_BYTES = 8 << 20
HEAD_BYTES = 1 << 20
_MISSING = object()


def read_json_lines(source: Source, piece: Piece) -> Iterator[Batch]:
    """One object a line; blank lines are no rows, what is no object is a bad one."""
    file = source.files[piece.role][piece.file]
    texts = text_names(source)
    known = dict.fromkeys(_head_names(source, file)) if piece.start else {}
    for part in lines.read_lines(source, file, piece.start, piece.stop):
        batch = records_batch(*_objects(part), texts, known)
        batch.bad_rows += part.too_long
        known |= dict.fromkeys(batch.names)
        yield batch


def _head_names(source: Source, file: SourceFile) -> Sequence[str]:
    """The keys of a file's first objects: what a later piece may lack by chance."""
    head = next(lines.read_lines(source, file, 0, HEAD_BYTES), None)
    return records_batch(*_objects(head), frozenset()).names if head else ()


def _objects(part: Lines) -> tuple[list[dict[str, Any] | None], list[int]]:
    """The objects of lines that are not blank, and where they stand."""
    records, numbers = [], []
    for start, end in zip(part.starts.tolist(), part.ends.tolist(), strict=True):
        line = part.data[start:end].tobytes().strip()
        if line:
            records.append(_object(line))
            numbers.append(part.offset + start)
    return records, numbers


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_json(source: Source, piece: Piece) -> Iterator[Batch]:
    """A document's rows, never holding more than a batch of them."""
    file = source.files[piece.role][piece.file]
    if source.options.get("orient", "rows") == "columns":
        records: Iterable[Any] = _columns(source, file)
    else:
        records = _items(source, file)
    texts = text_names(source)
    known: dict[str, None] = {}
    for first, rows in batches(records):
        objects = [record if isinstance(record, dict) else None for record in rows]
        batch = records_batch(objects, range(first, first + len(objects)), texts, known)
        known |= dict.fromkeys(batch.names)
        yield batch


def batches(records: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
    """(number of the first, records), bounded in number and roughly in bytes."""
    batch: list[Any] = []
    first, size = 0, 0
    for record in records:
        batch.append(record)
        size += _weight(record)
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield first, batch
            first, batch, size = first + len(batch), [], 0
    if batch:
        yield first, batch


def _weight(value: Any) -> int:
    """Characters in a decoded value, roughly."""
    if isinstance(value, dict):
        return sum(map(_weight, value.values())) + 64
    if isinstance(value, list):
        return sum(map(_weight, value)) + 64
    return len(value) + 50 if isinstance(value, str) else 32


@contextlib.contextmanager
def parsing(url: str) -> Iterator[None]:
    """Turn what the parser says of a damaged document into `BrokenFile`."""
    import ijson

    try:
        yield
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise BrokenFile(f"{url}: {' '.join(str(error).split())[:200]}") from error


def items(source: Source, file: SourceFile, prefix: str) -> Iterator[Any]:
    """The values under an ijson prefix, one at a time.

    Raises:
        BrokenFile: no valid JSON.
    """
    import ijson

    with lines.open_bytes(source, file) as stream:
        found = ijson.items(stream, prefix, use_float=True)
        while True:
            with parsing(file.url):
                value = next(found, _MISSING)
            if value is _MISSING:
                return
            yield value


def _items(source: Source, file: SourceFile) -> Iterator[Any]:
    prefix = str(source.options.get("items", "item"))
    empty = True
    for value in items(source, file, prefix):
        empty = False
        yield value
    if empty and not _has_list(source, file, prefix):
        raise UnitError(
            f"{file.url}: no list of rows at {prefix!r} (options.items); "
            f"the top level has {', '.join(top_keys(source, file)) or 'no keys'}"
        )


def _has_list(source: Source, file: SourceFile, prefix: str) -> bool:
    """Whether the list that a prefix ending in `item` speaks of is there, if empty."""
    place = prefix.removesuffix("item").removesuffix(".")
    return any((where, event) == (place, "start_array") for where, event in _events(source, file))


def top_keys(source: Source, file: SourceFile) -> list[str]:
    """The keys of a document that is one object."""
    keys = []
    depth = 0
    for event, value in _basic_events(source, file):
        if event in ("start_map", "start_array"):
            depth += 1
        elif event in ("end_map", "end_array"):
            depth -= 1
        elif event == "map_key" and depth == 1:
            keys.append(str(value))
    return keys


def _events(source: Source, file: SourceFile) -> Iterator[tuple[str, str]]:
    import ijson

    with lines.open_bytes(source, file) as stream, parsing(file.url):
        for where, event, _ in ijson.parse(stream, use_float=True):
            yield where, event


def _basic_events(source: Source, file: SourceFile) -> Iterator[tuple[str, Any]]:
    import ijson

    with lines.open_bytes(source, file) as stream, parsing(file.url):
        yield from ijson.basic_parse(stream, use_float=True)


def _columns(source: Source, file: SourceFile) -> Iterator[dict[str, Any]]:
    """Parallel lists as rows: each list has a stream of its own through the file, so none is held."""
    keys = top_keys(source, file)
    wanted = [exact for name in needed_columns(source) if (exact := find_name(keys, name)) is not None]
    names = list(dict.fromkeys(wanted))
    if not names:
        raise UnitError(f"{file.url}: none of the columns wanted; there are {', '.join(keys) or 'no keys'}")
    streams = [items(source, file, f"{name}.item") for name in names]
    for values in itertools.zip_longest(*streams, fillvalue=_MISSING):
        if any(value is _MISSING for value in values):
            raise BrokenFile(f"{file.url}: its lists {', '.join(names)} differ in length")
        yield dict(zip(names, values, strict=True))
