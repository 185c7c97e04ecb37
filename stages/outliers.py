"""Outliers: every image is scored once, and the best by each score are kept (docs/outliers.md).

For each model, `plan` finds what has no stored score yet and `score` computes and stores it; `select` decides
by the stored scores (stages/selection.py), `map` writes the rows. Another threshold reruns only the last two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages import features
from stages.base import (
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
    status_column,
)
from stages.errors import UserError
from stages.memory import shrunk
from stages.schema import COMMON, FEATURES, OUTLIERS, conform, extend
from stages.scorers import DetectorConfig, DetectorScorer, Scorer, VlmConfig, VlmScorer
from stages.scoring import PlanDetector, PlanVlm, ScoreDetector, ScoreVlm, kept_rows, score_ids, wanted
from stages.selection import REASONS, UNSCORABLE, Keep, select

ROWS_PER_UNIT = 200_000
SELECTED = extend(OUTLIERS, pa.schema([("reason", pa.string())]))
"""Side table from `select` to `map`."""


@dataclass(frozen=True, kw_only=True)
class OutliersConfig:
    """Options of `stages.outliers`."""

    vlm: VlmConfig | None = semantic(None, help="vision-language model; null leaves its score out")
    detector: DetectorConfig | None = semantic(None, help="remote-sensing classifier; null leaves its score out")
    keep: Keep = semantic(Keep(), help="what is kept by each score")
    features: bool = semantic(False, help="store the vlm's image features, for dedup, retrieval and audits")


class OutliersStage(Stage):
    """Drops images that do not look like remote sensing."""

    name: ClassVar[str] = "outliers"
    version: ClassVar[int] = 1
    config_class: ClassVar[type] = OutliersConfig
    reasons: ClassVar[frozenset[str]] = frozenset({*REASONS.values(), UNSCORABLE})
    requires: ClassVar[frozenset[str]] = frozenset({"key", "source", "caption", "sha256", "image"})
    keeps_results: ClassVar[bool] = True

    @property
    def adds(self) -> pa.Schema:  # type: ignore[override]
        """Scores, and pointers to features where they are stored."""
        return extend(OUTLIERS, FEATURES) if self.config.features else OUTLIERS

    def scorers(self) -> list[Scorer]:
        """The models that the recipe names."""
        vlm, detector = self.config.vlm, self.config.detector
        return [
            *([VlmScorer(vlm, self.config.features)] if vlm else []),
            *([DetectorScorer(detector)] if detector else []),
        ]

    def phases(self) -> list[Phase]:
        """Plan and score for each model; select; map."""
        kinds = {"vlm": (PlanVlm, ScoreVlm), "detector": (PlanDetector, ScoreDetector)}
        plans = [kinds[scorer.name][0](scorer) for scorer in self.scorers()]
        scores = [kinds[scorer.name][1](scorer) for scorer in self.scorers()]
        return [*plans, *scores, Select(self.scorers(), self.config.keep), Map()]

    def named_files(self) -> list[str]:
        """Weights, configs and prompts."""
        return [path for scorer in self.scorers() for path in scorer.files()]

    def check(self) -> None:
        """The models, and that the rules have a score each."""
        if not self.scorers():
            raise UserError("stages.outliers: name a vlm, a detector or both")
        if self.config.keep.similarity is not None and self.config.vlm is None:
            raise UserError(
                f"stages.outliers.keep.similarity: {self.config.keep.similarity} needs a vlm, which the recipe "
                "does not name"
            )
        if self.config.features and self.config.vlm is None:
            raise UserError("stages.outliers.features: true needs a vlm, which the recipe does not name")
        for scorer in self.scorers():
            scorer.check()

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """Thresholds, and how many images each model scored anew."""
        scored = {
            phase: sum(record.meta["images"] for record in records[phase])
            for phase in ("score-vlm", "score-detector")
            if phase in records
        }
        decided = {key: value for record in records["select"] for key, value in record.meta.items()}
        return {**decided, "scored": scored, "warnings": list(self._shrunk(records))}

    def _shrunk(self, records: Mapping[str, Sequence[Record]]) -> Iterator[str]:
        """A sentence for each model whose batches did not fit into memory."""
        for scorer in self.scorers():
            records_of = records.get(f"score-{scorer.name}", ())
            if told := shrunk(records_of, scorer.config.batch_size, scorer.ref.where):
                yield told

    def preview(self, ws: Workspace) -> tuple[int, int] | None:
        """Rows whose scores are all stored, and the others."""
        missing = [wanted(ws, scorer).missing.num_rows for scorer in self.scorers()]
        rows = sum(kept_rows(ws.read_table(file.path, columns=["status"])).num_rows for file in ws.input_files())
        return rows - max(missing), max(missing)


class Select(Phase):
    """Joins scores to rows and decides; one row group of results for each unit of `Map`."""

    name: ClassVar[str] = "select"

    def __init__(self, scorers: Sequence[Scorer], keep: Keep) -> None:
        self.scorers = scorers
        self.keep = keep

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all", rows=sum(file.rows for file in ws.input_files()))]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Decide on every kept row of the input."""
        units = _map_units(ws)
        if not units:
            return Result()
        groups = [_narrow(ws, unit.spec["files"]) for unit in units]
        rows = pa.concat_tables(groups)
        scored = {name: column for s in self.scorers for name, column in _join(ws, s, rows).items()}
        keys, sources = rows["key"].combine_chunks(), rows["source"].combine_chunks()
        reasons, cuts = select(scored, keys, sources, self.keep)
        pointed = {name: column for s in self.scorers for name, column in _pointed(ws, s, rows).items()}
        decided = conform(pa.table({**scored, "reason": reasons}), SELECTED)
        for name, column in pointed.items():
            decided = decided.append_column(name, column)
        starts = np.cumsum([0] + [group.num_rows for group in groups])
        slices = (decided.slice(start, group.num_rows) for start, group in zip(starts, groups, strict=False))
        ws.write_table("selected", slices, kind="side")
        return Result(meta={"thresholds": cuts, "models": self._models(ws), "rows": rows.num_rows})

    def _models(self, ws: Workspace) -> dict[str, Any]:
        return {
            scorer.name: {
                "model": scorer.config.model,
                "digest": ws.phase_records(f"plan-{scorer.name}")[0].meta["digest"],
            }
            for scorer in self.scorers
        }


def _narrow(ws: Workspace, paths: Sequence[str]) -> pa.Table:
    columns = ["key", "source", "status", "sha256", "caption"]
    return pa.concat_tables([kept_rows(ws.read_table(path, columns=columns)) for path in paths])


def _join(ws: Workspace, scorer: Scorer, rows: pa.Table) -> dict[str, pa.Array]:
    """The model's score columns for the rows."""
    files = _stored_files(ws, scorer, "scores")
    empty = pa.schema([("id", pa.string()), *((name, pa.float32()) for name in scorer.columns)]).empty_table()
    stored = pa.concat_tables([empty, *(ws.read_table(file.path) for file in files)])
    ids = score_ids(rows, scorer.reads_captions)
    places = pc.index_in(ids, stored["id"].combine_chunks())
    return {name: stored[name].combine_chunks().take(places) for name in scorer.columns}


def _pointed(ws: Workspace, scorer: Scorer, rows: pa.Table) -> dict[str, pa.Array]:
    """Where the rows' image features lie, if the model stored any."""
    if not scorer.with_features:
        return {}
    files = _stored_files(ws, scorer, features.COLUMN)
    return {features.COLUMN: features.pointers(ws, files, rows["sha256"].combine_chunks())}


def _stored_files(ws: Workspace, scorer: Scorer, kind: str) -> list[OutputFile]:
    """Of earlier runs, then of this one."""
    plan = ws.phase_records(f"plan-{scorer.name}")[0]
    return [*(file for file in plan.refers if file.kind == kind), *ws.phase_files(f"score-{scorer.name}", kind)]


class Map(Phase):
    """Writes every row with its scores and its reason."""

    name: ClassVar[str] = "map"

    def cut(self, ws: Workspace) -> list[Unit]:
        """Groups of input parts."""
        return _map_units(ws)

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Join the unit's rows with its row group of results, by position."""
        selected = ws.read_table(ws.phase_files("select", "side")[0].path, row_groups=[int(unit.id)])
        table = pa.concat_tables([kept_rows(ws.read_table(path)) for path in unit.spec["files"]])
        if table.num_rows != selected.num_rows:
            raise ValueError(f"{table.num_rows} rows, but {selected.num_rows} results")
        written = conform(table, extend(ws.input_columns(), COMMON, OUTLIERS, selected.schema))
        columns = dict(zip(selected.column_names, selected.columns, strict=True))
        columns["status"] = status_column(selected["reason"])
        for name, column in columns.items():
            index = written.schema.get_field_index(name)
            written = written.set_column(index, written.schema.field(index), column)
        ws.write_table("part", written)
        ledger = Ledger()
        ledger.add_table(written)
        return Result(ledger=ledger)


def _map_units(ws: Workspace) -> list[Unit]:
    return group_files(ws.input_files(), ROWS_PER_UNIT)
