"""The first stage for images one already has: what each is, where and when, and an RGB view where one is needed.

Four phases: `list` walks the sources and names their images, scenes and patches; `read` makes rows of them, and
stores views; `relate` looks at the keys and footprints of all rows at once, to find exact repeats and what shows one
location; `settle` writes the table.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from typing import Any, ClassVar

import pyarrow as pa

from stages import blocklist, schema
from stages.base import Ledger, NewFile, Phase, Record, Result, Stage, Unit, Workspace, semantic, status_column
from stages.errors import UserError
from stages.geo.facts import PLACE_KM
from stages.images import REASONS as IMAGE_REASONS
from stages.scenes import reader
from stages.scenes.base import LISTING, Entry, Reader
from stages.scenes.locations import repeats, shared_locations
from stages.scenes.options import tile
from stages.scenes.rows import ROWS, Row, RowMaker, Settings, table_of
from stages.scenes.webdataset import WebdatasetReader, estimate
from stages.sources import Source, check_stage
from stages.tar import TarWriter

MAX_PIXELS = 300_000_000
"""Of a local file that is taken whole."""
UNIT_ENTRIES = 1000
UNIT_BYTES = 256 << 20
"""Of a `read` unit: whichever is reached first."""
FLUSH_ROWS = 2000
"""Rows held before they are written."""
_OUTPUT = schema.extend(schema.COMMON, schema.INGEST)
_NARROW = ["key", "location", "footprint", "touching", "status"]


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Options of the ingest stage; a source's `options` say how its images are read."""

    tile: dict[str, Any] | None = semantic(
        None, help="size, overlap, max_nodata, target_gsd: cut scenes that are larger than size; null takes them whole"
    )
    max_pixels: int = semantic(MAX_PIXELS, help="larger images that are taken whole are too_many_pixels")
    place_km: float = semantic(PLACE_KM, help="how far the nearest place may be")
    blocklist: list[str] = semantic([], help="files of URLs, sha256 or phash that never enter")

    def __post_init__(self) -> None:
        """Raise ValueError for what no type can tell."""
        if self.max_pixels <= 0:
            raise ValueError(f"max_pixels is {self.max_pixels}; accepted: a number above 0")
        if self.place_km < 0:
            raise ValueError(f"place_km is {self.place_km}; accepted: 0 or more")

    def settings(self) -> Settings:
        """What rows depend on."""
        return Settings(tile=self.tile, max_pixels=self.max_pixels, place_km=self.place_km)


class ListPhase(Phase):
    """Names what there is: a unit a source, or a tar; a row group for each unit of `read`."""

    name = "list"

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = {source.name: source for source in sources}

    def cut(self, ws: Workspace) -> list[Unit]:
        """From the sources' digests alone; rows are files."""
        units = []
        for source in self.sources.values():
            tars = source.files["data"] if source.format == "webdataset" else (None,)
            for number, tar in enumerate(tars):
                files = [tar] if tar else [file for role in sorted(source.files) for file in source.files[role]]
                identity = [
                    source.digest(),
                    [asdict(file) for file in files],
                    [f.url for f in source.files.get("data", ())],
                ]
                units.append(
                    Unit(
                        id=f"{source.name}-{number:05d}",
                        spec={"source": source.name, "tar": number if tar else None},
                        rows=sum(root.size for root in source.files.get("images", ())),
                        digest=_digest(identity),
                    )
                )
        return units

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the listing, and how many entries each of its row groups has."""
        source = self.sources[unit.spec["source"]]
        made = reader(source)
        entries = _entries(made, source, unit.spec["tar"])
        groups: list[dict[str, Any]] = []

        def tables() -> Iterator[pa.Table]:
            for group in _groups(entries):
                rows = [entry.row() for entry in group]
                versions = [entry.version for entry in group]
                groups.append({"rows": len(rows), "digest": _digest([rows, versions])})
                yield pa.Table.from_pylist(rows, schema=LISTING)
            if not groups:
                yield LISTING.empty_table()

        ws.write_table("listing", tables(), kind="side")
        return Result(meta={"source": source.name, "groups": groups, "notes": list(made.notes())})


def _entries(made: Reader, source: Source, tar: int | None) -> Iterator[Entry]:
    """The entries of a source, or of one of its tars."""
    if isinstance(made, WebdatasetReader) and tar is not None:
        return made.of_tar(source.files["data"][tar])
    return made.entries()


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Neighbouring entries, few and small enough for a unit."""
    held: list[Entry] = []
    size = 0
    for entry in entries:
        held.append(entry)
        size += max(entry.size, 0)
        if len(held) >= UNIT_ENTRIES or size >= UNIT_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


class ReadPhase(Phase):
    """Reads images: their facts, hashes and views."""

    name = "read"
    risky = True

    def __init__(self, config: IngestConfig, sources: Sequence[Source]) -> None:
        self.config = config
        self.sources = {source.name: source for source in sources}

    def cut(self, ws: Workspace) -> list[Unit]:
        """A unit for each row group of the listings."""
        lists = [blocklist_digest(self.config.blocklist), asdict(self.config.settings())]
        units = []
        for record in ws.phase_records(ListPhase.name):
            source = self.sources[record.meta["source"]]
            path = next(file.path for file in record.files if file.kind == "side")
            for number, group in enumerate(record.meta["groups"]):
                identity = [IngestStage.version, lists, source.digest(), group["digest"]]
                units.append(
                    Unit(
                        id=f"{record.unit}-{number:06d}",
                        spec={"source": source.name, "listing": path, "row_group": number},
                        rows=group["rows"],
                        digest=_digest(identity),
                    )
                )
        return units

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the rows (`side`), and a tar of views if any were made."""
        source = self.sources[unit.spec["source"]]
        listing = ws.read_table(unit.spec["listing"], row_groups=[unit.spec["row_group"]])
        entries = [Entry.from_row(row) for row in listing.to_pylist()]
        blocked = blocklist.load(tuple(self.config.blocklist))
        maker = RowMaker(source, self.config.settings(), blocked)
        made = _carefully(maker, entries) if ws.careful else maker.rows(entries)
        with ExitStack() as stack:
            store = _Views(ws, stack)
            rows = (store.settled(row) for row in made)
            ws.write_table("rows", _tables(rows, ws), kind="side")
        return Result(meta={"source": source.name, "views": store.count})


class _Views:
    """Stores views in a tar that is begun with the first of them."""

    def __init__(self, ws: Workspace, stack: ExitStack) -> None:
        self.ws, self.stack = ws, stack
        self.tar: TarWriter | None = None
        self.file: NewFile | None = None
        self.count = 0

    def settled(self, row: Row) -> Row:
        """The row without its bytes, which are stored if it is kept."""
        data = row.pop("data", None)
        if data is None or row["reason"] is not None:
            return row
        if self.tar is None:
            self.file = self.stack.enter_context(self.ws.create("images", ".tar", kind="images"))
            self.tar = TarWriter(self.file)
            self.stack.callback(self.tar.close)
        assert self.file is not None
        offset = self.tar.add(f"{row['key']}.png", data)
        self.count += 1
        self.file.rows = self.count
        return row | {"image": {"tar": self.file.path, "offset": offset, "size": len(data)}}


def _tables(rows: Iterator[Row], ws: Workspace) -> Iterator[pa.Table]:
    """Rows in tables of bounded length; an empty one when there are none."""
    count = 0
    while held := list(islice(rows, FLUSH_ROWS)):
        lost = sum(row["reason"] is not None for row in held)
        ws.progress(rows=len(held), kept=len(held) - lost, dropped=lost)
        count += 1
        yield table_of(held)
    if not count:
        yield ROWS.empty_table()


def _carefully(maker: RowMaker, entries: Sequence[Entry]) -> Iterator[Row]:
    """Rows made in a child process, entry by entry: one that kills it is a `decoder_crash`."""
    pool = _child()
    try:
        for entry in entries:
            try:
                yield from pool.submit(_rows_of, maker, entry).result()
            except BrokenProcessPool:
                pool = _child()
                yield maker.dropped(entry, "decoder_crash")
    finally:
        pool.shutdown()


def _child() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _rows_of(maker: RowMaker, entry: Entry) -> list[Row]:
    return list(maker.rows([entry]))


class RelatePhase(Phase):
    """Finds exact repeats and shared locations, from narrow columns of everything."""

    name = "relate"

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all", rows=sum(file.rows for file in ws.phase_files(ReadPhase.name, "side")))]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write (is a repeat, location) per row: a row group for each unit of `read`."""
        tables = [ws.read_table(file.path, _NARROW) for file in ws.phase_files(ReadPhase.name, "side")]
        whole = pa.concat_tables(tables) if tables else ROWS.empty_table().select(_NARROW)
        found = pa.table({"repeat": repeats(whole), "location": shared_locations(whole)})
        starts = [0]
        for table in tables:
            starts.append(starts[-1] + table.num_rows)
        slices = [found.slice(start, table.num_rows) for start, table in zip(starts, tables, strict=False)]
        ws.write_table("related", slices or [found], kind="side")
        return Result(meta={"locations": len(set(found["location"].to_pylist()) - {None})})


class SettlePhase(Phase):
    """Writes the table."""

    name = "settle"

    def cut(self, ws: Workspace) -> list[Unit]:
        """A unit for each of `read`."""
        related = ws.phase_files(RelatePhase.name, "side")[0].path
        return [
            Unit(
                id=record.unit,
                spec={
                    "source": record.meta["source"],
                    "rows": file.path,
                    "related": related,
                    "row_group": number,
                },
                rows=file.rows,
            )
            for number, record in enumerate(ws.phase_records(ReadPhase.name))
            for file in record.files
            if file.kind == "side"
        ]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the unit's part, and count its rows."""
        import pyarrow.compute as pc

        rows = ws.read_table(unit.spec["rows"])
        related = ws.read_table(unit.spec["related"], row_groups=[unit.spec["row_group"]])
        reasons = pc.if_else(related["repeat"], pa.scalar("duplicate_row"), rows["reason"])
        for name, column in (
            ("reason", reasons),
            ("status", status_column(reasons)),
            ("location", related["location"]),
        ):
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        part = schema.conform(rows, _OUTPUT)
        ws.write_table("part", part)
        ledger = Ledger()
        ledger.see(unit.spec["source"], 0)
        ledger.add_table(part)
        return Result(ledger=ledger)


class IngestStage(Stage):
    """Registers images one already has, with their facts."""

    name = "ingest"
    version = 3
    config_class = IngestConfig
    reasons: ClassVar[frozenset[str]] = IMAGE_REASONS | {
        "bad_metadata",
        "official_test",
        "snow",
        "cloud",
        "nodata",
        "duplicate_row",
        "filtered",
        "blocklisted",
    }
    adds = schema.INGEST
    reads_sources = True

    config: IngestConfig

    def phases(self) -> list[Phase]:
        """List, read, relate, settle."""
        return [ListPhase(self.sources), ReadPhase(self.config, self.sources), RelatePhase(), SettlePhase()]

    def named_files(self) -> list[str]:
        """The blocklists."""
        return list(self.config.blocklist)

    def check(self) -> None:
        """Raise `UserError` for a source that is no collection of images, or options that make no sense."""
        check_stage(self.sources, self.name)
        tile(self.config.tile, "stages.ingest.tile")
        blocklist.load(tuple(self.config.blocklist))
        for source in self.sources:
            for unsupported in ("where", "unsafe"):
                if getattr(source, unsupported):
                    raise UserError(
                        f"source {source.name!r}: {unsupported} filters columns of metadata, which format "
                        f"{source.format} has not; only: and except: take lists of ids"
                    )
            reader(source)

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """`views`: RGB views written, by source; `locations`: distinct ones; `warnings`: what readers noted."""
        views: Counter[str] = Counter()
        for record in records[ReadPhase.name]:
            views[record.meta["source"]] += record.meta["views"]
        [related] = records[RelatePhase.name]
        return {
            "views": dict(sorted(views.items())),
            "locations": related.meta["locations"],
            "warnings": [note for record in records[ListPhase.name] for note in record.meta.get("notes", [])],
        }

    def preview(self, ws: Workspace) -> tuple[int, int]:
        """(images and scenes of units that are committed, others); of many tars the latter is an estimate."""
        listed = {record.meta["source"]: 0 for record in ws.phase_records(ListPhase.name)}
        for record in ws.phase_records(ListPhase.name):
            listed[record.meta["source"]] += sum(group["rows"] for group in record.meta["groups"])
        total = sum(listed.get(source.name) or _count(source) for source in self.sources)
        done = {record.unit for record in ws.phase_records(ReadPhase.name)}
        ready = sum(unit.rows for unit in ReadPhase(self.config, self.sources).cut(ws) if unit.id in done)
        return ready, total - ready


def _count(source: Source) -> int:
    made = reader(source)
    return estimate(made) if isinstance(made, WebdatasetReader) else sum(1 for _ in made.entries())


def blocklist_digest(paths: Sequence[str]) -> str:
    """Identity of what the lists hold."""
    found = blocklist.load(tuple(paths))
    return _digest([sorted(found.urls), sorted(found.domains), sorted(found.sha256), sorted(found.phash)])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
