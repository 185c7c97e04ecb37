"""Which side of the split a sample falls on, and how far apart the sides lie on the ground."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.geo.ground import EARTH_KM

KM_PER_DEGREE = np.pi / 180 * EARTH_KM
MEASURED = 100_000
"""Samples of `val` whose distance to `train` is measured, at most: the first by their drawn order."""
NEAR_KM = 1.0


def draw(seed: int, purpose: str, name: str) -> bytes:
    """16 bytes that depend on the seed, what they are for, and a name."""
    return hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode(), digest_size=16).digest()


def fraction(seed: int, group: str) -> float:
    """Where a group falls in [0, 1): below `val_fraction` it is validation."""
    return (int.from_bytes(draw(seed, "split", group)[:8], "big") >> 11) / (1 << 53)


def groups(table: pa.Table, block_km: float, homes: pa.Table) -> pa.ChunkedArray:
    """What must stay on one side of the split: the block of the row's location, else that of its own place, else the
    location, else its component of twins, else its key.

    Args:
        table: rows with any of `key, location, latitude, longitude, component`.
        block_km: side of the blocks.
        homes: of all rows (`homes_of`).
    """
    choices = []
    if "location" in table.column_names:
        home = pc.index_in(table.column("location"), homes.column("location").combine_chunks())
        choices.append(homes.column("block").take(home))
    if {"latitude", "longitude"} <= set(table.column_names):
        choices.append(blocks(table.column("latitude"), table.column("longitude"), block_km))
    choices += [table.column(name) for name in ("location", "component") if name in table.column_names]
    return pc.coalesce(*choices, table.column("key"))


def homes_of(tables: Iterable[pa.Table], block_km: float) -> pa.Table:
    """`location, block`: one block for each location whose place is known, though its rows may lie in several."""
    found = [pa.table({name: pa.array([], pa.string()) for name in ("location", "block")})]
    for table in tables:
        if {"location", "latitude", "longitude"} <= set(table.column_names):
            places = blocks(table.column("latitude"), table.column("longitude"), block_km)
            rows = pa.table({"location": table.column("location"), "block": places}).drop_null()
            found.append(_least(rows))
    return _least(pa.concat_tables(found))


def _least(rows: pa.Table) -> pa.Table:
    """The first block by name of each location."""
    return rows.group_by("location").aggregate([("block", "min")]).rename_columns(["location", "block"])


def blocks(latitude: pa.ChunkedArray, longitude: pa.ChunkedArray, side_km: float) -> pa.ChunkedArray:
    """The name of the block that a place lies in; null where it is unknown.

    Blocks are rows of `side_km` from south to north, each cut into a whole number of columns of about `side_km`, so
    that they cover much the same area at any latitude.
    """
    north, east = (side.cast(pa.float64()).to_numpy() for side in (latitude, longitude))
    known = np.isfinite(north) & np.isfinite(east)
    row = np.floor(np.where(known, north, 0.0) * KM_PER_DEGREE / side_km)
    middle = np.radians(np.clip((row + 0.5) * side_km / KM_PER_DEGREE, -90, 90))
    columns = np.maximum(1, np.rint(360 * KM_PER_DEGREE * np.cos(middle) / side_km))
    column = np.floor((np.where(known, east, 0.0) % 360) / 360 * columns)
    names = [
        f"block {int(r)} {int(c)}" if ok else None
        for r, c, ok in zip(row.tolist(), column.tolist(), known.tolist(), strict=True)
    ]
    return pa.chunked_array([pa.array(names, pa.string())])


def distances(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64], is_val: NDArray[np.bool_]
) -> dict[str, Any]:
    """How far validation samples lie from the nearest training sample; empty when a side has no coordinates.

    Returns:
        `measured` samples, their `min`, `p05` and `median` distance in km, and `near`, the share within `NEAR_KM`.
    """
    from scipy.spatial import KDTree

    known = np.isfinite(latitude) & np.isfinite(longitude)
    train, val = np.flatnonzero(known & ~is_val), np.flatnonzero(known & is_val)[:MEASURED]
    if not len(train) or not len(val):
        return {}
    points = _on_sphere(latitude, longitude)
    chord = KDTree(points[train]).query(points[val])[0]
    km = 2 * EARTH_KM * np.arcsin(np.minimum(chord / 2, 1.0))
    low, middle = np.percentile(km, [5, 50])
    near = float(np.mean(km <= NEAR_KM))
    figures = {"min": float(km.min()), "p05": float(low), "median": float(middle), "near": near}
    return {"measured": len(val), **{name: round(value, 3) for name, value in figures.items()}}


def _on_sphere(latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> NDArray[np.float64]:
    north, east = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)
