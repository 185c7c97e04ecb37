"""A sample's passport: everything known about it that does not depend on when or how often something ran."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np

LEFT_OUT = frozenset(
    [
        *("status", "reason", "fetched_at", "attempts", "http_status", "image", "row", "position"),
        *("thumbnail", "features", "path", "native"),
    ]
)
"""Columns of circumstance: outcomes, times, tries, places on disk and working material."""
HEX_COLUMNS = frozenset({"phash"})
"""64-bit numbers, which most JSON readers would round: written as 16 hex digits."""


def passport(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's columns as JSON values, nulls and circumstances left out.

    `row` is what `pyarrow.Table.to_pylist` gives.
    """
    found = {}
    for name, value in row.items():
        if name in LEFT_OUT:
            continue
        plain = f"{value:016x}" if name in HEX_COLUMNS and value is not None else _plain(value)
        if plain is not None:
            found[name] = plain
    return found


def caption_of(row: Mapping[str, Any]) -> str:
    """The caption as it stands; empty when there is none."""
    return row["caption"] or ""


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return short(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def short(value: float) -> float | None:
    """The shortest decimal that is the same float32 when the value is one; None when it is not finite."""
    if not math.isfinite(value):
        return None
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value
