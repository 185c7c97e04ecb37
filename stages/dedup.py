"""Exact dedup: of all copies of an image one survives, chosen by a total order (docs/dedup.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages import blocklist, twins
from stages.base import (
    KEPT,
    Ledger,
    Phase,
    Record,
    Result,
    Stage,
    Unit,
    Workspace,
    group_files,
    semantic,
    status_column,
)
from stages.schema import CAPTION, COMMON, DEDUP, conform, extend
from stages.twins import NONE, Ids
from stages.urls import canonical_url

ROWS_PER_UNIT = 200_000
BLOCKLISTED = "blocklisted"
REASONS = (*twins.REASONS, BLOCKLISTED)
PLAIN_URL = r"(?s)^[a-z][a-z0-9+.\-]*://[a-z0-9._\-]*(?:[/?][^#]*)?$"
"""URLs that already are as `canonical_url` would write them."""
ABSOLUTE_URL = r"^(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//"
DECISION = pa.schema(
    [("reason", pa.string()), ("captions", pa.list_(CAPTION)), *((field.name, field.type) for field in DEDUP)]
)
"""Side table between the phases; `captions` is null where a row keeps its own."""


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """Options of `stages.dedup`."""

    radius: int = semantic(2, help="bits by which two perceptual hashes may differ to be one image, 0 to 8")
    blocklist: list[str] = semantic([], help="files of sha256 or phash that never enter (also urls, domains)")

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 8:
            raise ValueError(f"radius: a whole number from 0 to 8 is wanted, found {self.radius}")


class DedupStage(Stage):
    """Keeps one row of every group of copies."""

    name: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    config_class: ClassVar[type] = DedupConfig
    reasons: ClassVar[frozenset[str]] = frozenset(REASONS)
    requires: ClassVar[frozenset[str]] = frozenset(
        {"key", "source", "url", "caption", "sha256", "phash", "width", "height"}
    )
    adds: ClassVar[pa.Schema] = DEDUP
    uses_source_order: ClassVar[bool] = True

    def phases(self) -> list[Phase]:
        """Decide on all rows from narrow columns, then write them with what was decided."""
        return [Collect(self.config), Map()]

    def named_files(self) -> list[str]:
        """The blocklists."""
        return list(self.config.blocklist)

    def check(self) -> None:
        """Read the blocklists once, so that a bad line is found before the run."""
        blocklist.load(tuple(self.config.blocklist))

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """Pairs within the radius, clusters, and the largest of them."""
        return dict(records["collect"][0].meta) if records.get("collect") else {}


class Collect(Phase):
    """Reads the narrow columns of every row and decides; one row group of decisions for each unit of `Map`."""

    name: ClassVar[str] = "collect"

    def __init__(self, config: DedupConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all", rows=sum(file.rows for file in ws.input_files()))]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Decide on every kept row of the input."""
        units = _map_units(ws)
        if not units:
            return Result()
        rows = read_rows(ws, units)
        decided = decide(rows, ws.sources, self.config)
        captions = _merged_captions(ws, rows, decided)
        ws.write_table("decisions", _decisions(units, rows, decided, captions), kind="side")
        return Result(meta=decided.summary(rows.key))


class Map(Phase):
    """Writes every row with its decision."""

    name: ClassVar[str] = "map"

    def cut(self, ws: Workspace) -> list[Unit]:
        """Groups of input parts."""
        return _map_units(ws)

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Join the unit's rows with its row group of decisions, by position."""
        decisions = ws.read_table(ws.phase_files("collect", "side")[0].path, row_groups=[int(unit.id)])
        table = pa.concat_tables([_kept(ws.read_table(path)) for path in unit.spec["files"]])
        if table.num_rows != decisions.num_rows:
            raise ValueError(f"{table.num_rows} rows, but {decisions.num_rows} decisions")
        columns = pa.schema([field for field in ws.input_columns() if field.name != "thumbnail"])  # nobody asks later
        schema = extend(columns, COMMON, pa.schema([("captions", pa.list_(CAPTION))]), DEDUP)
        written = _with_decisions(conform(table, schema), decisions)
        ws.write_table("part", written)
        ledger = Ledger()
        ledger.add_table(written)
        return Result(ledger=ledger)


def _map_units(ws: Workspace) -> list[Unit]:
    return group_files(ws.input_files(), ROWS_PER_UNIT)


def _kept(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["status"], KEPT))


def _with_decisions(table: pa.Table, decisions: pa.Table) -> pa.Table:
    columns = {name: decisions[name] for name in ("reason", *DEDUP.names)}
    columns["status"] = status_column(decisions["reason"])
    columns["captions"] = pc.coalesce(decisions["captions"], table["captions"])
    for name, column in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), column)
    return table


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The narrow columns of all kept rows, in the order of the input."""

    key: pa.Array
    source: pa.Array
    url: Ids
    content: Ids
    phash: NDArray[np.uint64]
    has_phash: NDArray[np.bool_]
    sha256: pa.Array
    """Distinct digests; `content` indexes it."""
    pixels: Ids
    caption_length: Ids
    parts: Mapping[str, tuple[int, int]]
    """First row and end of each input part, by its path."""

    def total_order(self, sources: Sequence[str]) -> Ids:
        """Rows by source precedence, more pixels, longer caption, smaller key."""
        precedence = {name: number for number, name in enumerate(sources)}
        encoded = self.source.dictionary_encode()
        of_source = [precedence.get(name, len(sources)) for name in encoded.dictionary.to_pylist()]
        table = pa.table(
            {
                "precedence": np.array(of_source, np.int64)[encoded.indices.to_numpy()],
                "fewer_pixels": -self.pixels,
                "shorter_caption": -self.caption_length,
                "key": self.key,
            }
        )
        return pc.sort_indices(table, [(name, "ascending") for name in table.column_names]).to_numpy().astype(np.int64)


def read_rows(ws: Workspace, units: Sequence[Unit]) -> Rows:
    """The narrow columns of the units' kept rows."""
    wanted = ["key", "source", "url", "caption", "status", "sha256", "phash", "width", "height"]
    tables, parts, end = [], {}, 0
    for path in (path for unit in units for path in unit.spec["files"]):
        tables.append(_narrow(_kept(ws.read_table(path, columns=wanted))))
        parts[path] = (end, end + tables[-1].num_rows)
        end += tables[-1].num_rows
    table = pa.concat_tables(tables)
    url, _ = _ids(table["url"])
    content, digests = _ids(table["sha256"])
    return Rows(
        key=table["key"].cast(pa.large_string()).combine_chunks(),
        source=table["source"].combine_chunks(),
        url=url,
        content=content,
        phash=table["phash"].fill_null(0).to_numpy(),
        has_phash=table["phash"].is_valid().to_numpy(),
        sha256=digests,
        pixels=table["pixels"].to_numpy(),
        caption_length=table["caption_length"].to_numpy(),
        parts=parts,
    )


def _narrow(table: pa.Table) -> pa.Table:
    pixels = pc.multiply(pc.cast(table["width"], pa.int64()), pc.cast(table["height"], pa.int64()))
    return pa.table(
        {
            "key": table["key"],
            "source": table["source"],
            "url": comparable_urls(table["url"], table["source"]).cast(pa.large_string()),
            "sha256": table["sha256"].cast(pa.large_string()),
            "phash": table["phash"].cast(pa.uint64()),
            "pixels": pixels.fill_null(0),
            "caption_length": pc.utf8_length(table["caption"]).cast(pa.int64()).fill_null(0),
        }
    )


def comparable_urls(urls: pa.ChunkedArray, sources: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings that are equal where URLs are: canonical, and a path of one's own files with its source's name."""
    plain = pc.match_substring_regex(urls, PLAIN_URL).fill_null(True)
    rest = pc.invert(plain)
    written = [canonical_url(url) for url in urls.filter(rest).to_pylist()]
    canonical = pc.replace_with_mask(urls.combine_chunks(), rest.combine_chunks(), pa.array(written, pa.string()))
    absolute = pc.match_substring_regex(urls, ABSOLUTE_URL).fill_null(True)
    return pc.if_else(absolute, canonical, pc.binary_join_element_wise(sources, urls, "\0"))


def _ids(column: pa.ChunkedArray) -> tuple[Ids, pa.Array]:
    """Positions in the distinct values (NONE for null and the empty string), and those values."""
    column = pc.if_else(pc.equal(column, ""), None, column)
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.fill_null(NONE).to_numpy().astype(np.int64), encoded.dictionary


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What became of every row, by its position in the input."""

    survivor: Ids
    component: Ids
    reason: NDArray[np.int8]
    """Index into REASONS, or NONE when kept."""
    rank: Ids
    """Position in the total order."""
    near_pairs: int

    def summary(self, key: pa.Array) -> dict[str, Any]:
        """For the manifest: how many clusters of which size, and the largest ones' survivors."""
        survivors, sizes = np.unique(self.survivor, return_counts=True)
        shared = np.flatnonzero(sizes > 1)
        largest = shared[np.lexsort((self.rank[survivors[shared]], -sizes[shared]))[:20]]
        return {
            "near_pairs": self.near_pairs,
            "clusters": len(shared),
            "components": len(np.unique(self.component)),
            "cluster_sizes": {str(size): count for size, count in sorted(Counter(sizes[shared].tolist()).items())},
            "largest": [[key[int(survivors[n])].as_py(), int(sizes[n])] for n in largest],
        }


def decide(rows: Rows, sources: Sequence[str], config: DedupConfig) -> Decided:
    """Survivors, reasons and components of all rows."""
    listed = blocklist.load(tuple(config.blocklist))
    listed_hashes = np.array(sorted(listed.phash), np.uint64)
    near = twins.near_hashes(np.concatenate([rows.phash[rows.has_phash], listed_hashes]), config.radius)
    blocked_hashes = near.touching(listed_hashes)
    image = np.where(rows.has_phash, np.searchsorted(near.hashes, rows.phash), NONE)
    blocked = np.isin(image, blocked_hashes)
    listed_content = pc.is_in(rows.sha256, pa.array(sorted(listed.sha256), rows.sha256.type))
    blocked |= np.isin(rows.content, np.flatnonzero(listed_content))
    order = rows.total_order(sources)
    url, content, image = (np.where(blocked, NONE, ids)[order] for ids in (rows.url, rows.content, image))
    found = twins.find_twins(url, content, image, near.without(blocked_hashes))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return Decided(
        survivor=order[found.survivor[rank]],
        component=order[found.component[rank]],
        reason=np.where(blocked, np.int8(REASONS.index(BLOCKLISTED)), found.reason[rank]),
        rank=rank,
        near_pairs=len(near.left),
    )


def _decisions(
    units: Sequence[Unit], rows: Rows, decided: Decided, captions: Mapping[int, list[dict[str, str]]]
) -> Iterator[pa.Table]:
    """One table for each unit of `Map`."""
    for unit in units:
        start, end = rows.parts[unit.spec["files"][0]][0], rows.parts[unit.spec["files"][-1]][1]
        here = slice(start, end)
        codes = pa.array(decided.reason[here], mask=decided.reason[here] == NONE)
        columns = [
            pa.DictionaryArray.from_arrays(codes, pa.array(REASONS)).cast(pa.string()),
            pa.array([captions.get(row) for row in range(start, end)], pa.list_(CAPTION)),
            rows.key.take(pa.array(decided.survivor[here])).cast(pa.string()),
            rows.key.take(pa.array(decided.component[here])).cast(pa.string()),
        ]
        yield pa.table(columns, schema=DECISION)


def _merged_captions(ws: Workspace, rows: Rows, decided: Decided) -> dict[int, list[dict[str, str]]]:
    """For each survivor with twins: the distinct captions of itself, then of its twins in the total order."""
    dropped = np.flatnonzero(decided.survivor != np.arange(len(decided.survivor)))
    members = np.union1d(dropped, decided.survivor[dropped])
    members = members[np.argsort(decided.rank[members])]
    captions = _captions_of(ws, rows, members)
    merged: dict[int, dict[tuple[str, str, str], dict[str, str]]] = {}
    for row in members.tolist():
        distinct = merged.setdefault(int(decided.survivor[row]), {})
        for caption in captions[row]:
            distinct.setdefault((caption["text"], caption["source"], caption["origin"]), caption)
    return {survivor: list(distinct.values()) for survivor, distinct in merged.items()}


def _captions_of(ws: Workspace, rows: Rows, members: Ids) -> dict[int, list[dict[str, str]]]:
    """The caption entries of some rows, read from the parts that hold them."""
    has_entries = "captions" in ws.input_columns().names
    wanted = ["status", "source", "caption", *(["captions"] if has_entries else [])]
    members = np.sort(members)
    found: dict[int, list[dict[str, str]]] = {}
    for path, (start, end) in rows.parts.items():
        here = members[np.searchsorted(members, start) : np.searchsorted(members, end)]
        if len(here):
            table = _kept(ws.read_table(path, columns=wanted)).take(pa.array(here - start))
            found.update(zip(here.tolist(), map(_entries, table.to_pylist()), strict=True))
    return found


def _entries(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row's caption entries; the caption itself where it has none."""
    if row.get("captions"):
        return list(row["captions"])
    if row["caption"]:
        return [{"text": row["caption"], "source": row["source"], "origin": "alt_text"}]
    return []
