"""Ray schedules units: a lane goes out, one outcome a unit comes back; bytes stay put.

Lanes that need processors alone are tasks. Where a model is involved, Ray Data lets decoding tasks feed a pool of
actors that hold it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from typing import Any, cast

import psutil
import pyarrow as pa
import ray

from curation import commit, redact
from curation.progress import Board, BoardClient, Display
from curation.worker import DEATHS, Outcome, attempted, do_lane, do_unit, failure
from curation.workspace import StageRun, UnitWorkspace
from stages.base import Phase, Record, Unit
from stages.errors import UnitError

log = logging.getLogger(__name__)

DECODING_TOO = 2.0
"""CPUs that a model and the decoding for it take at least, where there is no GPU."""
QUICK_START = {
    "agent_manager_retry_interval_ms": "100",
    "raylet_client_connect_timeout_milliseconds": "20",
    "raylet_client_num_connect_attempts": "500",
}
"""Ray's start waits for its agent and its object store in steps; with steps of a second it lost one in half of them."""
AHEAD = 3
"""Tasks that run or wait for each CPU: so that none idles, and an autoscaler sees that more are wanted."""


class UnitsFailed(UnitError):
    """Some units of a phase have no result; the others are committed."""

    def __init__(self, failed: Sequence[Outcome], total: int) -> None:
        first = failed[0]
        more = f" (and {len(failed) - 1} more of {total} units failed)" if len(failed) > 1 else ""
        super().__init__(f"unit {first.unit}: {first.error}{more}", first.detail)


@dataclass(frozen=True, kw_only=True)
class PhaseDone:
    """What running a phase took."""

    rows: int
    """Rows worked on in this run: not those that were already committed."""
    units: int
    adopted: int


def start_ray(*, debug: bool = False) -> bool:
    """Join the cluster that `RAY_ADDRESS` or this machine offers, else start one here; False if this process has."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for name, value in QUICK_START.items():
        os.environ.setdefault(f"RAY_{name}", value)
    if not debug:
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ core writes over the progress
    # Of a cluster that only this run uses, nobody opens the dashboard; without it the start is two seconds shorter.
    ray.init(log_to_driver=debug, logging_level=logging.WARNING, include_dashboard=debug)
    if not debug:
        _end_autoscaler()
    return True


def _end_autoscaler() -> None:
    """End the autoscaler's monitor if `ray.init` started a cluster of this machine alone, which has nothing to scale.

    `ray.shutdown` would wait a second for it: asked to end once the rest of the cluster is gone, it does not.
    """
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(part.endswith("autoscaler/_private/monitor.py") for part in child.cmdline()):
                child.kill()


@cache
def _set_up_data() -> None:
    """Ray Data without its own display. It takes a second to import, so that only those who need it do."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 2
    context.isolate_read_workers = True
    context.execution_no_progress_timeout_s = 24 * 3600
    """A slow web is progress of its own kind; units have their own time caps."""
    level = logging.INFO if log.isEnabledFor(logging.DEBUG) else logging.ERROR
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(level)


def run_phase(run: StageRun, phase: Phase, display: Display) -> PhaseDone:
    """Do every unit of a phase that is not committed yet, then close the phase.

    Raises:
        UnitsFailed: after all other units were done.
    """
    if commit.is_closed(run.store, run.stage, run.run, phase.name):
        return PhaseDone(rows=0, units=0, adopted=0)
    units = phase.cut(UnitWorkspace(run, phase.name, Unit(id="cut")))
    records = {record.unit: record for record in commit.records(run.store, run.stage, run.run, phase.name)}
    adopted = _adopt_units(run, phase, [unit for unit in units if unit.id not in records])
    records |= {record.unit: record for record in adopted}
    todo = [unit for unit in units if unit.id not in records]
    failed: list[Outcome] = []
    rows_of = {unit.id: unit.rows for unit in todo}
    with display.phase(run.stage, phase.name, rows=sum(unit.rows for unit in units), units=len(units)) as shown:
        shown.start(done_rows=sum(unit.rows for unit in units if unit.id in records), done_units=len(records))
        for outcome in _on_ray(run, phase, _lanes(todo), shown.board):
            if outcome.record is None:
                failed.append(outcome)
                log.error("%s unit %s: %s", run.stage, outcome.unit, outcome.error)
            else:
                records[outcome.unit] = outcome.record
            shown.unit_done(outcome.record, rows_of[outcome.unit])
    if failed:
        raise UnitsFailed(failed, len(units))
    commit.close_phase(run.store, run.stage, run.run, phase.name, [records[unit.id] for unit in units])
    return PhaseDone(rows=sum(unit.rows for unit in todo), units=len(todo), adopted=len(adopted))


def _adopt_units(run: StageRun, phase: Phase, units: Sequence[Unit]) -> list[Record]:
    """Commit the units for which an equal one (same digest) is already there, its files too."""
    if not any(unit.digest for unit in units):
        return []
    equal = {record.digest: record for record in run.earlier(phase.name) if record.digest}
    present = set(run.store.list(run.stage)) if equal else set()
    return [
        UnitWorkspace(run, phase.name, unit).adopt(equal[unit.digest])
        for unit in units
        if unit.digest in equal and all(file.path in present for file in equal[unit.digest].files)
    ]


def _lanes(units: Sequence[Unit]) -> list[list[Unit]]:
    lanes: dict[str, list[Unit]] = {}
    for unit in units:
        lanes.setdefault(unit.lane or f"unit {unit.id}", []).append(unit)
    return list(lanes.values())


def _on_ray(run: StageRun, phase: Phase, lanes: list[list[Unit]], board: Board) -> Iterator[Outcome]:
    if not lanes:
        return
    settings = {"run": run, "phase": phase, "board": board, "secrets": redact.known()}
    if not phase.uses_model:
        yield from _in_tasks(lanes, phase, settings)
        return
    _set_up_data()
    rows = [{"units": json.dumps([asdict(unit) for unit in lane])} for lane in lanes]
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.set_name(f"{run.stage} {phase.name}")
    for row in _model_plan(dataset, phase, settings).iter_rows():
        yield _outcome_from_json(json.loads(row["outcome"]))


def _in_tasks(lanes: Sequence[Sequence[Unit]], phase: Phase, settings: Mapping[str, Any]) -> Iterator[Outcome]:
    """Each lane is a task that streams its outcomes; one whose worker dies begins again, past what is committed."""
    task: Any = ray.remote(_lane_outcomes).options(
        num_cpus=phase.cpus, num_returns="streaming", max_retries=-1, name=phase.name
    )
    shared = ray.put(settings)
    waiting = iter(lanes)
    running: list[Any] = []
    while True:
        places = max(int(AHEAD * ray.cluster_resources().get("CPU", 1) / phase.cpus), 1)
        running += [task.remote(list(lane), shared) for lane in islice(waiting, max(places - len(running), 0))]
        if not running:
            return
        ready: Any = ray.wait(running, num_returns=1)[0][0]
        try:
            outcome = next(ready)
        except StopIteration:
            running.remove(ready)
        else:
            yield _outcome_from_json(json.loads(ray.get(outcome)))


def _model_plan(dataset: ray.data.Dataset, phase: Phase, settings: dict[str, Any]) -> ray.data.Dataset:
    """Decoding in CPU tasks feeds a pool of actors that hold the model."""
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1), int(resources.get("GPU", 0))
    on_gpu = gpus > 0 and phase.gpus > 0
    if phase.gpus > 0 and not on_gpu:
        log.debug("no GPU in the cluster: %s runs on CPUs", phase.name)
    # Shares that differ keep Ray from fusing the two operators into one process.
    threads = max(1.0, min(max(phase.cpus, DECODING_TOO), cpus, _largest_node()))
    actors = int(gpus / phase.gpus) if on_gpu else max(1, int(cpus // threads))
    dataset = dataset.map_batches(
        cast(Any, _prepare_task),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1 if on_gpu else threads / 8,
        fn_kwargs=settings,
    )
    return dataset.map_batches(
        ModelActor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=phase.gpus if on_gpu else 0,
        num_cpus=0 if on_gpu else threads * 0.75,
        fn_constructor_kwargs=dict(settings),
    )


def _largest_node() -> float:
    return max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])


def _lane_outcomes(units: Sequence[Unit], settings: Mapping[str, Any]) -> Iterator[str]:
    redact.learn_values(settings["secrets"])
    with BoardClient(settings["board"]) as client:
        for outcome in do_lane(settings["run"], settings["phase"], units, client.add):
            yield _outcome_json(outcome)


def _prepare_task(batch: Any, run: StageRun, phase: Phase, board: Board, secrets: frozenset[str]) -> Any:
    """Adds `payload`: what `prepare` returned as an Arrow stream, or null with the `outcome` that stands instead."""
    redact.learn_values(secrets)
    payloads: list[bytes | None] = []
    outcomes: list[str | None] = []
    for text in batch.column("units").to_pylist():
        [unit] = _units(text)
        try:
            with attempted(run, phase, unit) as deaths:
                prepared = phase.prepare(unit, UnitWorkspace(run, phase.name, unit, careful=deaths >= DEATHS))
            payloads.append(_to_stream(prepared))
            outcomes.append(None)
        except Exception as error:
            payloads.append(None)
            outcomes.append(_outcome_json(failure(unit, error)))
    return pa.table(
        {
            "units": batch.column("units"),
            "payload": pa.array(payloads, pa.large_binary()),
            "outcome": pa.array(outcomes, pa.string()),
        }
    )


class ModelActor:
    """Holds what a phase's `setup` loaded, and does one prepared unit a call."""

    def __init__(self, run: StageRun, phase: Phase, board: Board, secrets: frozenset[str]) -> None:
        redact.learn_values(secrets)
        self.run, self.phase, self.board = run, phase, board
        self.state: Any = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Commit the batch's unit; returns its outcome."""
        [row] = batch.select(["units", "outcome"]).to_pylist()
        if row["outcome"] is not None:
            return pa.table({"outcome": [row["outcome"]]})
        [unit] = _units(row["units"])
        try:
            if self.state is None:
                self.state = self.phase.setup(UnitWorkspace(self.run, self.phase.name, unit))
        except Exception as error:
            return _outcome_row(failure(unit, error))
        prepared = pa.ipc.open_stream(batch.column("payload")[0].as_buffer()).read_all()
        with BoardClient(self.board) as client:
            return _outcome_row(do_unit(self.run, self.phase, unit, self.state, client.add, prepared))


def _to_stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _units(text: str) -> list[Unit]:
    return [Unit(**entry) for entry in json.loads(text)]


def _outcome_row(outcome: Outcome) -> pa.Table:
    return pa.table({"outcome": [_outcome_json(outcome)]})


def _outcome_json(outcome: Outcome) -> str:
    return json.dumps(asdict(outcome))


def _outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    outcome = Outcome(**data)
    return replace(outcome, record=commit.decode(data["record"])) if data["record"] else outcome


def device() -> str:
    """The machine's processors, and the GPUs Ray has, in words."""
    resources = ray.cluster_resources()
    gpus = sorted(name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:"))
    nodes = sum(node["Alive"] for node in ray.nodes())
    parts = [f"{int(resources.get('CPU', 0))} CPUs"]
    if resources.get("GPU"):
        parts.append(f"{int(resources['GPU'])} GPUs ({', '.join(gpus) or 'unknown type'})")
    return ", ".join(parts) + (f" on {nodes} nodes" if nodes > 1 else "")
