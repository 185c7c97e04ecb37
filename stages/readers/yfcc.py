"""YFCC100M's metadata table, restricted to a subset list; its text is percent- and plus-encoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from urllib.parse import unquote_plus

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.readers import lines
from stages.readers.batch import Batch, Piece, table_batch
from stages.readers.lines import Lines
from stages.readers.separated import Fields
from stages.sources import Source, SourceFile

COLUMNS = (
    *("photo_id", "user_id", "user_name", "date_taken", "date_upload", "device", "title", "description"),
    *("user_tags", "machine_tags", "longitude", "latitude", "accuracy", "page_url", "download_url", "license"),
    *("license_url", "server", "farm", "secret", "secret_orig", "ext", "marker"),
)
"""The 23 columns; newer dumps put a line number first and a hash third."""
LONG_COLUMNS = ("line_number", "photo_id", "hash", *COLUMNS[1:])
_ENCODED = ("user_name", "device", "title", "description", "user_tags", "machine_tags")
_TAB = 9


def pieces(source: Source) -> Iterator[Piece]:
    """Byte ranges of the metadata."""
    return lines.pieces(source.files["metadata"], "metadata")


def read(source: Source, piece: Piece) -> Iterator[Batch]:
    """Metadata rows of the subset (all rows without one); a row of neither 23 nor 25 fields is bad."""
    file = source.files["metadata"][piece.file]
    subset = _subset(_Lists(source)) if source.files.get("subset") else None
    for part in lines.read_lines(source, file, piece.start, piece.stop):
        short, long = _by_width(part)
        bad = Fields(short, len(COLUMNS)).bad_rows
        yield _batch(Fields(short, len(COLUMNS)), COLUMNS, subset, bad)
        yield _batch(Fields(long, len(LONG_COLUMNS)), LONG_COLUMNS, subset, 0)


def _by_width(part: Lines) -> tuple[Lines, Lines]:
    """Lines of 25 fields apart from all others."""
    tabs = np.flatnonzero(part.data == _TAB)
    count = np.searchsorted(tabs, part.ends) - np.searchsorted(tabs, part.starts)
    is_long = count == len(LONG_COLUMNS) - 1
    short = replace(part, starts=part.starts[~is_long], ends=part.ends[~is_long])
    return short, replace(part, starts=part.starts[is_long], ends=part.ends[is_long], too_long=0)


def _batch(fields: Fields, names: tuple[str, ...], subset: np.ndarray | None, bad: int) -> Batch:
    table, numbers = fields.table(names), fields.row_numbers
    if subset is not None and len(subset):
        ids = _ids(table["photo_id"])
        at = np.minimum(np.searchsorted(subset, ids), len(subset) - 1)
        keep = subset[at] == ids
        table, numbers = table.filter(pa.array(keep)), numbers[keep]
    elif subset is not None:
        table, numbers = table.slice(0, 0), numbers[:0]
    for name in _ENCODED:
        table = table.set_column(table.schema.get_field_index(name), name, _decoded(table[name]))
    return table_batch(table, numbers, bad)


def _decoded(values: pa.ChunkedArray) -> pa.Array:
    """Percent- and plus-decoded text; what does not decode to UTF-8 keeps U+FFFD in its place."""
    return pa.array([unquote_plus(value) for value in values.to_pylist()], pa.string())


def _ids(values: pa.ChunkedArray) -> np.ndarray:
    """Photo ids as int64; −1 where there is no number."""
    is_number = pc.match_substring_regex(values, r"^\d{1,18}$")
    numbers = pc.if_else(is_number, values, pa.scalar("-1")).cast(pa.int64())
    return np.asarray(numbers.to_numpy())


class _Lists:
    """The subset's files as a cache key: the same files, sizes and versions are read once a process."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.files: tuple[SourceFile, ...] = tuple(source.files["subset"])

    def __hash__(self) -> int:
        return hash(self.files)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Lists) and self.files == other.files


@lru_cache(maxsize=1)
def _subset(lists: _Lists) -> np.ndarray:
    """The photo ids of (line number, photo id, hash) lines, sorted: eight bytes a photo."""
    found = []
    for file in lists.files:
        for part in lines.read_lines(lists.source, file):
            fields = Fields(part, 3)
            found.append(_ids(pa.chunked_array([fields.column(1)])))
    ids = np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)
    return ids[np.searchsorted(ids, 0) :]
