"""A small real stage for the spine's tests: it doubles numbers, and can fail, die or take its time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.base import Ledger, Phase, Result, Stage, Unit, Workspace, group_files, operational, semantic, status_column
from stages.errors import TransientError, UnitError


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Options of the toy stage."""

    drop_above: int = semantic(10**9, help="rows with a larger number are dropped as too_large")
    broken: list[str] = operational([], help="units that raise")
    deadly: list[str] = operational([], help="units that kill their worker until they run carefully")
    flaky: list[str] = operational([], help="units that fail once for a passing reason")
    pause_s: float = operational(0.0, help="seconds a unit takes")
    model: bool = operational(False, help="run on an actor pool")


class Double(Phase):
    """`number` becomes its double."""

    name = "map"
    risky = True

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.uses_model = config.model

    def cut(self, ws: Workspace) -> list[Unit]:
        return group_files(ws.input_files(), 1)

    def setup(self, ws: Workspace) -> Any:
        return np.int64(2)

    def prepare(self, unit: Unit, ws: Workspace) -> pa.Table:
        return ws.read_table(unit.spec["files"][0])

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        table = prepared if prepared is not None else self.prepare(unit, ws)
        self._misbehave(unit, ws)
        time.sleep(self.config.pause_s)
        table = table.filter(pc.equal(table["status"], "kept"))
        doubled = pa.array(table["number"].to_numpy() * state)
        large = pc.greater(doubled, self.config.drop_above)
        reasons = pc.if_else(large, pa.scalar("too_large"), pa.scalar(None, pa.string()))
        table = table.set_column(table.schema.get_field_index("number"), "number", doubled)
        table = table.set_column(table.schema.get_field_index("reason"), "reason", reasons)
        table = table.set_column(table.schema.get_field_index("status"), "status", status_column(reasons))
        ws.write_table("part", table)
        ledger = Ledger()
        ledger.add_table(table)
        return Result(ledger=ledger)

    def _misbehave(self, unit: Unit, ws: Workspace) -> None:
        if unit.id in self.config.broken:
            ws.write_table("part", pa.table({"left": ["over"]}))
            raise UnitError(f"unit {unit.id} is broken by design")
        if unit.id in self.config.deadly and not ws.careful:
            os._exit(7)
        flag = f"toy/flaky-{unit.id}"
        if unit.id in self.config.flaky and not ws.exists(flag):
            ws.write_bytes(flag, b"once")
            raise TransientError("the network blinked")


class ToyStage(Stage):
    """Doubles numbers."""

    name = "toy"
    version = 1
    config_class = ToyConfig
    reasons = frozenset({"too_large"})
    requires = frozenset({"key"})

    def phases(self) -> list[Phase]:
        return [Double(self.config)]


def numbers(start: int, count: int, source: str = "s") -> pa.Table:
    """Rows with consecutive numbers, all kept."""
    values = list(range(start, start + count))
    return pa.table(
        {
            "key": [f"{value:032x}" for value in values],
            "source": [source] * count,
            "url": [f"http://x/{value}" for value in values],
            "caption": ["c"] * count,
            "status": ["kept"] * count,
            "reason": pa.nulls(count, pa.string()),
            "number": pa.array(values, pa.int64()),
        }
    )
