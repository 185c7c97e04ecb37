"""Exact dedup: of all copies of an image one survives, chosen by a total order (docs/dedup.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages import blocklist, decide, features, testsets, twins
from stages.base import (
    Ledger,
    Phase,
    Record,
    Result,
    Stage,
    Unit,
    Workspace,
    operational,
    semantic,
    status_column,
)
from stages.contamination import MATCHED
from stages.decide import Decided
from stages.doubts import Judge
from stages.embeddings import Alike, EmbeddingsConfig, Images, read_alike
from stages.forecast import Forecast
from stages.merging import CAPTIONS, MOVED, entries, merged
from stages.narrow import NarrowRows, greys_of, input_rows, key_texts, narrow_files, read_rows, row_units
from stages.nearness import Doubtful, Looks, Narrow, Pairs, read_links
from stages.phash import SIDE
from stages.schema import COMMON, DEDUP, conform, extend
from stages.scorers import VlmScorer
from stages.testlooks import TestFeatures, scorer_of
from stages.testsets import TestSets
from stages.twins import NONE, Hashes, Ids

REASONS = (*twins.REASONS, *decide.REASONS)
TWIN = ("cluster", "component")
"""Columns of DEDUP that name other rows."""
DECISION = pa.schema(
    [
        ("row", pa.int32()),
        ("reason", pa.string()),
        *((name, pa.string()) for name in TWIN),
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
    orientations: Literal[1, 8] = semantic(1, help="8: turned and mirrored copies are twins, too")
    scope: Literal["image", "view"] = semantic(
        "image", help="view: other dates and renderings of one location are twins, too, when their hashes are near"
    )
    against: list[str] = semantic([], help="test sets (folders, tars, lists) that no sample may come from")
    against_action: Literal["drop", "flag"] = semantic("drop", help="what becomes of rows that match a test set")
    embeddings: EmbeddingsConfig | None = semantic(None, help="images whose features are alike are twins, too")
    blocklist: list[str] = semantic([], help="files of sha256 or phash that never enter (also urls, domains)")
    partition_rows: int = operational(
        50_000_000, help="rows from which on the search for near hashes is dealt to units"
    )
    max_minutes: int = operational(
        60, help="minutes of one core beyond which a search for near hashes is not begun, by its estimate"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 8:
            raise ValueError(f"radius: a whole number from 0 to 8 is wanted, found {self.radius}")
        if self.partition_rows < 1:
            raise ValueError(f"partition_rows: a whole number from 1 on is wanted, found {self.partition_rows}")
        if self.max_minutes < 1:
            raise ValueError(f"max_minutes: a whole number from 1 on is wanted, found {self.max_minutes}")

    def partitions(self, rows: int) -> int:
        """Partitions of each band for an input of `rows`; 1 when one unit searches them all."""
        return -(-rows // self.partition_rows) if self.radius else 1

    def forecast(self, rows: int) -> Forecast:
        """What the search for near hashes among `rows` would take."""
        return Forecast(rows=rows, radius=self.radius, orientations=self.orientations)

    def listed_hashes(self) -> Hashes:
        """Perceptual hashes of the blocklists."""
        return np.array(sorted(blocklist.load(tuple(self.blocklist)).phash), np.uint64)


class DedupStage(Stage):
    """Keeps one row of every group of copies."""

    name: ClassVar[str] = "dedup"
    version: ClassVar[int] = 2
    config_class: ClassVar[type] = DedupConfig
    reasons: ClassVar[frozenset[str]] = frozenset(REASONS)
    adds: ClassVar[pa.Schema] = DEDUP
    uses_source_order: ClassVar[bool] = True

    @property
    def requires(self) -> frozenset[str]:  # type: ignore[override]
        """The columns that are compared."""
        columns = ("key", "source", "url", "caption", "sha256", "phash", "width", "height")
        return frozenset([*columns, *([features.COLUMN] if self.config.embeddings else [])])

    def phases(self) -> list[Phase]:
        """Narrow columns, near hashes and features, decisions on all rows, twins' captions to survivors, the rows."""
        tests = self._tests()
        search = [Narrow(self.config), Pairs(self.config), Doubtful(self.config), Looks()]
        alike = [Images(self.config.embeddings), Alike(self.config.embeddings)] if self.config.embeddings else []
        return [*tests, *search, *alike, Decide(self.config), Captions(), Map()]

    def _tests(self) -> list[Phase]:
        """Hashes and captions of the test sets, and features where they can be compared."""
        if not self.config.against:
            return []
        tests, scorer = TestSets(self.config.against), self._scorer()
        return [tests, *([TestFeatures(scorer, tests)] if scorer else [])]

    def _scorer(self) -> VlmScorer | None:
        """The model that looks at test images."""
        return scorer_of(self.config.embeddings) if self.config.embeddings and self.config.against else None

    def estimate(self, ws: Workspace) -> str:
        """Time and chance pairs of the search for near hashes, and that it wants a confirmation."""
        forecast = self.config.forecast(input_rows(ws))
        bound = self.config.max_minutes
        return f"{forecast}" + (f", more than max_minutes ({bound}) allows" if forecast.minutes > bound else "")

    def named_files(self) -> list[str]:
        """The blocklists, the files of the test sets, and the model that looks at them."""
        scorer = self._scorer()
        return [*self.config.blocklist, *testsets.files(self.config.against), *(scorer.ref.files() if scorer else [])]

    def check(self) -> None:
        """Read the blocklists once, so that a bad line is found before the run; see that the test sets are there."""
        blocklist.load(tuple(self.config.blocklist))
        testsets.check(self.config.against)
        if scorer := self._scorer():
            scorer.check()

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """Pairs within the radius, clusters and the largest of them, and which sources' rows stood for which."""
        found = dict(records["decide"][0].meta) if records.get("decide") else {}
        if "tests" in records:
            found["tests"] = testsets.summary(records["tests"], records["narrow"])
        return found


class Decide(Phase):
    """Decides on all rows; one row group of decisions for each unit of `Map`."""

    name: ClassVar[str] = "decide"

    def __init__(self, config: DedupConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all", rows=input_rows(ws))]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Decide on every kept row of the input."""
        rows = NarrowRows(ws, narrow_files(ws))
        if not len(rows.ends) > 1:
            return Result()
        listed = blocklist.load(tuple(self.config.blocklist))
        alike = read_alike(ws, len(rows)) if self.config.embeddings else None
        decided = decide.decide(rows, read_links(ws, rows, listed), listed, self._judge(ws, rows), alike)
        ws.write_table("decisions", _decisions(decided, rows.ends), kind="side")
        return Result(meta=decided.summary(rows, ws.sources))

    def _judge(self, ws: Workspace, rows: NarrowRows) -> Judge:
        """With the thumbnails that `Looks` found."""
        found = [
            (ws.read_table(record.files[0].path), rows.ends[int(record.unit)])
            for record in ws.phase_records("looks")
            if record.files
        ]
        places = [start + table["row"].to_numpy().astype(np.int64) for table, start in found]
        return Judge(
            radius=self.config.radius,
            orientations=self.config.orientations,
            by_view=self.config.scope == "view",
            rows=np.concatenate([np.empty(0, np.int64), *places]),
            greys=np.concatenate([np.empty((0, SIDE, SIDE), np.uint8), *(greys_of(t["thumbnail"]) for t, _ in found)]),
        )


class Captions(Phase):
    """Sends the captions of dropped rows to the units of their survivors: a row group for each."""

    name: ClassVar[str] = "captions"

    def cut(self, ws: Workspace) -> list[Unit]:
        """Groups of input parts."""
        return row_units(ws)

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the captions of the unit's dropped rows, by the survivor's unit."""
        decisions = _read_decisions(ws, unit)
        twin = decisions.filter(pc.is_valid(decisions["survivor_unit"]))
        if twin.num_rows:
            columns = [name for name in ("status", "source", "caption", "captions") if name in ws.input_columns().names]
            table = read_rows(ws, unit, columns)
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
        return row_units(ws)

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Join the unit's rows with its decisions and with the captions sent to it, by position."""
        # nobody asks for thumbnails later
        table = read_rows(ws, unit, [name for name in ws.input_columns().names if name != "thumbnail"])
        schema = extend(table.schema, COMMON, pa.schema([("captions", CAPTIONS)]), DEDUP)
        sent = [ws.read_table(file.path, row_groups=[int(unit.id)]) for file in ws.phase_files("captions", "side")]
        table = conform(table, schema)
        written = _with(
            table,
            {
                **_settled(table["key"], _read_decisions(ws, unit)),
                **_tested(ws, unit, table.num_rows),
                "captions": merged(table, pa.concat_tables([MOVED.empty_table(), *sent])),
            },
        )
        ws.write_table("part", written)
        ledger = Ledger()
        ledger.add_table(written)
        return Result(ledger=ledger)


def _decisions(decided: Decided, ends: NDArray[np.int64]) -> Iterator[pa.Table]:
    """DECISION for each unit: the rows that are dropped or belong to another row's component."""
    settled = np.flatnonzero((decided.reason != NONE) | (decided.component != np.arange(len(decided.rows))))
    rank = np.concatenate([settled, np.full(len(decided.barred), NONE)])
    rows = np.concatenate([decided.rows[settled], decided.barred])
    code = np.concatenate([decided.reason[settled], len(twins.REASONS) + decided.barred_reason])
    order = np.argsort(rows)
    rank, rows, code = rank[order], rows[order], code[order]
    starts = np.searchsorted(rows, ends)
    for unit, (start, end) in enumerate(pairwise(starts)):
        here = slice(start, end)
        yield _unit_decisions(decided, rank[here], rows[here] - ends[unit], code[here], ends)


def _unit_decisions(decided: Decided, rank: Ids, row: Ids, code: Ids, ends: NDArray[np.int64]) -> pa.Table:
    """DECISION for rows of one unit, given by their places in the total order, NONE for barred ones."""
    barred = rank == NONE
    kept = code == NONE
    survivor, component = (_taken(of, rank) for of in (decided.survivor, decided.component))
    place = _taken(decided.rows, survivor)
    unit = np.searchsorted(ends, place, side="right") - 1
    columns = [
        pa.array(row),
        pa.DictionaryArray.from_arrays(pa.array(code.astype(np.int8), mask=kept), pa.array(REASONS)),
        *(_masked(key_texts(*(_taken(half, of) for half in decided.keys)), barred) for of in (survivor, component)),
        *(pa.array(values, mask=barred | kept) for values in (unit, place - ends[unit])),
        pa.array(rank),
    ]
    return pa.table(columns, names=DECISION.names).cast(DECISION)


def _taken(values: NDArray[Any], places: Ids) -> NDArray[Any]:
    """Values at some places; whatever there is for NONE."""
    return values[places] if len(values) else np.zeros(len(places), values.dtype)


def _masked(texts: pa.Array, mask: NDArray[np.bool_]) -> pa.Array:
    return pc.if_else(pa.array(mask), None, texts)


def _read_decisions(ws: Workspace, unit: Unit) -> pa.Table:
    return ws.read_table(ws.phase_files("decide", "side")[0].path, row_groups=[int(unit.id)])


def _settled(key: pa.ChunkedArray, decisions: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Columns for all rows of a unit: those without a decision are kept and stand for themselves."""
    place = pc.index_in(pa.array(range(len(key)), pa.int32()), decisions["row"])
    reason = decisions["reason"].take(place)
    found = {name: pc.coalesce(decisions[name].take(place), key) for name in TWIN}
    return {"reason": reason, "status": status_column(reason), **found}


def _tested(ws: Workspace, unit: Unit, rows: int) -> dict[str, pa.ChunkedArray]:
    """The test items that rows of a unit match; null where there is none."""
    path = ws.phase_records("narrow")[int(unit.id)].meta.get("tested")
    matched = ws.read_table(path) if path else MATCHED.empty_table()
    place = pc.index_in(pa.array(range(rows), pa.int32()), matched["row"])
    return {name: matched[name].take(place) for name in MATCHED.names if name != "row"}


def _with(table: pa.Table, columns: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """The table with some of its columns replaced."""
    for name, column in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), column)
    return table
