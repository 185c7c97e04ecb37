"""Rows before they are fetched: sharded by host into buckets, buckets into lanes, and lanes cut into chunks.

Rows of one URL meet in one lane and in one chunk, so a URL is fetched once without any shared state.
A hot host has a lane to itself; the other hosts of a bucket share one, in which URLs stand in the order of
a hash, which mixes the hosts. Chunks of a lane run one after another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from yarl import URL as Parsed

from stages.base import KEPT, Phase, Record, Result, Unit, Workspace, group_files
from stages.fetch.facts import URL
from stages.urls import canonical_url, host

ROWS_PER_BUCKET = 2_000
FEWEST, MOST = 4, 1024
CHUNK_ROWS = 2_500
"""Slow hosts hold up the end of each chunk for some seconds; a kill costs what has come of a chunk."""
GROUP_ROWS = 1_000_000
BUCKETS_PER_UNIT = 16
PLAIN = r"^https?://[a-z0-9.\-]+([/?][^#]*)?$"
"""URLs that are canonical as they stand."""


def buckets_for(rows: int) -> int:
    """A power of two, so that each bucket of one run lies within one bucket of another, or is made of some."""
    wanted = max(rows // ROWS_PER_BUCKET, 1)
    return min(max(1 << (wanted - 1).bit_length(), FEWEST), MOST)


def bucket_of(url: str, buckets: int) -> int:
    """The bucket of a canonical URL, by its host."""
    return _hash(site(url)) & (buckets - 1)


def site(url: str) -> str:
    """The host as the DNS knows it, so that both spellings of an international name are one."""
    name = host(url)
    if name.isascii():
        return name
    try:
        return Parsed.build(scheme="http", host=name).raw_host or name
    except ValueError:
        return name


def overlaps(bucket: int, buckets: int, other: int, others: int) -> bool:
    """Whether a URL can be in `bucket` of `buckets` and in `other` of `others`."""
    fewer = min(buckets, others)
    return (bucket - other) % fewer == 0


def url_hash(url: str) -> int:
    """The place of a canonical URL in the order of its lane."""
    return _hash(url)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def canonical_urls(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """`canonical_url` of each, null as an empty one; those that are so already, nearly all, are left as they are."""
    urls = pc.fill_null(urls.cast(pa.string()), "")
    is_plain = pc.match_substring_regex(urls, PLAIN)
    others = [canonical_url(url) for url in urls.filter(pc.invert(is_plain)).to_pylist()]
    return pc.replace_with_mask(
        urls.combine_chunks(), pc.invert(is_plain).combine_chunks(), pa.array(others, urls.type)
    )


def kept_rows(ws: Workspace, path: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of an input part that earlier stages kept."""
    table = ws.read_table(path, columns)
    return table.filter(pc.equal(table.column("status"), KEPT))


class PartitionPhase(Phase):
    """Input parts into one file whose row group i holds the rows of bucket i."""

    name = "partition"

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit for about a million rows."""
        files = ws.input_files()
        buckets = buckets_for(sum(file.rows for file in files))
        units = group_files(files, GROUP_ROWS)
        return [
            Unit(id=unit.id, spec={"files": unit.spec["files"], "buckets": buckets}, rows=unit.rows) for unit in units
        ]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Rows in input order within each bucket, with their canonical URL."""
        table = pa.concat_tables([kept_rows(ws, path) for path in unit.spec["files"]])
        urls = canonical_urls(table.column("url"))
        numbers = np.array([bucket_of(url, unit.spec["buckets"]) for url in urls.to_pylist()], np.int64)
        table = table.append_column(URL, urls)
        ws.write_table("partition", _split(table, numbers, unit.spec["buckets"]), kind="side")
        return Result(meta={"buckets": unit.spec["buckets"]})


def _split(table: pa.Table, numbers: np.ndarray, buckets: int) -> Iterator[pa.Table]:
    order = np.argsort(numbers, kind="stable")
    table = table.take(pa.array(order))
    ends = np.searchsorted(numbers[order], np.arange(buckets + 1))
    for start, end in pairwise(ends):
        yield table.slice(start, end - start)


Place = tuple[int, str | None]
"""A bucket's number, and the hot host whose lane is meant."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One chunk: a row group of a file that `ChunkPhase` wrote."""

    bucket: int
    buckets: int
    host: str | None
    """The hot host whose lane it belongs to."""
    file: str
    row_group: int
    rows: int

    @property
    def id(self) -> str:
        """Its name as a unit."""
        return f"{self.bucket:04d}-{self.row_group:05d}"

    @property
    def place(self) -> Place:
        """Where its URLs are to be found in other runs."""
        return self.bucket, self.host

    @property
    def lane(self) -> str:
        """Chunks of one lane share the state of their hosts."""
        return f"{self.bucket:04d}" if self.host is None else f"{self.bucket:04d} {self.host}"


def lanes_of(records: list[Record]) -> list[list[Chunk]]:
    """The chunks that `ChunkPhase` wrote, lane by lane, in the order in which lanes should start.

    Lanes of hot hosts take as long as their host lets them, whatever else runs: the longest start first, and
    in turn with the others, which keep the processors busy meanwhile.
    """
    lanes: dict[str, list[Chunk]] = {}
    for record in records:
        for row_group, (bucket, hot, rows) in enumerate(record.meta["chunks"]):
            chunk = Chunk(
                bucket=bucket,
                buckets=record.meta["buckets"],
                host=hot,
                file=record.files[0].path,
                row_group=row_group,
                rows=rows,
            )
            lanes.setdefault(chunk.lane, []).append(chunk)
    hot = sorted((lane for lane in lanes.values() if lane[0].host), key=lambda lane: -sum(each.rows for each in lane))
    mixed = [lane for lane in lanes.values() if not lane[0].host]
    return [lane for pair in zip_longest(hot, mixed) for lane in pair if lane is not None]


class ChunkPhase(Phase):
    """Buckets into chunks: a file's row groups, each of whole URLs of one lane, about `CHUNK_ROWS` rows."""

    name = "chunks"

    def cut(self, ws: Workspace) -> list[Unit]:
        """A unit for some buckets."""
        records = ws.phase_records("partition")
        if not records:
            return []
        buckets = records[0].meta["buckets"]
        most = hot_above(sum(file.rows for file in ws.phase_files("partition", "side")), buckets)
        starts = range(0, buckets, BUCKETS_PER_UNIT)
        return [
            Unit(
                id=f"{start:04d}",
                spec={
                    "first": start,
                    "last": min(start + BUCKETS_PER_UNIT, buckets) - 1,
                    "buckets": buckets,
                    "hot_above": most,
                },
            )
            for start in starts
        ]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """`meta["chunks"]` tells bucket, hot host and rows of each row group."""
        chunks: list[pa.Table] = []
        told: list[tuple[int, str | None, int]] = []
        paths = [file.path for file in ws.phase_files("partition", "side")]
        for bucket in range(unit.spec["first"], unit.spec["last"] + 1):
            rows = pa.concat_tables([ws.read_table(path, row_groups=[bucket]) for path in paths])
            for hot, lane in split_hot(rows, unit.spec["hot_above"]):
                for chunk in cut_lane(lane):
                    chunks.append(chunk)
                    told.append((bucket, hot, chunk.num_rows))
        if chunks:
            ws.write_table("chunks", chunks, kind="side")
        return Result(meta={"chunks": told, "buckets": unit.spec["buckets"]})


def hot_above(rows: int, buckets: int) -> int:
    """A host with more rows than this, and than a bucket has on average, is hot."""
    return max(ROWS_PER_BUCKET, -(-rows // buckets))


def split_hot(table: pa.Table, most: int) -> Iterator[tuple[str | None, pa.Table]]:
    """(None, the rows of hosts with up to `most` rows), then (host, its rows) for each other."""
    names = pa.array([site(url) for url in table.column(URL).to_pylist()], pa.string())
    counts = pc.value_counts(names)
    hot = sorted(counts.filter(pc.greater(counts.field("counts"), most)).field("values").to_pylist())
    yield None, table.filter(pc.invert(pc.is_in(names, pa.array(hot, pa.string()))))
    for name in hot:
        yield name, table.filter(pc.equal(names, name))


def cut_lane(table: pa.Table, rows: int = CHUNK_ROWS) -> list[pa.Table]:
    """A lane's rows in chunks; of rows with equal keys all but the first get the reason `duplicate_row`."""
    if table.num_rows == 0:
        return []
    urls = table.column(URL).to_pylist()
    order = sorted(range(len(urls)), key=lambda row: (url_hash(urls[row]), urls[row]))
    table = _mark_repeats(table).take(pa.array(order, pa.int64()))
    starts = [0]
    most = -(-len(order) // max(round(len(order) / rows), 1))  # alike, and no small one at the end
    for at in range(1, len(order)):
        if at - starts[-1] >= most and urls[order[at]] != urls[order[at - 1]]:
            starts.append(at)
    return [table.slice(start, end - start) for start, end in zip(starts, [*starts[1:], table.num_rows], strict=True)]


def _mark_repeats(table: pa.Table) -> pa.Table:
    seen: set[str] = set()
    reasons: list[str | None] = []
    for key in table.column("key").to_pylist():
        reasons.append("duplicate_row" if key in seen else None)
        seen.add(key)
    return table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))
