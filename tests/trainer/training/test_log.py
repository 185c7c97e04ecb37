from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.training import log
from trainer.training.log import Log


def row(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": step / 4, "loss": 1.5, "lr": 0.1}


def steps(out: Path, name: str = "log.jsonl") -> list[int]:
    return [json.loads(line)["step"] for line in (out / name).read_text().splitlines()]


def test_lines_behind_the_step_that_a_run_goes_on_from_are_dropped(tmp_path: Path) -> None:
    first = Log(tmp_path, 0, 9)
    for step in range(1, 6):
        first.add(row(step), 8, now=float(step))
    first.validated({"step": 4, "loss": 2.0})
    first.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    again = Log(tmp_path, 3, 9)
    again.add(row(4), 8, now=1.0)
    again.close()
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert steps(tmp_path, "validation.jsonl") == []


def test_a_line_tells_speed_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log.time, "monotonic", lambda: 100.0)
    told = Log(tmp_path, 0, 2000)
    told.add(row(1), 500, now=102.0)
    assert capsys.readouterr().err == ""
    told.add(row(2), 500, now=110.0)
    told.close()
    assert capsys.readouterr().err == "step 2 of 2000, epoch 0.50: loss 1.5000, 100 samples/s, 2 h 47 min left\n"
    rates = [json.loads(line)["samples_per_second"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates == [250.0, 62.5]
