"""Run a stage in this process, without Ray, through the real workspace, commits and manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation import commit, manifest
from curation.finish import finish
from curation.manifest import Manifest
from curation.worker import do_lane, do_unit
from curation.workspace import StageRun, UnitWorkspace
from stages.base import Ledger, OutputFile, Phase, Stage, Unit
from stages.storage import Store


def give_input(root: Path, stage: str, tables: Sequence[pa.Table], extra: Sequence[OutputFile] = ()) -> Manifest:
    """Write `tables` as the parts of a finished stage, with its manifest; `extra` are files already in place."""
    store = Store(str(root))
    ledger = Ledger()
    outputs = list(extra)
    for number, table in enumerate(tables):
        path = f"{stage}/part-{number:05d}.parquet"
        (root / stage).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / path)
        ledger.add_table(table)
        size = (root / path).stat().st_size
        outputs.append(OutputFile(path=path, rows=table.num_rows, bytes=size, sha256=store.sha256(path)))
    written = Manifest(
        stage=stage,
        fingerprint=manifest.output_digest(outputs),
        config={},
        stage_version=1,
        inputs=(),
        outputs=tuple(outputs),
        output_digest=manifest.output_digest(outputs),
        counts=ledger.to_json(),
        started_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        rows_per_second=1.0,
        device="test",
        versions={},
    )
    manifest.save(store, written)
    return written


def run_stage(
    stage: Stage,
    root: Path | Store,
    input_stage: str | None = None,
    *,
    seed: int = 2023,
    subset: str = "test",
    sources: Sequence[str] = (),
    fingerprint: str | None = None,
    generation: int = 0,
) -> Manifest:
    """Run every phase of `stage` on the finished `input_stage` under `root`; errors of units are raised."""
    store = root if isinstance(root, Store) else Store(str(root))
    before = manifest.load(store, input_stage) if input_stage else None
    identity = fingerprint or manifest.digest([stage.name, repr(stage.config), before and before.output_digest])
    run = StageRun(
        store=store,
        stage=stage.name,
        fingerprint=identity,
        generation=generation,
        input_stage=input_stage,
        seed=seed,
        subset=subset,
        sources=tuple(sources),
    )
    phases = stage.phases()
    for phase in phases:
        run_phase(run, phase)
    inputs: list[Mapping[str, Any]] = (
        [{"stage": input_stage, "output_digest": before.output_digest}] if before and input_stage else []
    )
    return finish(run, stage, phases, {}, inputs, seconds=1.0, rows_done=0, device="test")


def run_phase(run: StageRun, phase: Phase) -> None:
    """Cut, do and close one phase, in this process."""
    lanes: dict[str, list[Unit]] = {}
    for unit in phase.cut(UnitWorkspace(run, phase.name, Unit(id="cut"))):
        lanes.setdefault(unit.lane or f"unit {unit.id}", []).append(unit)
    for units in lanes.values():
        outcomes = _do_model_lane(run, phase, units) if phase.uses_model else list(do_lane(run, phase, units))
        for outcome in outcomes:
            if outcome.error:
                raise RuntimeError(outcome.error + "\n" + outcome.detail)
    done = commit.records(run.store, run.stage, run.run, phase.name)
    commit.close_phase(run.store, run.stage, run.run, phase.name, done)


def _do_model_lane(run: StageRun, phase: Phase, units: list[Unit]) -> list[Any]:
    state = phase.setup(UnitWorkspace(run, phase.name, units[0]))
    outcomes = []
    for unit in units:
        ready = commit.find(run.store, run.stage, run.run, phase.name, unit.id)
        if ready is None:
            prepared = phase.prepare(unit, UnitWorkspace(run, phase.name, unit))
            outcomes.append(do_unit(run, phase, unit, state, prepared=prepared))
    phase.close(state)
    return outcomes


def read_output(root: Path, written: Manifest) -> pa.Table:
    """All rows of a stage's parts."""
    tables = [pq.read_table(root / file.path) for file in written.outputs if file.kind == "part"]
    return pa.concat_tables(tables)


def peak_memory() -> int:
    """The most bytes that this program has had resident; getrusage would also count the one that started it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
