"""Which URLs earlier runs have settled, for the plan: `adopt`'s question, for all URLs of a run at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.base import Record, Workspace
from stages.blocklist import Blocklist
from stages.fetch.adopt import NEVER, Terms
from stages.fetch.facts import URL
from stages.fetch.outcome import TRANSIENT, TRANSIENT_STATUS

COLUMNS = [URL, "reason", "http_status", "bytes", "width", "height", "sha256", "phash"]
READERS = 8


def settled_urls(
    ws: Workspace, records: Sequence[Record], terms: Terms, blocklist: Blocklist, *, retry_failed: bool
) -> pa.Array:
    """The canonical URLs whose results would be adopted; some may be there twice."""

    def of(record: Record) -> list[pa.Array]:
        tables = [ws.read_table(file.path, COLUMNS) for file in record.files if file.kind == "facts"]
        return [_settled(table, terms, record.meta["terms"], blocklist, retry_failed) for table in tables]

    with ThreadPoolExecutor(READERS) as pool:
        found = [array for arrays in pool.map(of, records) for array in arrays]
    return pa.chunked_array(found, pa.string()).combine_chunks()


def _settled(
    table: pa.Table, terms: Terms, old: Mapping[str, Any], blocklist: Blocklist, retry_failed: bool
) -> pa.Array:
    """As `adopt` decides for each row of one chunk."""
    reason = table["reason"]
    holds = pc.invert(pc.is_in(reason, pa.array(sorted(NEVER))))
    if old != terms.to_json():
        size = pc.multiply(pc.cast(table["width"], pa.int64()), pc.cast(table["height"], pa.int64()))
        small = pc.and_(
            pc.less_equal(pc.fill_null(table["bytes"], 0), terms.max_bytes),
            pc.less_equal(pc.fill_null(size, 0), terms.max_pixels),
        )
        holds = pc.and_(pc.and_(holds, pc.and_(pc.is_null(reason), small)), terms.accept_images(old))
    if retry_failed:
        holds = pc.and_(holds, pc.invert(_is_passing(reason, table["http_status"])))
    if blocklist.sha256 or blocklist.phash or "blocklisted" in pc.unique(reason).to_pylist():
        holds = pc.and_(holds, _is_blocked_alike(table, blocklist))
    return table[URL].filter(holds).combine_chunks()


def _is_passing(reason: pa.ChunkedArray, status: pa.ChunkedArray) -> pa.ChunkedArray:
    """`outcome.is_transient`, for columns."""
    status = pc.fill_null(status, 0)
    server = pc.and_(pc.greater_equal(status, 500), pc.less_equal(status, 599))
    asked = pc.or_(server, pc.is_in(status, pa.array(sorted(TRANSIENT_STATUS), status.type)))
    is_http = pc.fill_null(pc.equal(reason, "http_error"), False)
    return pc.or_(pc.is_in(reason, pa.array(sorted(TRANSIENT))), pc.and_(is_http, asked))


def _is_blocked_alike(table: pa.Table, blocklist: Blocklist) -> pa.Array:
    rows = zip(*(table[name].to_pylist() for name in ("reason", "sha256", "phash")), strict=True)
    return pa.array(
        [
            reason != "blocklisted" or sha256 in blocklist.sha256 or phash in blocklist.phash
            for reason, sha256, phash in rows
        ],
        pa.bool_(),
    )
