"""Image features as files: float16 vectors of length 1, with the key and sha256 of the image each is of.

A file's metadata holds the digest of the model that computed it (`MODEL`), so that nobody compares the features of
two. Rows of tables point at their vector by file and row, as they point at their image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.base import OutputFile, Workspace
from stages.schema import FEATURES

COLUMN = "features"
"""Also the kind of the files."""
MODEL = b"curation.model"
"""Key of a file's metadata under which the model's digest stands."""

POINTER = FEATURES.field(COLUMN).type

Vectors = NDArray[np.float16]
"""(n, width)."""


def vector_array(vectors: NDArray[Any]) -> pa.Array:
    """(n, width) vectors as fixed-size lists of float16; null where one is not finite."""
    rows, width = vectors.shape
    flat = pa.array(np.ascontiguousarray(vectors, np.float16).reshape(-1))
    finite = np.isfinite(vectors).all(axis=1) if rows else np.empty(0, bool)
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(~finite))


def vectors_of(column: pa.Array | pa.ChunkedArray) -> Vectors:
    """(n, width) vectors of a column without nulls."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(lists.flatten()).reshape(len(lists), lists.type.list_size)


def write_features(ws: Workspace, name: str, rows: pa.Table, model: str) -> None:
    """Store `key, sha256, features` of distinct images, computed by a model; rows without features are left out."""
    known = rows.filter(rows[COLUMN].is_valid())
    ws.write_table(name, known.replace_schema_metadata({MODEL: model}), kind=COLUMN)


def model_of(table: pa.Table) -> str:
    """The digest of the model that computed a file's features."""
    return str((table.schema.metadata or {}).get(MODEL, b"").decode())


def read_vectors(ws: Workspace, path: str, rows: NDArray[np.int64]) -> tuple[Vectors, str]:
    """(n, width) some rows of a file, and the digest of the model that computed them."""
    table = ws.read_table(path, columns=[COLUMN])
    return vectors_of(table[COLUMN].take(pa.array(rows))), model_of(table)


def pointers(ws: Workspace, files: Sequence[OutputFile], digests: pa.Array) -> pa.Array:
    """For each sha256 where its features lie (`schema.FEATURES`): in the first of the files that has them, or null."""
    stored = [ws.read_table(file.path, columns=["sha256"])["sha256"] for file in files]
    ends = np.cumsum([0, *(len(column) for column in stored)])
    if not ends[-1]:
        return pa.nulls(len(digests), POINTER)
    everything = pa.chunked_array([chunk for column in stored for chunk in column.chunks])
    places = pc.index_in(digests, everything.combine_chunks())
    known, place = places.is_valid(), places.fill_null(0).to_numpy()
    file = np.searchsorted(ends, place, side="right") - 1
    columns = [pa.array([each.path for each in files]).take(pa.array(file)), pa.array(place - ends[file])]
    return pa.StructArray.from_arrays(columns, fields=list(POINTER), mask=pc.invert(known))
