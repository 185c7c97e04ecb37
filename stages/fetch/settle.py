"""The end of `download`: rows get the facts of their URLs, and placeholders are told from pictures.

A host that lost a picture often sends another in its place: "image not found". It is known by this: the same
bytes stand behind many URLs of one host, under as many different captions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.base import Ledger, Phase, Record, Result, Unit, Workspace
from stages.fetch.chunks import Chunk, lanes_of, site
from stages.fetch.facts import URL, output_table, with_reasons
from stages.urls import canonical_url

ROWS_PER_UNIT = 50_000
CHUNKS_PER_ROW_GROUP = 20
NARROW = ["url", "caption", "reason", URL]

Shared = frozenset[tuple[str, str]]
"""(host, sha256) of the pictures that stand in for missing ones."""


class SettlePhase(Phase):
    """Whole lanes a unit, and so whole hosts; one part each."""

    name = "settle"

    def __init__(self, placeholder_urls: int) -> None:
        self.placeholder_urls = placeholder_urls

    def cut(self, ws: Workspace) -> list[Unit]:
        """A unit for some lanes; `spec["chunks"]` has each chunk, and `spec["facts"]` the files of its facts."""
        facts = {record.unit: [facts_path(record)] for record in ws.phase_records("fetch")}
        for record in ws.phase_records("again"):
            for chunk_id in record.meta["chunks"]:
                facts[chunk_id].append(facts_path(record))
        groups: list[list[Chunk]] = []
        size = ROWS_PER_UNIT
        for lane in sorted(lanes_of(ws.phase_records("chunks")), key=lambda lane: lane[0].lane):
            rows = sum(chunk.rows for chunk in lane)
            if size + rows > ROWS_PER_UNIT:
                groups.append([])
                size = 0
            groups[-1].extend(lane)
            size += rows
        return [
            Unit(
                id=f"{number:05d}",
                spec={"chunks": [asdict(chunk) for chunk in group], "facts": [facts[chunk.id] for chunk in group]},
                rows=sum(chunk.rows for chunk in group),
            )
            for number, group in enumerate(groups)
        ]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Find the placeholders of the unit's hosts, then write its rows."""
        shared: Shared = frozenset()
        if self.placeholder_urls:
            narrow = pa.concat_tables(_tables(unit, ws, NARROW, [URL, "reason", "sha256"]))
            shared = placeholders(narrow, self.placeholder_urls)
        ledger = Ledger()
        ws.write_table("part", _settled(unit, ws, shared, ledger))
        return Result(ledger=ledger, meta={"placeholders": len(shared)})


def facts_path(record: Record) -> str:
    """The table of facts that a unit of fetching wrote."""
    return next(file.path for file in record.files if file.kind == "facts")


def _tables(
    unit: Unit, ws: Workspace, columns: list[str] | None = None, facts: list[str] | None = None
) -> Iterator[pa.Table]:
    """The rows of each chunk with the facts of their URLs; some columns of either, if so wished."""
    for chunk, paths in zip(unit.spec["chunks"], unit.spec["facts"], strict=True):
        rows = ws.read_table(chunk["file"], columns, row_groups=[chunk["row_group"]])
        yield output_table(rows, pa.concat_tables([ws.read_table(path, facts) for path in paths]))


def _settled(unit: Unit, ws: Workspace, shared: Shared, ledger: Ledger) -> Iterator[pa.Table]:
    """The unit's rows, some chunks a row group."""
    waiting: list[pa.Table] = []
    for number, table in enumerate(_tables(unit, ws), 1):
        waiting.append(without_placeholders(table, shared))
        ledger.add_table(waiting[-1])
        if number % CHUNKS_PER_ROW_GROUP == 0 or number == len(unit.spec["chunks"]):
            yield pa.concat_tables(waiting)
            waiting.clear()


def placeholders(rows: pa.Table, least: int) -> Shared:
    """Pictures that a host sends for at least `least` URLs whose rows have at least `least` captions.

    Args:
        rows: url, caption, sha256 and reason of all rows of some hosts.
        least: distinct URLs, and distinct captions, from which on a picture is a placeholder.
    """
    urls: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    captions: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in _repeated(rows.filter(pc.is_null(rows["reason"])), least).to_pylist():
        place = (site(row["url"]), row["sha256"])
        urls[place].add(canonical_url(row["url"]))
        captions[place].add(row["caption"] or "")
    return frozenset(place for place in urls if min(len(urls[place]), len(captions[place])) >= least)


def _repeated(rows: pa.Table, least: int) -> pa.Table:
    """Rows whose bytes stand in at least `least` rows: few, of most hosts."""
    counts = pc.value_counts(rows["sha256"])
    often = counts.filter(pc.greater_equal(counts.field("counts"), least)).field("values")
    return rows.filter(pc.is_in(rows["sha256"], often))


def without_placeholders(table: pa.Table, shared: Shared) -> pa.Table:
    """The table with the rows of shared pictures dropped as `placeholder`; they keep their hashes, not the image."""
    if not shared:
        return table
    known = pa.array(sorted({sha256 for _, sha256 in shared}), pa.string())
    suspects = pc.and_(pc.is_in(table["sha256"], known), pc.is_null(table["reason"])).to_pylist()
    urls, hashes = table["url"].to_pylist(), table["sha256"].to_pylist()
    found = pa.array(
        [suspect and (site(url), sha256) in shared for suspect, url, sha256 in zip(suspects, urls, hashes, strict=True)]
    )
    at = table.schema.get_field_index("image")
    image = pc.if_else(found, pa.scalar(None, table.schema.field(at).type), table["image"])
    table = table.set_column(at, table.schema.field(at), image)
    return with_reasons(table, pc.if_else(found, "placeholder", table["reason"]).combine_chunks())
