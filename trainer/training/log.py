"""What a training tells: `log.jsonl`, a line a step; `validation.jsonl`; TensorBoard's events; a line of progress."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from trainer.training.model import replace_with

STEPS, VALIDATIONS, EVENTS = "log.jsonl", "validation.jsonl", "tensorboard"
EVERY_S = 10.0
"""Between two lines of progress."""


class Log:
    """The files of the first rank, from a step on: lines of later steps, left by a run that was killed, are dropped."""

    def __init__(self, out: Path, step: int, steps: int) -> None:
        from tensorboardX import SummaryWriter

        self.step, self.steps = step, steps
        for name in (STEPS, VALIDATIONS):
            _cut(out / name, step)
        self._steps = (out / STEPS).open("a", encoding="utf-8")
        self._validations = (out / VALIDATIONS).open("a", encoding="utf-8")
        self._events = SummaryWriter(str(out / EVENTS), purge_step=step + 1)
        self._last = self._told = self._since = time.monotonic()
        self._done = 0

    def add(self, row: dict[str, Any], samples: int, now: float) -> None:
        """A step of so many samples that ended `now`; `row` has its `step`, `epoch`, `loss`, `lr` and other figures."""
        rate = samples / max(1e-9, now - self._last)
        self._last, self._done = now, self._done + samples
        row = row | {"samples_per_second": round(rate, 3)}
        _append(self._steps, row)
        self._draw("train", row)
        self.step = row["step"]
        if now - self._told >= EVERY_S or self.step == self.steps:
            self._tell(row, samples, now)

    def _tell(self, row: dict[str, Any], samples: int, now: float) -> None:
        rate = self._done / max(1e-9, now - self._since)
        left = (self.steps - self.step) * samples / max(1e-9, rate)
        self._told, self._since, self._done = now, now, 0
        print(
            f"step {self.step} of {self.steps}, epoch {row['epoch']:.2f}: loss {row['loss']:.4f},"
            f" {rate:,.0f} samples/s, {_duration(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def validated(self, row: dict[str, Any]) -> None:
        """Figures on the validation data after a step; their time does not count as a step's."""
        _append(self._validations, row)
        self._draw("validation", row)
        figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float))
        print(f"validation after step {row['step']}: {figures}", file=sys.stderr, flush=True)
        paused = time.monotonic() - self._last
        self._last, self._told, self._since = self._last + paused, self._told + paused, self._since + paused

    def _draw(self, kind: str, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(f"{kind}/{name}", value, row["step"])

    def close(self) -> None:
        """Write all that is left."""
        for file in (self._steps, self._validations, self._events):
            file.close()


def _append(file: Any, row: dict[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()


def _cut(path: Path, step: int) -> None:
    """Leave the whole lines up to a step."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (_step(line) or step + 1) <= step]
    if len(kept) < len(lines):
        text = "".join(f"{line}\n" for line in kept)
        replace_with(path, lambda file: file.write(text.encode()))


def _step(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _duration(seconds: float) -> str:
    minutes, _ = divmod(int(seconds) + 59, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
