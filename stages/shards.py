"""shards: kept samples become tars that webdataset, open_clip and RS5M's own loader read.

Three phases: `assign` reads three narrow columns of everything and says which shard each row goes to, and
where in it; `partition` lays the rows out so that each shard's lie together; `pack` writes one tar a unit.
`publish` then gives the tars their final names.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import schema
from stages.base import (
    KEPT,
    Ledger,
    OutputFile,
    Phase,
    Record,
    Result,
    Stage,
    Unit,
    Workspace,
    group_files,
    semantic,
)
from stages.errors import UnitError, UserError
from stages.packing import INDEX, Row, write_tar
from stages.splits import distances, draw, fraction, groups, homes_of

SPLITS = ("train", "val")
LAYOUTS = ("webdataset", "rs5m")
MOST_SHARDS = 100_000
"""Of a split; each is a unit of work."""
GROUP_ROWS = 250_000
"""Rows a `partition` task holds at once."""
WINDOW_BYTES = 128 << 20
"""Image bytes a `pack` task holds at once."""
READERS = 8
"""Source tars a `pack` task reads from at once."""


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """How samples are laid out in tars."""

    count: int = semantic(32, help="shards per split")
    val_fraction: float = semantic(0.05, help="share of groups that go to the validation split")
    layout: str = semantic("webdataset", help="webdataset (jpg, txt, json) or rs5m (img_content, img_name, caption)")
    block_km: float = semantic(10.0, help="side of the spatial blocks that stay on one side of the split")
    native: bool = semantic(False, help="the untouched multi-band files beside the RGB view made of them")


class ShardsStage(Stage):
    """Packs kept samples into shards and names them."""

    name = "shards"
    version = 2
    config_class = ShardsConfig
    reasons: ClassVar[frozenset[str]] = frozenset()
    requires = frozenset({"key", "source", "caption", "status", "image", "format", "sha256"})
    uses_seed = True

    def check(self) -> None:
        """Raise `UserError` for a count, fraction or layout that makes no sense."""
        config = self.config
        if not 1 <= config.count <= MOST_SHARDS:
            raise UserError(f"stages.shards.count is {config.count}: it must be from 1 to {MOST_SHARDS:,}")
        if not 0 <= config.val_fraction <= 1:
            raise UserError(f"stages.shards.val_fraction is {config.val_fraction}: it must lie between 0 and 1")
        if config.layout not in LAYOUTS:
            raise UserError(f"stages.shards.layout is {config.layout!r}: it must be {' or '.join(LAYOUTS)}")
        if not config.block_km > 0:
            raise UserError(f"stages.shards.block_km is {config.block_km}: it must be above 0")
        if config.native and config.layout != "webdataset":
            raise UserError("stages.shards.native is true: it needs layout webdataset, since rs5m has no place for it")

    def phases(self) -> list[Phase]:
        """assign (one unit), partition (a unit per group of parts), pack (a unit per shard)."""
        return [Assign(self.config), Partition(), Pack(self.config)]

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """Samples per split and tar; how far validation samples lie from training ones, where places are known."""
        packed = records[Pack.name]
        [assigned] = records[Assign.name]
        samples = dict.fromkeys(SPLITS, 0)
        for record in packed:
            samples[record.meta["split"]] += record.meta["samples"]
        return {
            "samples": samples,
            "tars": {r.meta["target"]: r.meta["samples"] for r in packed},
            "split_distance_km": assigned.meta["split_distance_km"],
        }

    def publish(self, ws: Workspace, records: Mapping[str, Sequence[Record]]) -> list[OutputFile]:
        """Give the packed tars their final names, then write `sizes.json` and `index.parquet`.

        Can be repeated after a kill at any point. Returns the stage's output files, in order.

        Raises:
            UnitError: a packed tar lies neither under its own name nor, whole, under its final one.
        """
        packed = sorted(records[Pack.name], key=lambda record: record.unit)
        tars = [_publish_tar(ws, record) for record in packed]
        sizes = [_publish_sizes(ws, split, packed) for split in SPLITS if _of_split(packed, split)]
        return [*tars, *sizes, _publish_index(ws, packed)]


class Assign(Phase):
    """Decides split, shard and position of every kept row, from its key and group alone."""

    name = "assign"

    def __init__(self, config: ShardsConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all", rows=sum(file.rows for file in ws.input_files()))]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write (shard, position) per kept row: a row group per `partition` unit, in the order of its rows."""
        block_km = self.config.block_km
        homes = homes_of((_narrow(ws, group) for group in _groups(ws)), block_km)
        drawn = [_draw(_narrow(ws, group), ws.seed, block_km, homes) for group in _groups(ws)]
        is_val = _joined([d.fraction for d in drawn], np.float64) < self.config.val_fraction
        shard, position, sizes = place(is_val, _joined([d.order for d in drawn], "S16"), self.config.count)
        ws.write_table("side", _slices(shard, position, [len(d.order) for d in drawn]), kind="side")
        latitude = _joined([d.latitude for d in drawn], np.float64)
        longitude = _joined([d.longitude for d in drawn], np.float64)
        apart = distances(latitude, longitude, is_val) if len(latitude) else {}
        return Result(meta={"sizes": sizes, "split_distance_km": apart})


class Partition(Phase):
    """Lays rows out by shard: row group i of a unit's file holds the rows of shard i."""

    name = "partition"

    def cut(self, ws: Workspace) -> list[Unit]:
        """A unit per group of input parts; the same groups as `assign` read."""
        return [
            Unit(id=unit.id, spec={**unit.spec, "row_group": number}, rows=unit.rows)
            for number, unit in enumerate(_groups(ws))
        ]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the unit's rows, in the columns that shards show, one row group a shard."""
        columns = ws.input_columns()
        wanted = schema.extend(columns, pa.schema([("position", pa.int64())]))
        table = pa.concat_tables([schema.conform(_kept(ws, path), columns) for path in unit.spec["files"]])
        side = ws.read_table(ws.phase_files(Assign.name, "side")[0].path, row_groups=[unit.spec["row_group"]])
        table = schema.conform(table.append_column("position", side.column("position")), wanted)
        shards = np.asarray(side.column("shard"))
        order = np.argsort(shards, kind="stable")
        count = len(ws.phase_records(Assign.name)[0].meta["sizes"])
        bounds = np.searchsorted(shards[order], np.arange(count + 1))
        ws.write_table("rows", (table.take(order[a:b]) for a, b in pairwise(bounds)), kind="side")
        return Result()


class Pack(Phase):
    """Writes one tar a unit."""

    name = "pack"

    def __init__(self, config: ShardsConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """A unit per shard, empty ones too; none for a split that the fraction rules out."""
        sizes = ws.phase_records(Assign.name)[0].meta["sizes"]
        first = 0 if self.config.val_fraction < 1 else self.config.count
        end = len(sizes) if self.config.val_fraction > 0 else self.config.count
        return [Unit(id=f"{shard:05d}", spec={"shard": shard}, rows=sizes[shard]) for shard in range(first, end)]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the shard's tar and its part of the index."""
        shard = unit.spec["shard"]
        split, number = SPLITS[shard // self.config.count], shard % self.config.count
        target = f"shards/{split}/{ws.subset}-{split}-{number:04d}.tar"
        rows = _shard_rows(ws, shard)
        with ws.create("shard", ".tar", kind="tar", rows=rows.num_rows) as file:
            native = partial(_native, ws) if self.config.native else None
            index = write_tar(file, _samples(ws, rows), target, self.config.layout, native)
        ws.write_table("index", pa.Table.from_pylist(index, schema=INDEX), kind="side")
        ws.progress(rows=rows.num_rows, kept=rows.num_rows)
        ledger = Ledger()
        for entry in rows.column("source").combine_chunks().value_counts().to_pylist():
            ledger.add(entry["values"], None, entry["counts"])
        return Result(ledger=ledger, meta={"split": split, "target": target, "samples": rows.num_rows})


def place(is_val: np.ndarray, order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(shard, position) of each row, and each shard's size: train's `count` shards, then val's.

    A split's rows, sorted by `order`, are cut into shards whose sizes differ by one at most.
    """
    shard = np.zeros(len(order), np.int32)
    position = np.zeros(len(order), np.int64)
    sizes: list[int] = []
    for number in range(len(SPLITS)):
        rows = np.flatnonzero(is_val == bool(number))
        ranked = rows[np.argsort(order[rows], kind="stable")]
        for piece in np.array_split(ranked, count):
            shard[piece] = len(sizes)
            position[piece] = np.arange(len(piece))
            sizes.append(len(piece))
    return shard, position, sizes


def _groups(ws: Workspace) -> list[Unit]:
    return group_files(ws.input_files(), GROUP_ROWS)


def _kept(ws: Workspace, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    table = ws.read_table(path, columns)
    return table.filter(pc.equal(table.column("status"), KEPT))


def _narrow(ws: Workspace, group: Unit) -> pa.Table:
    present = ws.input_columns().names
    wanted = ["key", "status", "location", "latitude", "longitude", "component"]
    columns = [name for name in wanted if name in present]
    return pa.concat_tables([_kept(ws, path, columns) for path in group.spec["files"]])


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What decides about rows: each column has one value a row."""

    fraction: np.ndarray
    """Their groups' places in [0, 1)."""
    order: np.ndarray
    """The 16 bytes they are sorted by."""
    latitude: np.ndarray
    longitude: np.ndarray
    """Degrees, NaN where unknown; empty where the table has no such column."""


def _draw(table: pa.Table, seed: int, block_km: float, homes: pa.Table) -> _Drawn:
    places = [fraction(seed, group) for group in groups(table, block_km, homes).to_pylist()]
    order = [draw(seed, "order", key) for key in table.column("key").to_pylist()]
    return _Drawn(
        np.array(places, np.float64), np.array(order, "S16"), _degrees(table, "latitude"), _degrees(table, "longitude")
    )


def _degrees(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.array([], np.float64)
    return np.asarray(table.column(name).cast(pa.float64()).to_numpy())


def _joined(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.array([], dtype), *arrays])


def _slices(shard: np.ndarray, position: np.ndarray, lengths: Sequence[int]) -> Iterator[pa.Table]:
    start = 0
    for length in lengths or [0]:
        stop = start + length
        yield pa.table({"shard": shard[start:stop], "position": position[start:stop]})
        start = stop


def _shard_rows(ws: Workspace, shard: int) -> pa.Table:
    """The shard's rows in their final order."""
    files = ws.phase_files(Partition.name, "side")
    if not files:
        return schema.conform(ws.input_columns().empty_table(), ws.input_columns())
    table = pa.concat_tables([ws.read_table(file.path, row_groups=[shard]) for file in files])
    return table.sort_by("position").drop_columns(["position"])


def _samples(ws: Workspace, rows: pa.Table) -> Iterator[tuple[Row, bytes]]:
    """Rows with their image bytes, in order, a window of bounded bytes at a time."""
    for window in windows(rows.column("image").combine_chunks().field("size").to_numpy(zero_copy_only=False)):
        wanted = rows.slice(window.start, len(window)).to_pylist()
        yield from zip(wanted, _images(ws, wanted), strict=True)


def windows(sizes: np.ndarray, most: int = WINDOW_BYTES) -> Iterator[range]:
    """Consecutive ranges whose sizes add up to `most` bytes at most (a single larger one stands alone)."""
    start, total = 0, 0
    for number, size in enumerate(sizes):
        if number > start and total + size > most:
            yield range(start, number)
            start, total = number, 0
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))


def _images(ws: Workspace, rows: Sequence[Row]) -> list[bytes]:
    """The rows' image bytes: each source tar is read once, from front to back."""
    by_tar: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_tar.setdefault(row["image"]["tar"], []).append(number)
    images: list[bytes] = [b""] * len(rows)

    def read(tar: str) -> None:
        numbers = sorted(by_tar[tar], key=lambda number: rows[number]["image"]["offset"])
        ranges = [(rows[number]["image"]["offset"], rows[number]["image"]["size"]) for number in numbers]
        try:
            for number, data in zip(numbers, ws.read_ranges(tar, ranges), strict=True):
                images[number] = _checked(rows[number], data)
        except OSError as error:
            raise UnitError(f"{tar} cannot be read: {error}") from error

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, by_tar))
    return images


def _native(ws: Workspace, row: Row) -> Iterator[tuple[str, bytes]]:
    """The files that a row's view was made of."""
    for file in row.get("native") or ():
        try:
            yield file["path"], b"".join(ws.read_ranges(file["path"], [(0, file["size"])]))
        except OSError as error:
            raise UnitError(f"{file['path']} cannot be read: {error}") from error


def _checked(row: Row, data: bytes) -> bytes:
    """The bytes, if they still are those whose sha256 the row states."""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise UnitError(f"the image of {row['key']} in {row['image']['tar']} is not the one that was stored")
    return data


def _of_split(records: Sequence[Record], split: str) -> list[Record]:
    return [record for record in records if record.meta["split"] == split]


def _file(record: Record, name: str) -> OutputFile:
    return next(file for file in record.files if f"/{name}-" in file.path)


def _publish_tar(ws: Workspace, record: Record) -> OutputFile:
    """Move a packed tar to its final name, unless an interrupted run already did."""
    packed, target = _file(record, "shard"), record.meta["target"]
    if ws.exists(packed.path):
        ws.move(packed.path, target)
    elif not (ws.exists(target) and ws.sha256(target) == packed.sha256):
        raise UnitError(f"{packed.path} is gone, and {target} is not it: run the stage again with --force shards")
    return OutputFile(path=target, rows=packed.rows, bytes=packed.bytes, sha256=packed.sha256, kind="tar")


def _publish_sizes(ws: Workspace, split: str, packed: Sequence[Record]) -> OutputFile:
    """`sizes.json` of a split: tar name to samples, as open_clip reads it."""
    sizes = {r.meta["target"].rsplit("/", 1)[1]: r.meta["samples"] for r in _of_split(packed, split)}
    return _publish_bytes(ws, f"shards/{split}/sizes.json", json.dumps(sizes, indent=1).encode(), 0, "sizes")


def _publish_index(ws: Workspace, packed: Sequence[Record]) -> OutputFile:
    """`index.parquet`: a row per sample, a row group per tar."""
    buffer = io.BytesIO()
    rows = 0
    with pq.ParquetWriter(buffer, INDEX, compression="zstd") as writer:
        for record in packed:
            table = _index_of(ws, record)
            writer.write_table(table)
            rows += table.num_rows
    return _publish_bytes(ws, "shards/index.parquet", buffer.getvalue(), rows, "index")


def _index_of(ws: Workspace, record: Record) -> pa.Table:
    path = _file(record, "index").path
    try:
        return ws.read_table(path).cast(INDEX)
    except FileNotFoundError as error:
        raise UnitError(f"{path} is gone: run the stage again with --force shards") from error


def _publish_bytes(ws: Workspace, path: str, data: bytes, rows: int, kind: str) -> OutputFile:
    ws.write_bytes(path, data)
    digest = hashlib.sha256(data).hexdigest()
    return OutputFile(path=path, rows=rows, bytes=len(data), sha256=digest, kind=kind)
