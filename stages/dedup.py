"""Exact dedup: of all copies of an image one survives, chosen by a total order (docs/dedup.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages import blocklist, hamming, twins
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
    operational,
    semantic,
    status_column,
)
from stages.decide import Decided, decide
from stages.errors import UnitError
from stages.merging import CAPTIONS, MOVED, entries, merged
from stages.narrow import HAS_PHASH, WANTED, NarrowRows, key_texts, narrow
from stages.schema import COMMON, DEDUP, conform, extend
from stages.twins import NONE, Hashes, Ids

ROWS_PER_UNIT = 200_000
UNITS = 1000
"""Beyond so many units they grow: each sends captions to each other one."""
BLOCKLISTED = "blocklisted"
REASONS = (*twins.REASONS, BLOCKLISTED)
DECISION = pa.schema(
    [
        ("row", pa.int32()),
        ("reason", pa.string()),
        *((field.name, field.type) for field in DEDUP),
        ("survivor_unit", pa.int32()),
        ("survivor_row", pa.int32()),
        ("rank", pa.int64()),
    ]
)
"""Side table of the rows that do not simply stand for themselves: `row` counts within its unit's kept rows,
`survivor_…` say where the row stands that it is dropped for, `rank` orders twins totally."""


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """Options of `stages.dedup`."""

    radius: int = semantic(2, help="bits by which two perceptual hashes may differ to be one image, 0 to 8")
    blocklist: list[str] = semantic([], help="files of sha256 or phash that never enter (also urls, domains)")
    partition_rows: int = operational(
        50_000_000, help="rows from which on the search for near hashes is dealt to units"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 8:
            raise ValueError(f"radius: a whole number from 0 to 8 is wanted, found {self.radius}")
        if self.partition_rows < 1:
            raise ValueError(f"partition_rows: a whole number from 1 on is wanted, found {self.partition_rows}")

    def partitions(self, rows: int) -> int:
        """Partitions of each band for an input of `rows`; 1 when one unit searches them all."""
        return -(-rows // self.partition_rows) if self.radius else 1

    def listed_hashes(self) -> Hashes:
        """Perceptual hashes of the blocklists."""
        return np.array(sorted(blocklist.load(tuple(self.blocklist)).phash), np.uint64)


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
        """Narrow columns, near hashes, decisions on all rows, twins' captions to their survivors, and the rows."""
        return [Narrow(self.config), Pairs(self.config), Decide(self.config), Captions(), Map()]

    def named_files(self) -> list[str]:
        """The blocklists."""
        return list(self.config.blocklist)

    def check(self) -> None:
        """Read the blocklists once, so that a bad line is found before the run."""
        blocklist.load(tuple(self.config.blocklist))

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """Pairs within the radius, clusters and the largest of them, and which sources' rows stood for which."""
        return dict(records["decide"][0].meta) if records.get("decide") else {}


class Narrow(Phase):
    """Writes what is compared of every kept row; of a large input also its hashes, dealt to bands and partitions."""

    name: ClassVar[str] = "narrow"

    def __init__(self, config: DedupConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """Groups of input parts."""
        return _row_units(ws)

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the unit's narrow columns."""
        table = pa.concat_tables(narrow(_read_kept(ws, path, WANTED), ws.sources) for path in unit.spec["files"])
        ws.write_table("narrow", table, kind="side")
        partitions = self.config.partitions(_input_rows(ws))
        if partitions > 1:
            ws.write_table("hashes", self._dealt(_hashes(table), partitions), kind="side")
        return Result()

    def _dealt(self, hashes: Hashes, partitions: int) -> Iterator[pa.Table]:
        """A table for each partition of each band."""
        for bits in hamming.bands_of(self.config.radius):
            partition = hamming.deal(hashes, bits, partitions)
            for number in range(partitions):
                yield pa.table({"phash": hashes[partition == number]})


class Pairs(Phase):
    """Finds every two distinct hashes within the radius: in one unit, or in one for each partition of each band."""

    name: ClassVar[str] = "pairs"

    def __init__(self, config: DedupConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """None for radius 0; one; or radius + 1 bands of some partitions."""
        if not self.config.radius:
            return []
        rows = _input_rows(ws)
        partitions = self.config.partitions(rows)
        if partitions <= 1:
            return [Unit(id="all", rows=rows)]
        return [
            Unit(id=f"{band}-{number:05d}", spec={"band": band, "number": number}, rows=rows // partitions)
            for band in range(self.config.radius + 1)
            for number in range(partitions)
        ]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the pairs as hashes."""
        if unit.spec:
            hashes = self._partition(ws, unit.spec["band"], unit.spec["number"])
            left, right = hamming.pairs_in_band(hashes, self.config.radius, unit.spec["band"])
        else:
            tables = (ws.read_table(file.path, columns=["phash", "known"]) for file in _narrow_files(ws))
            hashes = _distinct([*map(_hashes, tables), self.config.listed_hashes()])
            left, right = hamming.pairs_within(hashes, self.config.radius)
        ws.write_table("pairs", pa.table({"left": hashes[left], "right": hashes[right]}), kind="side")
        return Result(meta={"hashes": len(hashes), "pairs": len(left)})

    def _partition(self, ws: Workspace, band: int, number: int) -> Hashes:
        """The distinct hashes of one partition of one band."""
        partitions = self.config.partitions(_input_rows(ws))
        listed = self.config.listed_hashes()
        here = hamming.deal(listed, hamming.bands_of(self.config.radius)[band], partitions) == number
        files = [record.files[1] for record in ws.phase_records("narrow")]
        group = band * partitions + number
        return _distinct(
            [*(ws.read_table(file.path, row_groups=[group])["phash"].to_numpy() for file in files), listed[here]]
        )


class Decide(Phase):
    """Decides on all rows; one row group of decisions for each unit of `Map`."""

    name: ClassVar[str] = "decide"

    def __init__(self, config: DedupConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all", rows=_input_rows(ws))]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Decide on every kept row of the input."""
        rows = NarrowRows(ws, _narrow_files(ws))
        if not len(rows.ends) > 1:
            return Result()
        tables = [ws.read_table(file.path) for file in ws.phase_files("pairs", "side")]
        left, right = (_joined(table[name].to_numpy() for table in tables) for name in ("left", "right"))
        decided = decide(rows, (left, right), blocklist.load(tuple(self.config.blocklist)))
        ws.write_table("decisions", _decisions(decided, rows.ends), kind="side")
        return Result(meta=decided.summary(rows, ws.sources))


class Captions(Phase):
    """Sends the captions of dropped rows to the units of their survivors: a row group for each."""

    name: ClassVar[str] = "captions"

    def cut(self, ws: Workspace) -> list[Unit]:
        """Groups of input parts."""
        return _row_units(ws)

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the captions of the unit's dropped rows, by the survivor's unit."""
        decisions = _read_decisions(ws, unit)
        twin = decisions.filter(pc.is_valid(decisions["survivor_unit"]))
        if twin.num_rows:
            columns = [name for name in ("status", "source", "caption", "captions") if name in ws.input_columns().names]
            table = _read_rows(ws, unit, columns)
            moved = pa.table([twin["survivor_row"], twin["rank"], entries(table.take(twin["row"]))], schema=MOVED)
            survivor_unit = twin["survivor_unit"].to_numpy()
            units = range(len(ws.phase_records("narrow")))
            ws.write_table("captions", (moved.filter(pa.array(survivor_unit == n)) for n in units), kind="side")
        return Result()


class Map(Phase):
    """Writes every row with its decision."""

    name: ClassVar[str] = "map"

    def cut(self, ws: Workspace) -> list[Unit]:
        """Groups of input parts."""
        return _row_units(ws)

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Join the unit's rows with its decisions and with the captions sent to it, by position."""
        columns = ws.input_columns()
        table = _read_rows(
            ws, unit, [name for name in columns.names if name != "thumbnail"]
        )  # nobody asks for it later
        schema = extend(table.schema, COMMON, pa.schema([("captions", CAPTIONS)]), DEDUP)
        sent = [ws.read_table(file.path, row_groups=[int(unit.id)]) for file in ws.phase_files("captions", "side")]
        table = conform(table, schema)
        written = _with(
            table,
            {
                **_settled(table["key"], _read_decisions(ws, unit)),
                "captions": merged(table, pa.concat_tables([MOVED.empty_table(), *sent])),
            },
        )
        ws.write_table("part", written)
        ledger = Ledger()
        ledger.add_table(written)
        return Result(ledger=ledger)


def _row_units(ws: Workspace) -> list[Unit]:
    return group_files(ws.input_files(), max(ROWS_PER_UNIT, _input_rows(ws) // UNITS))


def _input_rows(ws: Workspace) -> int:
    return sum(file.rows for file in ws.input_files())


def _narrow_files(ws: Workspace) -> list[OutputFile]:
    """One for each unit of rows."""
    return [record.files[0] for record in ws.phase_records("narrow")]


def _read_rows(ws: Workspace, unit: Unit, columns: Sequence[str]) -> pa.Table:
    """Some columns of the unit's kept rows.

    Raises:
        UnitError: they are not those that were decided on.
    """
    table = pa.concat_tables(_read_kept(ws, path, columns) for path in unit.spec["files"])
    decided = _narrow_files(ws)[int(unit.id)].rows
    if table.num_rows != decided:
        raise UnitError(f"{table.num_rows} rows, but {decided} were decided on")
    return table


def _read_kept(ws: Workspace, path: str, columns: Sequence[str]) -> pa.Table:
    table = ws.read_table(path, columns=columns)
    return table.filter(pc.equal(table["status"], KEPT))


def _hashes(table: pa.Table) -> Hashes:
    """The distinct hashes of narrow rows."""
    return _distinct([table["phash"].to_numpy()[(table["known"].to_numpy() & HAS_PHASH) > 0]])


def _distinct(arrays: Sequence[Hashes]) -> Hashes:
    return np.unique(_joined(arrays))


def _joined(arrays: Iterable[Hashes]) -> Hashes:
    return np.concatenate([np.empty(0, np.uint64), *arrays])


def _decisions(decided: Decided, ends: NDArray[np.int64]) -> Iterator[pa.Table]:
    """DECISION for each unit: the rows that are dropped or belong to another row's component."""
    settled = np.flatnonzero((decided.reason != NONE) | (decided.component != np.arange(len(decided.rows))))
    rank = np.concatenate([settled, np.full(len(decided.blocked), NONE)])
    rows = np.concatenate([decided.rows[settled], decided.blocked])
    order = np.argsort(rows)
    rank, rows = rank[order], rows[order]
    starts = np.searchsorted(rows, ends)
    for unit, (start, end) in enumerate(pairwise(starts)):
        yield _unit_decisions(decided, rank[start:end], rows[start:end] - ends[unit], ends)


def _unit_decisions(decided: Decided, rank: Ids, row: Ids, ends: NDArray[np.int64]) -> pa.Table:
    """DECISION for rows of one unit, given by their places in the total order, NONE for the blocklist's."""
    blocked = rank == NONE
    code = np.where(blocked, REASONS.index(BLOCKLISTED), decided.reason[rank])
    kept = code == NONE
    survivor, component = decided.survivor[rank], decided.component[rank]
    place = decided.rows[survivor]
    unit = np.searchsorted(ends, place, side="right") - 1
    columns = [
        pa.array(row),
        pa.DictionaryArray.from_arrays(pa.array(code.astype(np.int8), mask=kept), pa.array(REASONS)),
        *(_masked(key_texts(decided.keys[0][of], decided.keys[1][of]), blocked) for of in (survivor, component)),
        *(pa.array(values, mask=blocked | kept) for values in (unit, place - ends[unit])),
        pa.array(rank),
    ]
    return pa.table(columns, names=DECISION.names).cast(DECISION)


def _masked(texts: pa.Array, mask: NDArray[np.bool_]) -> pa.Array:
    return pc.if_else(pa.array(mask), None, texts)


def _read_decisions(ws: Workspace, unit: Unit) -> pa.Table:
    return ws.read_table(ws.phase_files("decide", "side")[0].path, row_groups=[int(unit.id)])


def _settled(key: pa.ChunkedArray, decisions: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Columns for all rows of a unit: those without a decision are kept and stand for themselves."""
    place = pc.index_in(pa.array(range(len(key)), pa.int32()), decisions["row"])
    reason = decisions["reason"].take(place)
    found = {name: pc.coalesce(decisions[name].take(place), key) for name in DEDUP.names}
    return {"reason": reason, "status": status_column(reason), **found}


def _with(table: pa.Table, columns: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """The table with some of its columns replaced."""
    for name, column in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), column)
    return table
