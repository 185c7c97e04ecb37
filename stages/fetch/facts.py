"""What `download` says of a URL, and so of every row that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.base import status_column
from stages.images import Octets, Verdict
from stages.schema import DOWNLOAD, conform, extend

URL = "_url"
"""Work column: the canonical URL, by which rows share a fetch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """The columns that `download` adds, and the reason."""

    reason: str | None
    http_status: int | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    phash: int | None = None
    thumbnail: Octets | None = None
    image: Mapping[str, Any] | None = None
    fetched_at: datetime | None = None
    attempts: int | None = None
    honoured: str | None = None

    @property
    def has_bytes(self) -> bool:
        """Whether an image is stored."""
        return self.reason is None


COLUMNS = ("reason", *DOWNLOAD.names)
"""The columns that `Facts` fills."""
FACTS = pa.schema([(URL, pa.string()), ("reason", pa.string()), *DOWNLOAD])
"""The table of what a chunk's URLs gave: one row for each."""


_JUDGED = tuple(field.name for field in fields(Verdict))


def judged(verdict: Verdict, **more: Any) -> Facts:
    """Facts of a body: its verdict and what else is known."""
    return Facts(**{name: getattr(verdict, name) for name in _JUDGED}, **more)


def read_facts(row: Mapping[str, Any]) -> Facts:
    """The facts in a row of `FACTS`."""
    return Facts(**{name: row[name] for name in COLUMNS})


def facts_table(facts: Mapping[str, Facts]) -> pa.Table:
    """A row of `FACTS` for each canonical URL."""
    columns = [pa.array([getattr(each, name) for each in facts.values()], FACTS.field(name).type) for name in COLUMNS]
    return pa.table([pa.array(facts, pa.string()), *columns], schema=FACTS)


def output_schema(columns: pa.Schema) -> pa.Schema:
    """The schema of the stage's parts, given its input's."""
    kept = pa.schema([field for field in columns if field.name != URL])
    return extend(kept, DOWNLOAD)


def output_table(rows: pa.Table, facts: pa.Table) -> pa.Table:
    """Rows of a chunk with the facts of their URLs; rows with a reason already keep that alone.

    Args:
        rows: rows as they came, with `URL`.
        facts: `FACTS`, or some of its columns, of every URL that is wanted.
    """
    repeated = rows.column("reason").combine_chunks()
    places = pc.index_in(rows.column(URL).combine_chunks(), facts.column(URL).combine_chunks())
    places = pc.if_else(pc.is_valid(repeated), pa.scalar(None, places.type), places)
    found = facts.combine_chunks().take(places)
    for name in found.column_names:
        if name in DOWNLOAD.names:
            rows = _with_column(rows, name, found.column(name))
    reasons = pc.coalesce(repeated, found.column("reason").combine_chunks())
    return with_reasons(conform(rows, output_schema(rows.schema)), reasons)


def with_reasons(table: pa.Table, reasons: pa.Array) -> pa.Table:
    """The table with these reasons, and the status that follows from them."""
    return _with_column(_with_column(table, "reason", reasons), "status", status_column(reasons))


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.append_column(name, values) if at < 0 else table.set_column(at, table.schema.field(at), values)
