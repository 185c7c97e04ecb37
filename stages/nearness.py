"""The phases of dedup before its decision: narrow columns of all rows, near hashes, and thumbnails to confirm by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages import blocklist, hamming
from stages.base import Phase, Result, Unit, Workspace
from stages.blocklist import Blocklist
from stages.contamination import MATCHED, TestItems
from stages.decide import Links, link
from stages.doubts import unsure
from stages.features import COLUMN
from stages.narrow import (
    HAS_PHASH,
    HAS_THUMBNAIL,
    IS_PLAIN,
    IS_TESTED,
    OPTIONAL,
    TURNED,
    WANTED,
    NarrowRows,
    input_rows,
    narrow,
    narrow_files,
    read_kept,
    read_rows,
    row_units,
    with_flags,
)
from stages.testlooks import TestLooks, read_test_looks
from stages.turned import HashPairs, pairs_between, pairs_between_in_band
from stages.twins import Hashes

if TYPE_CHECKING:
    from stages.dedup import DedupConfig


class Narrow(Phase):
    """Writes what is compared of every kept row; of a large input also its hashes, dealt to bands and partitions."""

    name: ClassVar[str] = "narrow"

    def __init__(self, config: DedupConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """Groups of input parts, if the search that follows is not too long."""
        self.config.forecast(input_rows(ws)).refuse_beyond(self.config.max_minutes)
        return row_units(ws)

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the unit's narrow columns, and which of its rows match a test set."""
        tests, looks = self._tests(ws), self._looks(ws)
        columns = [*WANTED, *OPTIONAL, *(["captions"] if tests else []), *([COLUMN] if looks else [])]
        tables, matched, end = [], [MATCHED.empty_table()], 0
        for path in unit.spec["files"]:  # thumbnails are large: one part's at a time
            rows = read_kept(ws, [path], columns)
            tables.append(narrow(rows, ws.sources, self.config.orientations))
            if tests:
                alike = looks.match(ws, rows[COLUMN]) if looks else None
                matched.append(_moved(tests.match(rows, alike), end))
            end += rows.num_rows
        table, tested = pa.concat_tables(tables), pa.concat_tables(matched)
        meta: dict[str, Any] = {}
        if tests:
            meta["tested"] = ws.write_table("tested", tested, kind="side").path
            meta["matched"] = dict(Counter(tested["test_match"].to_pylist()))
            table = self._marked(table, tested)
        meta["narrow"] = ws.write_table("narrow", table, kind="side").path
        partitions = self.config.partitions(input_rows(ws))
        if partitions > 1:
            meta["upright"] = ws.write_table("upright", self._dealt(upright(table), partitions), kind="side").path
            turned = distinct(turned_hashes(table))
            meta["turned"] = ws.write_table("turned", self._dealt(turned, partitions), kind="side").path
        return Result(meta=meta)

    def _tests(self, ws: Workspace) -> TestItems | None:
        """The test sets' items, if there are any sets."""
        if not self.config.against:
            return None
        return TestItems([ws.read_table(file.path) for file in ws.phase_files("tests", "side")], self.config.radius)

    def _looks(self, ws: Workspace) -> TestLooks | None:
        """The test images' features, where they were computed."""
        if not (self.config.against and self.config.embeddings):
            return None
        items = [file.rows for file in ws.phase_files("tests", "side")]
        return read_test_looks(ws, self.config.embeddings, items)

    def _marked(self, table: pa.Table, tested: pa.Table) -> pa.Table:
        """The narrow columns, with a flag where a test set bars the row."""
        if self.config.against_action != "drop":
            return table
        known = table["known"].to_numpy().copy()
        known[tested["row"].to_numpy()] |= IS_TESTED
        return with_flags(table, known)

    def _dealt(self, hashes: Hashes, partitions: int) -> Iterator[pa.Table]:
        """A table for each partition of each band."""
        for bits in hamming.bands_of(self.config.radius):
            partition = hamming.deal(hashes, bits, partitions)
            for number in range(partitions):
                yield pa.table({"phash": hashes[partition == number]})


def _moved(matched: pa.Table, rows: int) -> pa.Table:
    """Matches of rows that stand so many rows further on."""
    return matched.set_column(0, MATCHED.field("row"), pc.add(matched["row"], pa.scalar(rows, pa.int32())))


class Pairs(Phase):
    """Finds every two distinct hashes within the radius: in one unit, or in one for each partition of each band."""

    name: ClassVar[str] = "pairs"

    def __init__(self, config: DedupConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """None where only equal hashes count; one; or radius + 1 bands of some partitions."""
        if not self.config.radius and self.config.orientations == 1:
            return []
        rows = input_rows(ws)
        partitions = self.config.partitions(rows)
        if partitions <= 1:
            return [Unit(id="all", rows=rows)]
        return [
            Unit(id=f"{band}-{number:05d}", spec={"band": band, "number": number}, rows=rows // partitions)
            for band in range(self.config.radius + 1)
            for number in range(partitions)
        ]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the pairs as hashes: of images as they stand, then of those with the turned ones."""
        if unit.spec:
            hashes, pairs, turned = self._partition(ws, unit.spec["band"], unit.spec["number"])
        else:
            hashes, pairs, turned = self._whole(ws)
        for name, (left, right) in (("pairs", pairs), ("turned", turned)):
            ws.write_table(name, pa.table({"left": left, "right": right}), kind="side")
        return Result(meta={"hashes": len(hashes), "pairs": len(pairs[0])})

    def _whole(self, ws: Workspace) -> tuple[Hashes, HashPairs, HashPairs]:
        """(distinct hashes, their pairs, their pairs with turned ones)."""
        radius = self.config.radius
        tables = (ws.read_table(file.path, columns=["phash", "known"]) for file in narrow_files(ws))
        hashes = distinct([*map(upright, tables), self.config.listed_hashes()])
        left, right = hamming.pairs_within(hashes, radius) if radius else (np.empty(0, np.int64),) * 2
        found = [
            pairs_between(hashes, distinct(self._view(ws, name)), radius)
            for name in TURNED.names[: self.config.orientations - 1]
        ]
        turned = joined([left for left, _ in found]), joined([right for _, right in found])
        return hashes, (hashes[left], hashes[right]), turned

    def _view(self, ws: Workspace, name: str) -> Iterator[Hashes]:
        """The hashes of every image in one turned view."""
        for file in narrow_files(ws):
            table = ws.read_table(file.path)
            if name in table.column_names:
                yield table[name].to_numpy()[_turnable(table)]

    def _partition(self, ws: Workspace, band: int, number: int) -> tuple[Hashes, HashPairs, HashPairs]:
        """The same within one partition of one band."""
        radius = self.config.radius
        partitions = self.config.partitions(input_rows(ws))
        listed = self.config.listed_hashes()
        here = hamming.deal(listed, hamming.bands_of(radius)[band], partitions) == number
        group = band * partitions + number

        def read(kind: str) -> list[Hashes]:
            paths = [record.meta[kind] for record in ws.phase_records("narrow")]
            return [ws.read_table(path, row_groups=[group])["phash"].to_numpy() for path in paths]

        hashes = distinct([*read("upright"), listed[here]])
        left, right = hamming.pairs_in_band(hashes, radius, band)
        turned = pairs_between_in_band(hashes, distinct(read("turned")), radius, band)
        return hashes, (hashes[left], hashes[right]), turned


class Doubtful(Phase):
    """Finds the rows whose thumbnails may have to be compared; one row group for each unit of rows."""

    name: ClassVar[str] = "doubtful"

    def __init__(self, config: DedupConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit, if there are thumbnails."""
        return [Unit(id="all", rows=input_rows(ws))] if "thumbnail" in ws.input_columns().names else []

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the positions of the rows within their units."""
        rows = NarrowRows(ws, narrow_files(ws))
        listed = blocklist.load(tuple(self.config.blocklist))
        links = read_links(ws, rows, listed)
        known = rows.column("known")
        plain = np.concatenate([view.ids[(known[view.rows] & IS_PLAIN) > 0] for view in links.views])
        ids = unsure(links.near, plain, self.config.radius)
        wanted = hamming.distinct(np.concatenate([view.rows[np.isin(view.ids, ids)] for view in links.views]))
        wanted = wanted[(known[wanted] & HAS_THUMBNAIL) > 0]
        starts = np.searchsorted(wanted, rows.ends)
        tables = (
            pa.table({"row": pa.array(wanted[start:end] - rows.ends[number], pa.int32())})
            for number, (start, end) in enumerate(pairwise(starts))
        )
        if len(rows.ends) > 1:
            ws.write_table("doubtful", tables, kind="side")
        return Result(meta={"rows": len(wanted)})


class Looks(Phase):
    """Fetches the thumbnails that may have to be compared."""

    name: ClassVar[str] = "looks"

    def cut(self, ws: Workspace) -> list[Unit]:
        """Groups of input parts, if any thumbnail is wanted."""
        wanted = sum(record.meta["rows"] for record in ws.phase_records("doubtful"))
        return row_units(ws) if wanted else []

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the unit's wanted thumbnails."""
        wanted = ws.read_table(ws.phase_files("doubtful", "side")[0].path, row_groups=[int(unit.id)])
        if wanted.num_rows:
            found = read_rows(ws, unit, ("status", "thumbnail")).take(wanted["row"])
            ws.write_table("looks", pa.table({"row": wanted["row"], "thumbnail": found["thumbnail"]}), kind="side")
        return Result()


def read_links(ws: Workspace, rows: NarrowRows, listed: Blocklist) -> Links:
    """All rows linked by the pairs that `Pairs` found."""
    return link(rows, _read_pairs(ws, 0), _read_pairs(ws, 1), listed)


def _read_pairs(ws: Workspace, file: int) -> HashPairs:
    tables = [ws.read_table(record.files[file].path) for record in ws.phase_records("pairs")]
    left, right = (joined(table[name].to_numpy() for table in tables) for name in ("left", "right"))
    return left, right


def upright(table: pa.Table) -> Hashes:
    """The distinct hashes of narrow rows."""
    return distinct([table["phash"].to_numpy()[(table["known"].to_numpy() & HAS_PHASH) > 0]])


def turned_hashes(table: pa.Table) -> list[Hashes]:
    """The hashes of narrow rows turned and mirrored, one array a view."""
    names = [name for name in TURNED.names if name in table.column_names]
    return [table[name].to_numpy()[_turnable(table)] for name in names]


def _turnable(table: pa.Table) -> Any:
    return (table["known"].to_numpy() & (HAS_PHASH | HAS_THUMBNAIL)) == HAS_PHASH | HAS_THUMBNAIL


def distinct(arrays: Iterable[Hashes]) -> Hashes:
    """All different values, sorted."""
    return hamming.distinct(joined(arrays))


def joined(arrays: Iterable[Hashes]) -> Hashes:
    """One array of several, or of none."""
    return np.concatenate([np.empty(0, np.uint64), *arrays])
