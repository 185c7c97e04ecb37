"""The work of units inside one process: attempts, retries, commits. Ray runs this; so do tests without Ray."""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curation import commit
from curation.redact import redact
from curation.workspace import Progress, StageRun, UnitWorkspace
from stages.base import Phase, Record, Unit
from stages.errors import TransientError, UnitError, UserError

log = logging.getLogger(__name__)

TRIES = 4
"""Attempts at a unit whose failure was transient."""
DEATHS = 2
"""Workers that may die on a unit before it runs in careful mode."""
LAST_DEATH = 8
"""Workers that may die on a unit at all: care is no help against what kills a model."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a unit: its record, or why there is none."""

    unit: str
    record: Record | None = None
    error: str | None = None
    detail: str = ""
    """The traceback, for `--debug`."""


def do_lane(
    run: StageRun, phase: Phase, units: Sequence[Unit], progress: Progress | None = None, state: Any = None
) -> Iterator[Outcome]:
    """Do the units of one lane in order, sharing one `setup`; a failing unit does not stop the next."""
    own = state is None
    try:
        for unit in units:
            ready = commit.find(run.store, run.stage, run.run, phase.name, unit.id)
            if ready is not None:
                yield Outcome(unit=unit.id, record=ready)
                continue
            if state is None:
                state = phase.setup(UnitWorkspace(run, phase.name, unit))
            yield do_unit(run, phase, unit, state, progress)
    finally:
        if own and state is not None:
            phase.close(state)


def do_unit(
    run: StageRun,
    phase: Phase,
    unit: Unit,
    state: Any,
    progress: Progress | None = None,
    prepared: pa.Table | None = None,
) -> Outcome:
    """Do and commit one unit; transient failures are tried again with growing pauses."""
    with attempted(run, phase, unit) as deaths:
        if deaths >= LAST_DEATH:
            _forget_deaths(run, phase, unit)
            return failure(unit, UnitError(f"its worker died {LAST_DEATH} times; --debug shows what Ray says of that"))
        return _tried(run, phase, unit, state, progress, prepared, careful=deaths >= DEATHS)


@contextlib.contextmanager
def attempted(run: StageRun, phase: Phase, unit: Unit) -> Iterator[int]:
    """Around risky work: a mark that only a death leaves behind. Yields how many deaths have left theirs."""
    deaths = _deaths(run, phase, unit) if phase.risky else 0
    marker = _mark_attempt(run, phase, unit) if phase.risky else None
    try:
        yield deaths
    finally:
        if marker:
            run.store.remove(marker)


def _tried(
    run: StageRun,
    phase: Phase,
    unit: Unit,
    state: Any,
    progress: Progress | None,
    prepared: pa.Table | None,
    *,
    careful: bool,
) -> Outcome:
    for attempt in range(1, TRIES + 1):
        reported = _Reported(progress)
        ws = UnitWorkspace(run, phase.name, unit, progress=reported.add, careful=careful)
        try:
            record = ws.commit(phase.work(unit, ws, state, prepared))
            reported.complete(unit, record)
        except Exception as error:
            ws.discard()
            if _is_transient(error) and attempt < TRIES:
                pause = 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)
                log.warning("%s unit %s: %s; again in %.0f s", run.stage, unit.id, redact(str(error)), pause)
                time.sleep(pause)
                continue
            return failure(unit, error)
        return Outcome(unit=unit.id, record=record)
    raise AssertionError("the last attempt returns")


class _Reported:
    """Makes the rows shown add up to those of the record, however much the work itself has reported."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._sums = [0, 0, 0]

    def add(self, rows: int, kept: int, dropped: int) -> None:
        self._sums = [a + b for a, b in zip(self._sums, (rows, kept, dropped), strict=True)]
        if self._progress:
            self._progress(rows, kept, dropped)

    def complete(self, unit: Unit, record: Record) -> None:
        entries = record.counts.values()
        kept = sum(entry["kept"] for entry in entries)
        dropped = sum(sum(entry["dropped"].values()) for entry in entries)
        rows = kept + dropped if record.counts else unit.rows
        self.add(*(max(a - b, 0) for a, b in zip((rows, kept, dropped), self._sums, strict=True)))


def failure(unit: Unit, error: Exception) -> Outcome:
    """The outcome of a unit that raised: a sentence for the user, the traceback for `--debug`."""
    known = isinstance(error, UserError | UnitError | TransientError)
    sentence = str(error) if known else _describe(error)
    return Outcome(unit=unit.id, error=redact(sentence), detail=redact("".join(traceback.format_exception(error))))


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or 'while writing'}); free space, then run the same command again"
    if isinstance(error, OSError) and error.errno == errno.EDQUOT:
        return "the disk quota is used up; free space, then run the same command again"
    return f"{type(error).__name__}: {error}"


def _is_transient(error: Exception) -> bool:
    """Network trouble, wherever it surfaced; a full disk or a missing file will not mend itself."""
    if isinstance(error, TransientError):
        return True
    return isinstance(error, ConnectionError | TimeoutError)


def _marker_prefix(run: StageRun, phase: Phase, unit: Unit) -> str:
    return f"{run.stage}/.units/{run.run}/{phase.name}.attempts/{unit.id}."


def _deaths(run: StageRun, phase: Phase, unit: Unit) -> int:
    """Attempts that started and neither committed nor failed: their worker died."""
    prefix = _marker_prefix(run, phase, unit)
    return sum(name.startswith(prefix) for name in run.store.list(prefix.rpartition("/")[0]))


def _mark_attempt(run: StageRun, phase: Phase, unit: Unit) -> str:
    marker = f"{_marker_prefix(run, phase, unit)}{uuid.uuid4().hex[:8]}"
    run.store.write(marker, b"")
    return marker


def _forget_deaths(run: StageRun, phase: Phase, unit: Unit) -> None:
    """So that the next run tries again."""
    prefix = _marker_prefix(run, phase, unit)
    for name in run.store.list(prefix.rpartition("/")[0]):
        if name.startswith(prefix):
            run.store.remove(name)
