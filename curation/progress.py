"""What a user sees while a stage runs: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TextIO

import ray

from stages.base import Record

log = logging.getLogger("curation")

SEND_EVERY_S = 0.5
LINE_EVERY_S = 10.0
LEAD_S = 2.0
"""Before the first line, for counts to come in."""
_NONE = (0, 0, 0)


class _Counts:
    """Rows, kept and dropped by phase, summed over all workers."""

    def __init__(self) -> None:
        self.totals: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])

    def add(self, phase: str, *counts: int) -> None:
        self.totals[phase] = [a + b for a, b in zip(self.totals[phase], counts, strict=True)]

    def read(self, phase: str) -> list[int]:
        return self.totals[phase]


class Board:
    """One phase's counts, which live in a tiny actor with a name; purely for display.

    Until the display opens it, workers hold their counts back: the actor takes a process of its own, and must not have
    the one that Ray started for the work.
    """

    def __init__(self, phase: str, name: str) -> None:
        self.phase = phase
        self._name = name
        self._actor: Any = None

    def open(self) -> None:
        """Start the actor; it lives as long as this process keeps its board."""
        self._actor = ray.remote(num_cpus=0)(_Counts).options(name=self._name, get_if_exists=True).remote()

    def of(self, phase: str) -> Board:
        """The counts of another phase, in the same actor."""
        return Board(phase, self._name)

    def add(self, rows: int, kept: int, dropped: int) -> bool:
        """Add to the counts, without waiting; False while there is no actor."""
        if self._is_found():
            self._actor.add.remote(self.phase, rows, kept, dropped)
        return self._actor is not None

    def read(self) -> tuple[int, int, int]:
        """Rows, kept, dropped so far; zeros while the actor cannot be reached."""
        try:
            rows, kept, dropped = ray.get(self._actor.read.remote(self.phase), timeout=2) if self._is_found() else _NONE
        except (ray.exceptions.RayError, TimeoutError):
            return _NONE
        return (rows, kept, dropped)

    def _is_found(self) -> bool:
        if self._actor is None:
            with contextlib.suppress(ValueError, ray.exceptions.RayError):  # nobody has that name, or cannot be asked
                self._actor = ray.get_actor(self._name)
        return self._actor is not None


class BoardClient:
    """Sends counts from a worker to the board, twice a second at most."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._pending = [0, 0, 0]
        self._sent = time.monotonic()

    def __enter__(self) -> BoardClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._send()

    def add(self, rows: int, kept: int, dropped: int) -> None:
        """Count rows."""
        for index, value in enumerate((rows, kept, dropped)):
            self._pending[index] += value
        if time.monotonic() - self._sent >= SEND_EVERY_S:
            self._send()

    def _send(self) -> None:
        if any(self._pending) and self._board.add(*self._pending):
            self._pending = [0, 0, 0]
        self._sent = time.monotonic()


class Display:
    """Shows phases as they run."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._board = Board("all", f"curation progress {uuid.uuid4()}")
        self._is_open = False
        self._phases = 0

    @contextlib.contextmanager
    def phase(self, stage: str, phase: str, *, rows: int, units: int) -> Iterator[Shown]:
        """Show one phase while the body runs."""
        name = stage if phase in (stage, "map") else f"{stage} · {phase}"
        self._phases += 1
        shown = Shown(name, rows, units, self._board.of(f"{self._phases} {name}"))
        stop = threading.Event()
        follow = self._follow_live if self._terminal else self._follow_in_lines
        thread = threading.Thread(target=follow, args=(shown, stop), daemon=True)
        thread.start()
        try:
            yield shown
        finally:
            stop.set()
            thread.join()

    def _follow_in_lines(self, shown: Shown, stop: threading.Event) -> None:
        if not stop.wait(LINE_EVERY_S - LEAD_S):
            self._open()
            stop.wait(LEAD_S)
        while not stop.is_set():
            log.info("%s", shown.line())
            stop.wait(LINE_EVERY_S)
        if shown.units:
            log.info("%s", shown.line(final=True))

    def _open(self) -> None:
        if not self._is_open:
            self._board.open()
            self._is_open = True

    def _follow_live(self, shown: Shown, stop: threading.Event) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(file=self._stream)
        with Live(Text(shown.name), console=console, refresh_per_second=4) as live:
            while not stop.wait(SEND_EVERY_S):
                self._open()
                live.update(Text(shown.line()))
            live.update(Text(shown.line(final=True)))


class Shown:
    """The state of one phase on display."""

    def __init__(self, name: str, rows: int, units: int, board: Board) -> None:
        self.name = name
        self.rows = rows
        self.units = units
        self.board = board
        self._already = 0
        self._units_done = 0
        self._settled = [0, 0, 0]
        """Rows, kept and dropped of units whose outcome is known: the board may lag behind, or be unreachable."""
        self._began = time.monotonic()

    def start(self, *, done_rows: int, done_units: int) -> None:
        """Say what was committed before this run."""
        self._already, self._units_done = done_rows, done_units

    def unit_done(self, record: Record | None, rows: int) -> None:
        """One more unit of about `rows` rows has an outcome."""
        self._units_done += 1
        if record:
            kept = sum(entry["kept"] for entry in record.counts.values())
            dropped = sum(sum(entry["dropped"].values()) for entry in record.counts.values())
            self._settled = [a + b for a, b in zip(self._settled, (rows, kept, dropped), strict=True)]

    def line(self, *, final: bool = False) -> str:
        """`keywords: 1,200,000 of 3,300,000 rows, 2,100,000 rows/s, 0:01 left, kept 4,210, dropped 1,195,790`."""
        done, kept, dropped = map(max, self.board.read(), self._settled)
        seconds = max(time.monotonic() - self._began, 1e-3)
        rate = done / seconds
        total = self._already + done
        parts = [f"{total:,} of {max(self.rows, total):,} rows", f"{rate:,.0f} rows/s"]
        left = max(self.rows - total, 0)
        if not final and rate > 0:
            parts.append(f"{clock(left / rate)} left")
        if final:
            parts.append(clock(seconds))
        if kept or dropped:
            parts += [f"kept {kept:,}", f"dropped {dropped:,}"]
        parts.append(f"unit {min(self._units_done, self.units):,}/{self.units:,}")
        return f"{self.name}: " + ", ".join(parts)


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
