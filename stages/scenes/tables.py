"""Tables that describe images: CSV, TSV, JSON lines and parquet, row by row as plain values."""

from __future__ import annotations

import ast
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from stages.errors import UnitError
from stages.sources import SourceFile
from stages.storage import Store

YEARS = range(1800, 2200)
"""In which an image may have been taken."""
_BATCH = 4096


def rows(file: SourceFile, access: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a table, by the ending of its name.

    Raises:
        UnitError: it cannot be read, naming the file.
    """
    kind = file.url.removesuffix(".gz").rpartition(".")[2].lower()
    try:
        yield from _READERS[kind](Store(file.url, access), file.url)
    except KeyError as error:
        raise UnitError(f"{file.url}: tables end in {', '.join(sorted(_READERS))}") from error
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise UnitError(f"{file.url} cannot be read as {kind}: {error}") from error


def _separated(delimiter: str) -> Any:
    def read(store: Store, path: str) -> Iterator[dict[str, Any]]:
        with _text(store, path) as text:
            yield from csv.DictReader(text, delimiter=delimiter)

    return read


def _json_lines(store: Store, path: str) -> Iterator[dict[str, Any]]:
    with _text(store, path) as text:
        for line in text:
            row = parsed(line) if line.strip() else None
            if isinstance(row, dict):
                yield row


def _parquet(store: Store, path: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with store.open(path) as file, pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=_BATCH):
            yield from batch.to_pylist()


def _text(store: Store, path: str) -> io.TextIOWrapper:
    import gzip

    file: Any = store.open(path)
    return io.TextIOWrapper(gzip.open(file) if path.endswith(".gz") else file, encoding="utf-8-sig", newline="")


_READERS = {
    "csv": _separated(","),
    "tsv": _separated("\t"),
    "jsonl": _json_lines,
    "ndjson": _json_lines,
    "parquet": _parquet,
}


def parsed(text: str | bytes) -> Any:
    """A JSON value whose texts can be written: halves of surrogate pairs become question marks.

    Raises:
        ValueError: it is none.
    """
    value = json.loads(text)
    if not isinstance(text, str):
        text = text.decode("utf-8", "replace")
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")) if "\\u" in text else value


def pick(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of some columns that holds something, whatever the case of their names."""
    lower = {str(name).lower(): value for name, value in row.items()}
    for name in names:
        value = row.get(name, lower.get(name.lower()))
        if value is not None and value != "":
            return value
    return None


def texts(value: Any) -> list[str]:
    """A cell as a list of texts: a list, one written as Python or JSON writes it, or texts between semicolons."""
    if value is None:
        return []
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            return [value.strip()]
    items = value if isinstance(value, list | tuple) else str(value).split(";")
    return [str(item).strip() for item in items if item is not None and str(item).strip()]


def number(value: Any) -> float | None:
    """A cell as a finite number, else None."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) < float("inf") else None


def moment(value: Any) -> datetime | None:
    """A date and time in UTC, from ISO 8601, `YYYY:MM:DD hh:mm:ss` or a table's value; None if it is none of YEARS."""
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 9 and text[4] == text[7] == ":":
            text = f"{text[:4]}-{text[5:7]}-{text[8:]}"
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            return None
    if not isinstance(value, datetime) or value.year not in YEARS:
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
