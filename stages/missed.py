"""A first stage for probing: of the rows that no keyword hits, so many of each source, drawn by a seed.

What it reads and what it leaves out for other reasons is what `keywords` would. A row's draw depends on the seed and
on where the row stands, so the same sources give the same sample, however they are cut.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages import blocklist, schema
from stages.base import Ledger, Phase, Record, Result, Stage, Unit, Workspace, semantic
from stages.judge import REASONS, Judge
from stages.keywords import row_groups
from stages.patterns import Pack, load_pack, pack_path
from stages.readers import Piece, piece_file, pieces, read
from stages.sources import Source, check_stage

SPARE = 8
"""Candidates drawn for each row wanted: some rows are hits, sizes of text files in rows are estimates."""
TABLE = schema.extend(schema.COMMON, schema.KEYWORDS)
CANDIDATES = TABLE.append(pa.field("draw", pa.uint64()))
_NO_KEYWORD = REASONS.index("no_keyword") + 1


@dataclass(frozen=True, kw_only=True)
class MissedConfig:
    """Options of the stage."""

    pack: str = semantic("rs5m", help="the keyword pack whose misses are drawn from")
    blocklist: list[str] = semantic([], help="files of URLs and domains that never enter")
    rows: int = semantic(2000, help="rows of each source")
    seed: int = semantic(0, help="of the draw")

    def __post_init__(self) -> None:
        """Raise ValueError for what no type can tell."""
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; accepted: a whole number from 1 on")


class Draw(Phase):
    """Candidates of one bounded piece of a source."""

    name: ClassVar[str] = "draw"

    def __init__(self, config: MissedConfig, sources: Sequence[Source]) -> None:
        self.config = config
        self.pack: Pack = load_pack(config.pack)
        self.sources = {source.name: source for source in sources}

    def cut(self, ws: Workspace) -> list[Unit]:
        """The units of `keywords`, each with the share of rows that become candidates."""
        found = {source.name: list(pieces(source)) for source in self.sources.values()}
        totals = {name: sum(piece.rows for piece in here) for name, here in found.items()}
        return [
            Unit(
                id=f"{name}-{number:06d}",
                spec={"source": name, "piece": piece.spec(), "share": min(1.0, SPARE * self.config.rows / total)},
                rows=piece.rows,
            )
            for name, here in found.items()
            for number, piece in enumerate(here)
            if (total := max(totals[name], 1))
        ]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Read a piece; count its misses, keep candidates with their draws."""
        source, piece = self.sources[unit.spec["source"]], Piece(**unit.spec["piece"])
        file = piece_file(source, piece)
        judge = Judge(source, file.url, self.pack, blocklist.load(tuple(self.config.blocklist)))
        rejected = 0
        tables = []
        for batch in read(source, piece):
            batch = replace(batch, is_filled=lambda name: False)  # a miss is asked for its URL, too
            view = judge.view(batch)
            missed = view.verdict() == _NO_KEYWORD
            rejected += int(missed.sum())
            groups = np.full(batch.rows, -1) if batch.row_groups is None else batch.row_groups
            draws = _draws(f"{self.config.seed}\0{source.name}\0{judge.file}", groups, batch.row_numbers)
            chosen = np.flatnonzero(missed & (draws < unit.spec["share"] * 2.0**64))
            tables.append(view.table(chosen).append_column("draw", pa.array(draws[chosen])))
            ws.progress(rows=batch.rows)
        ws.write_table("candidates", pa.concat_tables([CANDIDATES.empty_table(), *tables]), kind="side")
        return Result(meta={"source": source.name, "rejected": rejected})


def _draws(seed: str, groups: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.uint64]:
    """A uniform number for each place, by the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), twice."""
    start = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "big")
    return _mixed(_mixed(groups.astype(np.int64).astype(np.uint64) ^ np.uint64(start)) ^ rows.astype(np.uint64))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


class Choose(Phase):
    """Of all candidates of a source, those with the least draws."""

    name: ClassVar[str] = "choose"

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all")]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the sample, in the order of sources and draws."""
        ledger = Ledger()
        ws.write_table("part", row_groups(self._samples(ws, ledger)))
        return Result(ledger=ledger)

    def _samples(self, ws: Workspace, ledger: Ledger) -> Iterator[pa.Table]:
        for source in ws.sources:
            best = CANDIDATES.empty_table()
            for record in ws.phase_records(Draw.name):
                if record.meta["source"] == source:
                    best = pa.concat_tables([best, *(ws.read_table(file.path) for file in record.files)])
                    best = best.take(
                        pc.select_k_unstable(best, self.rows, [("draw", "ascending"), ("key", "ascending")])
                    )
            ledger.add(source, None, best.num_rows)
            yield best.drop_columns("draw")


class MissedStage(Stage):
    """Rows that no keyword hits, a sample of each source."""

    name: ClassVar[str] = "missed"
    version: ClassVar[int] = 1
    config_class: ClassVar[type] = MissedConfig
    reasons: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[pa.Schema] = schema.KEYWORDS
    reads_sources: ClassVar[bool] = True
    config: MissedConfig

    def phases(self) -> list[Phase]:
        """Draw in every piece, choose among all."""
        return [Draw(self.config, self.sources), Choose(self.config.rows)]

    def named_files(self) -> list[str]:
        """The pack and the blocklists."""
        return [pack_path(self.config.pack), *self.config.blocklist]

    def check(self) -> None:
        """Raise `UserError` for a pack or a blocklist that cannot be read, or a source that is no metadata."""
        check_stage(self.sources, "keywords")
        load_pack(self.config.pack)
        blocklist.load(tuple(self.config.blocklist))

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """`rejected`: by source, the rows that no keyword hits, of which the sample is drawn."""
        rejected: Counter[str] = Counter()
        for record in records[Draw.name]:
            rejected[record.meta["source"]] += record.meta["rejected"]
        return {"rejected": dict(sorted(rejected.items()))}
