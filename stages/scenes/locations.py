"""What shows one place: rows that name one location, and locations whose footprints overlap."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.base import KEPT

SIDES = ("west", "south", "east", "north")


def repeats(table: pa.Table) -> pa.Array:
    """Of kept rows with the same key, all but the first."""
    kept = pc.equal(table["status"], KEPT).to_numpy(zero_copy_only=False)
    keys = np.array(table["key"].to_pylist(), "S32")
    found = np.zeros(table.num_rows, bool)
    positions = np.flatnonzero(kept)
    _, first = np.unique(keys[positions], return_index=True)
    found[positions] = True
    found[positions[first]] = False
    return pa.array(found)


def shared_locations(table: pa.Table) -> pa.ChunkedArray:
    """Each row's location; of locations that overlap, the smallest name.

    Locations overlap when the boxes around their footprints share more than `touching` of the smaller one, and so do
    those that hang together through others.
    """
    encoded = pc.dictionary_encode(table["location"].combine_chunks())
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    names = np.array(encoded.dictionary.to_pylist(), object)
    if not len(names):
        return table["location"]
    boxes, touching = _boxes(table, codes, len(names))
    groups = _components(boxes, touching)
    order = np.argsort(names)
    least = np.full(groups.max() + 1, len(names))
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    np.minimum.at(least, groups, rank)
    shown = names[order[least[groups]]]
    return pa.chunked_array([pa.array([shown[code] if code >= 0 else None for code in codes], pa.string())])


def _boxes(table: pa.Table, codes: NDArray[np.int64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(west, south, east, north around each location, NaN where unknown; share that may touch)."""
    footprints = table["footprint"].combine_chunks()
    known = (codes >= 0) & footprints.is_valid().to_numpy(zero_copy_only=False)
    boxes = np.column_stack([np.full(count, end) for end in (np.inf, np.inf, -np.inf, -np.inf)])
    for number, side in enumerate(SIDES):
        values = pc.struct_field(footprints, side).to_numpy(zero_copy_only=False)
        widen = np.minimum if number < 2 else np.maximum
        widen.at(boxes[:, number], codes[known], values[known])
    boxes[~np.isfinite(boxes).all(axis=1)] = np.nan
    touching = np.zeros(count)
    shares = table["touching"].fill_null(0.0).to_numpy()
    np.maximum.at(touching, codes[codes >= 0], shares[codes >= 0])
    return boxes, touching


def _components(boxes: NDArray[np.float64], touching: NDArray[np.float64]) -> NDArray[np.int64]:
    import shapely
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shapes = shapely.box(*boxes.T)
    known = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    tree = shapely.STRtree(shapes[known])
    one, two = (known[side] for side in tree.query(shapes[known], predicate="intersects"))
    fresh = one < two
    one, two = one[fresh], two[fresh]
    shared = shapely.area(shapely.intersection(shapes[one], shapes[two]))
    areas = shapely.area(shapes)
    smaller = np.minimum(areas[one], areas[two])
    linked = shared > np.maximum(touching[one], touching[two]) * smaller
    links = coo_array((np.ones(linked.sum()), (one[linked], two[linked])), shape=(len(boxes), len(boxes)))
    groups: NDArray[np.int64] = connected_components(links, directed=False)[1].astype(np.int64)
    return groups
