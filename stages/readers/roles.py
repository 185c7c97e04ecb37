"""What a source's columns are to the pipeline, and their text, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.errors import UnitError
from stages.readers.batch import Batch
from stages.sources import Source

OPTIONAL = frozenset({"licence", "page", "language", "id"})
"""Roles whose column a file may lack."""


@dataclass(frozen=True)
class CaptionColumn:
    """A column of captions (text or lists of text) and where such texts come from."""

    names: tuple[str, ...]
    """The first that holds something counts."""
    origin: str


@dataclass(frozen=True)
class Texts:
    """Text values of a batch, each belonging to a row."""

    values: pa.Array
    """string or large_string, valid UTF-8."""
    parents: np.ndarray | None = None
    """The row of each value, ascending; None when there is one a row."""


def column_names(value: Any) -> tuple[str, ...]:
    """A role's column as names: one, several alternatives, or a position."""
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    return (str(value),)


def caption_columns(source: Source) -> list[CaptionColumn]:
    """The source's caption columns in their order."""
    origin = str(source.options.get("origin", "alt_text"))
    if "captions" not in source.columns:
        return [CaptionColumn(column_names(source.columns["caption"]), origin)]
    items: list[Mapping[str, Any]] = source.columns["captions"]
    return [CaptionColumn(column_names(item["column"]), str(item.get("origin", origin))) for item in items]


def role_names(source: Source) -> dict[str, tuple[str, ...]]:
    """Column names by role; `caption`, `caption 1`… for the captions."""
    names = {role: column_names(value) for role, value in source.columns.items() if role not in ("caption", "captions")}
    captions = {f"caption {number}": column.names for number, column in enumerate(caption_columns(source))}
    return names | captions


def text_names(source: Source) -> frozenset[str]:
    """Case-folded names of the columns that must hold text: the URL's and the captions'."""
    roles = role_names(source)
    return frozenset(name.casefold() for role, names in roles.items() if role not in OPTIONAL for name in names)


def read_text(batch: Batch, names: tuple[str, ...], spoilt: np.ndarray) -> pa.Array:
    """A text column of a batch: per row, the first of the named columns that is neither null nor empty.

    Marks rows of invalid UTF-8 in `spoilt`; they are null.

    Raises:
        UnitError: none of the columns is there, or one holds no text.
    """
    exact = batch.first_of(names)
    if len(exact) == 1 and (text := batch.checked(exact[0])) is not None:
        return text.array()
    result = _checked(batch.load(exact[0]), exact[0], spoilt, None)
    for name in exact[1:]:
        more = _checked(batch.load(name), name, spoilt, None)
        result = pc.if_else(pc.fill_null(pc.greater(pc.binary_length(result), 0), False), result, more)
    return result


def read_captions(batch: Batch, column: CaptionColumn, spoilt: np.ndarray) -> Texts:
    """A caption column's texts; lists are flattened."""
    if len(column.names) > 1:
        return Texts(read_text(batch, column.names, spoilt))
    name = batch.find(column.names[0])
    if (text := batch.checked(name)) is not None:
        return Texts(text.array())
    values = batch.load(name)
    if not pa.types.is_list(values.type) and not pa.types.is_large_list(values.type):
        return Texts(_checked(values, name, spoilt, None))
    parents = pc.list_parent_indices(values).to_numpy(zero_copy_only=False).astype(np.int64)
    return Texts(_checked(values.flatten(), name, spoilt, parents), parents)


def lengths(values: pa.Array) -> np.ndarray:
    """Bytes of each text, 0 for null; a view of the offsets where nothing is null."""
    found = np.diff(offsets(values))
    if values.null_count:
        found = np.where(values.is_valid().to_numpy(zero_copy_only=False), found, 0)
    return found


def offsets(values: pa.Array) -> np.ndarray:
    """A text array's n + 1 offsets into its data buffer."""
    kind = np.int64 if pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type) else np.int32
    if len(values) == 0:
        return np.zeros(1, kind)
    return np.frombuffer(values.buffers()[1], kind)[values.offset : values.offset + len(values) + 1]


def _checked(values: pa.Array, name: str, spoilt: np.ndarray, parents: np.ndarray | None) -> pa.Array:
    """The column as valid text; rows that are none are marked and null."""
    values = _as_text(values, name)
    bad = invalid_utf8(values)
    if bad is None:
        return values
    spoilt[np.flatnonzero(bad) if parents is None else parents[bad]] = True
    return pc.if_else(pa.array(bad), pa.scalar(None, values.type), values)


def _as_text(values: pa.Array, name: str) -> pa.Array:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return values
    if pa.types.is_binary(kind):
        return values.view(pa.string())
    if pa.types.is_large_binary(kind):
        return values.view(pa.large_string())
    if pa.types.is_null(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.string())
    raise UnitError(f"column {name!r} holds {kind}, where text is needed")


def invalid_utf8(values: pa.Array) -> np.ndarray | None:
    """Mask of the texts that are not UTF-8; None when all are.

    The buffer is checked whole, then no text may begin within a character; only when that fails, each by itself.
    """
    bounds = offsets(values)
    if len(values) == 0 or bounds[0] == bounds[-1]:
        return None
    data = values.buffers()[2].slice(int(bounds[0]), int(bounds[-1] - bounds[0]))
    if _is_utf8(data):
        begins = bounds[: np.searchsorted(bounds, bounds[-1])] - bounds[0]
        if not (np.frombuffer(data, np.uint8)[begins] & 0xC0 == 0x80).any():
            return None
    binary = values.view(pa.large_binary() if pa.types.is_large_string(values.type) else pa.binary())
    return np.array([not _decodes(value) for value in binary.to_pylist()], bool)


def _is_utf8(data: pa.Buffer) -> bool:
    whole = pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, data.size])), data])
    try:
        whole.cast(pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True


def _decodes(value: bytes | None) -> bool:
    try:
        if value is not None:
            value.decode()
    except UnicodeDecodeError:
        return False
    return True
