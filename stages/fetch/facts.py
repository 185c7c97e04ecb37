"""What `download` says of a URL, and so of every row that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa

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

    @property
    def has_bytes(self) -> bool:
        """Whether an image is stored."""
        return self.reason is None

    def after(self, attempts: int | None) -> Facts:
        """The same, with the attempts of earlier runs added."""
        return replace(self, attempts=(self.attempts or 0) + (attempts or 0))


COLUMNS = ("reason", *DOWNLOAD.names)
"""The columns that `Facts` fills."""
NOTHING = Facts(reason="duplicate_row")


def judged(verdict: Verdict, **more: Any) -> Facts:
    """Facts of a body: its verdict and what else is known."""
    return Facts(**(asdict(verdict) | more))


def read_facts(row: Mapping[str, Any]) -> Facts:
    """The facts in a row of a part."""
    return Facts(**{name: row[name] for name in COLUMNS})


def output_schema(columns: pa.Schema) -> pa.Schema:
    """The schema of the stage's parts, given its input's."""
    kept = pa.schema([field for field in columns if field.name != URL])
    return extend(kept, DOWNLOAD)


def output_table(table: pa.Table, facts: Sequence[Facts]) -> pa.Table:
    """Rows of `table` with the facts of each."""
    schema = output_schema(table.schema)
    for name in COLUMNS:
        values = pa.array([getattr(fact, name) for fact in facts], schema.field(name).type)
        at = table.schema.get_field_index(name)
        table = table.append_column(name, values) if at < 0 else table.set_column(at, name, values)
    status = status_column(table.column("reason").combine_chunks())
    table = table.set_column(table.schema.get_field_index("status"), "status", status)
    return conform(table, schema)
