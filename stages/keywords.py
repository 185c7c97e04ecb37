"""The first stage: of all rows of all sources, those whose captions speak of remote sensing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from stages import blocklist, schema
from stages.base import Ledger, Phase, Record, Result, Stage, Unit, Workspace, semantic
from stages.errors import UnitError
from stages.judge import REASONS, Judge
from stages.patterns import Pack, load_pack, pack_path
from stages.readers import BrokenFile, Piece, piece_file, pieces, read
from stages.sources import Source, check_stage
from stages.storage import Store

ROW_GROUP_ROWS = 1 << 16
ROW_GROUP_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class KeywordsConfig:
    """Options of the keywords stage."""

    pack: str = semantic("rs5m", help="a shipped keyword pack (rs5m, rs5m_exact, rs) or a YAML file's path")
    blocklist: list[str] = semantic([], help="files of URLs and domains that never enter")


class FilterRows(Phase):
    """One part a bounded piece of a source: its kept rows. Dropped rows are counted by reason."""

    name = "filter"

    def __init__(self, pack: Pack, blocklists: Sequence[str], sources: Sequence[Source]) -> None:
        self.pack = pack
        self.blocklists = tuple(blocklists)
        self.sources = {source.name: source for source in sources}

    def cut(self, ws: Workspace) -> list[Unit]:
        """Units from file sizes and parquet footers; their digest lets a rerun or a wider recipe adopt them."""
        lists = [Store(path).sha256(path) for path in self.blocklists]
        return [
            self._unit(source, number, piece, lists)
            for source in self.sources.values()
            for number, piece in enumerate(pieces(source))
        ]

    def _unit(self, source: Source, number: int, piece: Piece, lists: list[str]) -> Unit:
        files = [piece_file(source, piece)]
        if piece.role != "data":
            files += [file for role in sorted(source.files) for file in source.files[role]]
        identity = [
            KeywordsStage.version,
            self.pack.digest(),
            lists,
            source.digest(),
            [(file.url, file.size, file.version) for file in files],
            piece.spec(),
        ]
        return Unit(
            id=f"{source.name}-{number:06d}",
            spec={"source": source.name, "piece": piece.spec()},
            rows=piece.rows,
            digest=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        )

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Read a piece, keep its hits, count the rest.

        Raises:
            UnitError: a broken file (unless the source's `on_bad_file` is drop) or a missing column, with its name.
        """
        source = self.sources[unit.spec["source"]]
        piece = Piece(**unit.spec["piece"])
        try:
            return self._filter(source, piece, ws)
        except BrokenFile as error:
            if source.on_bad_file != "drop":
                raise
            ws.write_table("part", schema.extend(schema.COMMON, schema.KEYWORDS).empty_table())
            ledger = Ledger()
            ledger.see(source.name, 0)
            meta = {"source": source.name, "yields": {}, "warnings": [f"left out: {error}"]}
            return Result(ledger=ledger, meta=meta)
        except UnitError as error:
            url = piece_file(source, piece).url
            raise error if url in str(error) else UnitError(f"{url}: {error}") from error

    def _filter(self, source: Source, piece: Piece, ws: Workspace) -> Result:
        judge = Judge(source, piece_file(source, piece).url, self.pack, blocklist.load(self.blocklists))
        ledger = Ledger()
        ledger.see(source.name, 0)

        def kept_rows() -> Iterator[pa.Table]:
            for batch in read(source, piece):
                table, dropped = judge.judge(batch)
                ledger.add(source.name, None, table.num_rows)
                for reason, rows in dropped.items():
                    ledger.add(source.name, reason, rows)
                lost = sum(dropped.values())
                ws.progress(rows=table.num_rows + lost, kept=table.num_rows, dropped=lost)
                yield table

        ws.write_table("part", row_groups(kept_rows()))
        return Result(ledger=ledger, meta={"source": source.name, "yields": judge.yields()})


class KeywordsStage(Stage):
    """Reads sources, keeps rows that a keyword pack hits."""

    name = "keywords"
    version = 1
    config_class = KeywordsConfig
    reasons: ClassVar[frozenset[str]] = frozenset(REASONS)
    adds = schema.KEYWORDS
    reads_sources = True

    config: KeywordsConfig

    def phases(self) -> list[Phase]:
        """One phase; the pack travels inside it, so workers need no file."""
        return [FilterRows(load_pack(self.config.pack), self.config.blocklist, self.sources)]

    def named_files(self) -> list[str]:
        """The pack and the blocklists."""
        return [pack_path(self.config.pack), *self.config.blocklist]

    def check(self) -> None:
        """Raise `UserError` for a pack or a blocklist that cannot be read, or a source that is no metadata."""
        check_stage(self.sources, self.name)
        load_pack(self.config.pack)
        blocklist.load(tuple(self.config.blocklist))

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """`keyword_yields`: kept rows per source and term; `terms`: the pack's; `warnings`: files left out."""
        yields: defaultdict[str, Counter[str]] = defaultdict(Counter)
        warnings: list[str] = []
        for record in records[FilterRows.name]:
            yields[record.meta["source"]].update(record.meta["yields"])
            warnings += record.meta.get("warnings", [])
        return {
            "keyword_yields": {source: dict(sorted(counts.items())) for source, counts in sorted(yields.items())},
            "terms": [term.text for term in load_pack(self.config.pack).terms],
            "warnings": warnings,
        }


def row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of many small tables as row groups of a useful size; one empty table when there are none."""
    held: list[pa.Table] = []
    rows, size, count = 0, 0, 0
    for table in tables:
        if table.num_rows == 0:
            continue
        held.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
        if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield pa.concat_tables(held)
            held, rows, size, count = [], 0, 0, count + 1
    if held or not count:
        empty = schema.extend(schema.COMMON, schema.KEYWORDS).empty_table()
        yield pa.concat_tables(held or [empty])
