"""Rows of a source in bounded batches, whose columns are loaded when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from stages.errors import UnitError
from stages.readers.checked import CheckedText


class BrokenFile(UnitError):
    """A file that cannot be read to its end; `on_bad_file: drop` leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A bounded part of a source: what one unit reads."""

    role: str
    """Which of the source's named files."""
    file: int
    """Its number among that role's files."""
    start: int = 0
    """First row group, or first byte."""
    stop: int = -1
    """End of the range, exclusive; −1 for the file's end."""
    rows: int = 0
    """Estimate."""

    def spec(self) -> dict[str, Any]:
        """As JSON values; `Piece(**spec)` is the inverse."""
        return {"role": self.role, "file": self.file, "start": self.start, "stop": self.stop, "rows": self.rows}


@dataclass(kw_only=True)
class Batch:
    """Consecutive readable rows of one file."""

    rows: int
    names: Sequence[str]
    """Columns there are."""
    load: Callable[[str], pa.Array]
    """A column by its exact name, `rows` long."""
    bad_rows: int = 0
    """Rows that stood among these and could not be read; they are not counted in `rows`."""
    row_numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Where each row stands: in its row group, or its byte offset, or its record number."""
    row_groups: np.ndarray | None = None
    """The row group of each row; None outside parquet (−1)."""
    is_filled: Callable[[str], bool] = lambda name: False
    """Whether the file's statistics prove that a column has neither null nor empty values."""
    checked: Callable[[str], CheckedText | None] = lambda name: None
    """A column of valid text, where the reader can tell; else `load` gives it and it must be checked."""

    def find(self, name: str) -> str:
        """The exact name of a column given in any case.

        Raises:
            UnitError: there is none.
        """
        return self.first_of([name])[0]

    def first_of(self, wanted: Sequence[str]) -> list[str]:
        """The exact names of those of the wanted columns that there are.

        Raises:
            UnitError: there is none of them.
        """
        found = [exact for name in wanted if (exact := find_name(self.names, name)) is not None]
        if not found:
            raise UnitError(f"no column {' or '.join(map(repr, wanted))}; there are {', '.join(self.names)}")
        return found


def table_batch(table: pa.Table, row_numbers: np.ndarray, bad_rows: int = 0) -> Batch:
    """A batch whose columns are all in memory."""
    return Batch(
        rows=table.num_rows,
        names=table.column_names,
        load=lambda name: one_array(table.column(name)),
        bad_rows=bad_rows,
        row_numbers=row_numbers,
    )


def records_batch(
    records: Sequence[dict[str, Any] | None],
    row_numbers: Sequence[int],
    texts: frozenset[str],
    known: Iterable[str] = (),
) -> Batch:
    """A batch of decoded JSON objects; None stands for one that could not be read.

    `texts` are case-folded names that must hold text, lists of text or nothing: other rows are bad. `known` are keys
    of other objects of the file: columns, although none of these objects may have them.
    """
    keep = [i for i, record in enumerate(records) if record is not None and _holds_text(record, texts)]
    good: list[dict[str, Any]] = [record for i in keep if (record := records[i]) is not None]
    return Batch(
        rows=len(good),
        names=list(dict.fromkeys(chain(chain.from_iterable(good), known))),
        load=lambda name: values_array([record.get(name) for record in good]),
        bad_rows=len(records) - len(good),
        row_numbers=np.array([row_numbers[i] for i in keep], np.int64),
    )


def _holds_text(record: dict[str, Any], texts: frozenset[str]) -> bool:
    for name, value in record.items():
        if value is None or isinstance(value, str) or name.casefold() not in texts:
            continue
        if not isinstance(value, list) or not all(item is None or isinstance(item, str) for item in value):
            return False
    return True


def values_array(values: list[Any]) -> pa.Array:
    """Python values as one Arrow array; values of several kinds become text, lists where some are lists."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        if any(isinstance(value, list) for value in values):
            lists = [value if isinstance(value, list) else [value] for value in values]
            return pa.array([[_text(item) for item in items] for items in lists], pa.list_(pa.string()))
        return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    """Lone surrogates, which JSON escapes can spell and UTF-8 cannot, become U+FFFD."""
    if value is None:
        return None
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, copied only when it has several chunks."""
    if column.num_chunks == 1:
        return column.chunk(0)
    if pa.types.is_string(column.type) and column.nbytes >= 1 << 31:
        column = column.cast(pa.large_string())
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def find_name(names: Iterable[str], wanted: str) -> str | None:
    """The name itself, else the first that differs in case only."""
    names = list(names)
    if wanted in names:
        return wanted
    return next((name for name in names if name.casefold() == wanted.casefold()), None)
