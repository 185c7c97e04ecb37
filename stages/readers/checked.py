"""Text columns of local parquet files, decoded and checked by polars in less time than Arrow needs to decode them.

Polars shares the decompressed pages instead of copying their texts, so rows that nobody wants cost no copy.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa


class CheckedText:
    """A column of text that is known to be valid UTF-8."""

    def __init__(self, series: Any) -> None:
        self._series = series

    def array(self) -> pa.Array:
        """All rows, as string (large_string from 2 GiB on)."""
        return _string(self._series)

    def take(self, rows: np.ndarray) -> pa.Array:
        """Some rows, by position, as string."""
        return _string(self._series[rows])


def read_checked(path: str, name: str, start: int, rows: int) -> CheckedText | None:
    """Rows `start` to `start + rows` of a column; None where polars refuses: Arrow can then say what is wrong."""
    polars = _polars()
    try:
        scan = polars.scan_parquet(path, glob=False, hive_partitioning=False)
        series = scan.select(polars.selectors.by_name(name)).slice(start, rows).collect().to_series()
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException, OSError):
        return None
    return CheckedText(series) if series.dtype == polars.String and len(series) == rows else None


def _string(series: Any) -> pa.Array:
    from polars import CompatLevel

    values = series.to_arrow(compat_level=CompatLevel.oldest())
    return values.cast(pa.string()) if values.nbytes < 1 << 31 else values


def _polars() -> Any:
    """The library as a worker wants it, when this is its first use in the process.

    One thread, since each unit has one core. Its allocator keeps freed pages for the next unit (a minute, not half a
    second): giving them back and faulting them in again took a tenth of the stage's time.
    """
    os.environ["POLARS_MAX_THREADS"] = "1"
    os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:60000,muzzy_decay_ms:60000")
    import polars
    import polars.selectors

    return polars
