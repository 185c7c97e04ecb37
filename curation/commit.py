"""Units become facts here: one small record each, published whole or not at all, first one wins.

Records lie in `STAGE/.units/{run}/{phase}/{unit}.json`, where `run` is the stage's fingerprint (and its
generation, after `--force` or `--retry-failed`). When a phase is done its records are also written as one file,
`{phase}.json`, so that nobody lists thousands of objects again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from stages.base import OutputFile, Record
from stages.storage import Store


def folder(stage: str, run: str, phase: str) -> str:
    """Where the records of one phase lie."""
    return f"{stage}/.units/{run}/{phase}"


def publish(store: Store, stage: str, run: str, record: Record) -> Record:
    """Commit a unit; returns the record that counts, which is another one's when another was first."""
    target = f"{folder(stage, run, record.phase)}/{record.unit}.json"
    if store.create(target, json.dumps(asdict(record), sort_keys=True).encode()):
        return record
    return decode(json.loads(store.read(target)))


def find(store: Store, stage: str, run: str, phase: str, unit: str) -> Record | None:
    """The record of a unit, if it is committed."""
    try:
        return decode(json.loads(store.read(f"{folder(stage, run, phase)}/{unit}.json")))
    except FileNotFoundError:
        return None


def close_phase(store: Store, stage: str, run: str, phase: str, records: Iterable[Record]) -> None:
    """All units of a phase are committed: keep their records as one file."""
    data = [asdict(record) for record in sorted(records, key=lambda record: record.unit)]
    store.write(f"{folder(stage, run, phase)}.json", json.dumps(data, sort_keys=True).encode())


def is_closed(store: Store, stage: str, run: str, phase: str) -> bool:
    """Whether every unit of the phase is committed."""
    return store.exists(f"{folder(stage, run, phase)}.json")


def records(store: Store, stage: str, run: str, phase: str) -> list[Record]:
    """The committed records of a phase, in unit order."""
    base = folder(stage, run, phase)
    try:
        return [decode(entry) for entry in json.loads(store.read(f"{base}.json"))]
    except FileNotFoundError:
        names = [name for name in store.list(base) if name.endswith(".json")]
        return [decode(json.loads(store.read(name))) for name in names]


def runs(store: Store, stage: str) -> list[str]:
    """Every run of the stage that left records, sorted."""
    base = f"{stage}/.units/"
    return sorted({name[len(base) :].split("/", 1)[0] for name in store.list(base)})


def phases(store: Store, stage: str, run: str) -> list[str]:
    """The phases of a run that have records."""
    base = f"{stage}/.units/{run}/"
    return sorted({name[len(base) :].split("/", 1)[0].removesuffix(".json") for name in store.list(base)})


def decode(data: Mapping[str, Any]) -> Record:
    """A record from its JSON form."""
    fields = dict(data)
    for name in ("files", "refers"):
        fields[name] = tuple(OutputFile(**file) for file in fields.get(name, ()))
    return Record(**fields)
