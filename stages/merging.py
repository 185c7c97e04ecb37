"""The captions of twins: sent to the row that is kept, and joined to its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.schema import CAPTION

CAPTIONS = pa.list_(CAPTION)
MOVED = pa.schema([("survivor_row", pa.int32()), ("rank", pa.int64()), ("captions", CAPTIONS)])
"""Captions of a dropped row: `survivor_row` counts within its survivor's unit, `rank` orders twins totally."""

Caption = Mapping[str, str]


def entries(table: pa.Table) -> pa.Array:
    """Each row's caption entries; the caption itself where it has none. `captions` may be missing."""
    return pa.array([_entries(row) for row in table.to_pylist()], CAPTIONS)


def _entries(row: Mapping[str, Any]) -> list[Caption]:
    if row.get("captions"):
        return list(row["captions"])
    if row["caption"]:
        return [{"text": row["caption"], "source": row["source"], "origin": "alt_text"}]
    return []


def merged(table: pa.Table, moved: pa.Table) -> pa.ChunkedArray:
    """`captions` of every row: the distinct ones of itself, then of the twins it stands for in the total order.

    Args:
        table: rows with `source`, `caption` and `captions`.
        moved: their twins' captions, as MOVED, in any order.
    """
    moved = moved.sort_by([("survivor_row", "ascending"), ("rank", "ascending")])
    survivors = pc.unique(moved["survivor_row"])
    of_twins: dict[int, list[Caption]] = {row: [] for row in survivors.to_pylist()}
    for row, captions in zip(moved["survivor_row"].to_pylist(), moved["captions"].to_pylist(), strict=True):
        of_twins[row] += captions
    own = entries(table.select(["source", "caption", "captions"]).take(survivors)).to_pylist()
    joined = [_distinct([*mine, *others]) for mine, others in zip(own, of_twins.values(), strict=True)]
    found = pa.array(joined, CAPTIONS).take(pc.index_in(pa.array(range(table.num_rows), pa.int32()), survivors))
    return pc.coalesce(pa.chunked_array([found]), table["captions"])


def _distinct(captions: list[Caption]) -> list[Caption]:
    found: dict[tuple[str, str, str], Caption] = {}
    for entry in captions:
        found.setdefault((entry["text"], entry["source"], entry["origin"]), entry)
    return list(found.values())
