"""The end of a stage: sums checked, outputs published, manifest written last, leftovers swept."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from curation import commit, manifest
from curation.manifest import Manifest
from curation.workspace import StageRun, UnitWorkspace
from stages.base import Ledger, OutputFile, Phase, Record, Stage, Unit
from stages.errors import UnitError

KEPT_FROM_ANY_PHASE = ("images", "scores", "features", "facts")
"""Kinds of file that are output whichever phase wrote them."""


def finish(
    run: StageRun,
    stage: Stage,
    phases: Sequence[Phase],
    config: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    *,
    seconds: float,
    rows_done: int,
    device: str,
) -> Manifest:
    """Write the manifest of a stage whose units are all committed.

    Raises:
        UnitError: the sums do not hold, within the stage or against the stage before.
    """
    records = {phase.name: commit.records(run.store, run.stage, run.run, phase.name) for phase in phases}
    counts = total(records)
    _check_arrivals(run, counts)
    outputs = _outputs(records, phases[-1].name)
    run.store.remove(manifest.path(run.stage))
    published = stage.publish(UnitWorkspace(run, "publish", Unit(id="publish")), records)
    outputs = published if published is not None else outputs
    now = datetime.now(UTC)
    written = Manifest(
        stage=run.stage,
        fingerprint=run.fingerprint,
        generation=run.generation,
        config=config,
        stage_version=stage.version,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        output_digest=manifest.output_digest(outputs),
        counts=counts,
        started_at=datetime.fromtimestamp(now.timestamp() - seconds, UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 2),
        rows_per_second=round(rows_done / seconds, 1) if seconds > 0 else 0.0,
        device=device,
        versions=versions(),
        summary=stage.summary(records),
    )
    manifest.save(run.store, written)
    sweep(run, stage, phases[-1].name, outputs, published=published is not None)
    return written


def total(records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """The counts of all units of all phases (only those that settle rows have any)."""
    ledger = Ledger()
    for phase in records.values():
        for record in phase:
            ledger.merge(record.counts)
    return ledger.to_json()


def _check_arrivals(run: StageRun, counts: Mapping[str, Any]) -> None:
    imbalance = Ledger.from_json(counts).imbalance()
    if imbalance:
        raise UnitError(f"{run.stage}: rows were lost or invented: {imbalance}")
    if run.input_stage is None:
        return
    before = manifest.load(run.store, run.input_stage)
    expected = {source: entry["kept"] for source, entry in before.counts.items() if entry["kept"]} if before else {}
    arrived = {source: entry["in"] for source, entry in counts.items() if entry["in"]}
    if arrived != expected:
        raise UnitError(f"{run.stage} read {arrived} rows, but {run.input_stage} kept {expected}")


def _outputs(records: Mapping[str, Sequence[Record]], last: str) -> list[OutputFile]:
    """Files of the last phase and stored results of any phase, each once, in the order of phases and units."""
    found: dict[str, OutputFile] = {}
    for phase, committed in records.items():
        for record in committed:
            for file in (*record.refers, *record.files):
                if (phase == last and file.kind != "side") or file.kind in KEPT_FROM_ANY_PHASE:
                    found.setdefault(file.path, file)
    return list(found.values())


def sweep(run: StageRun, stage: Stage, last_phase: str, outputs: Sequence[OutputFile], *, published: bool) -> None:
    """Remove what no manifest and no record names; results of expensive stages stay, whoever made them."""
    keep = {file.path for file in outputs} | {manifest.path(run.stage)}
    runs = [run.run] if not stage.keeps_results else commit.runs(run.store, run.stage)
    for name in [] if published else runs:  # published files have left the names that records know
        finished = commit.is_closed(run.store, run.stage, name, last_phase)
        keep |= _named_by(run, name, with_side=not finished)
    for path in run.store.list(run.stage):
        if path not in keep:
            run.store.remove(path)


def _named_by(run: StageRun, name: str, *, with_side: bool) -> set[str]:
    """A run's records and the files they name; an unfinished one needs its work between phases to resume."""
    base = f"{run.stage}/.units/{name}"
    kept = {path for path in run.store.list(base) if ".attempts/" not in path}
    for phase in commit.phases(run.store, run.stage, name):
        for record in commit.records(run.store, run.stage, name, phase):
            kept |= {file.path for file in record.files if with_side or file.kind != "side"}
    return kept


def versions() -> dict[str, str]:
    """Of Python and the libraries that touch rows."""
    return {"python": platform.python_version()} | {
        name: version(package)
        for name, package in {
            "curation": "rs-curation",
            "ray": "ray",
            "pyarrow": "pyarrow",
            "pillow": "pillow",
        }.items()
    }
