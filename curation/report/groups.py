"""The groups of twins that dedup found: how large they are, the largest ones to look at, and what test sets matched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import finished
from curation.finished import Finished
from curation.report import samples
from curation.report.samples import Place

SIZES = (2, 3, 4, 6, 11, 21, 51, 101)
"""Lower ends of the bins of a group's rows; the last is open."""
GROUPS = 8
"""Groups that are shown."""
MEMBERS = 12
"""Rows of a group that are shown, the kept one first."""


def collect(root: Finished) -> dict[str, Any] | None:
    """`{sizes: {lower, counts, rows}, largest: [[key, rows]], tests: {…} or None}`, or None before dedup."""
    summary = root.manifests["dedup"].summary if "dedup" in root.manifests else {}
    if "cluster_sizes" not in summary:
        return None
    sizes = {int(size): count for size, count in summary["cluster_sizes"].items()}
    ends = [*SIZES[1:], max([*sizes, 0]) + 1]
    counts = [
        sum(count for size, count in sizes.items() if low <= size < end) for low, end in zip(SIZES, ends, strict=True)
    ]
    return {
        "sizes": {"lower": list(SIZES), "counts": counts, "rows": sum(counts), "max": max(sizes, default=0)},
        "largest": summary["largest"],
        "tests": summary.get("tests"),
    }


def choose(root: Finished, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`{key, rows, members}` of the largest groups; members have `thumbnail` (a data URI or None)."""
    if not facts["groups"]:
        return []
    largest = dict(facts["groups"]["largest"][:GROUPS])
    parts = root.parts("dedup")
    places: dict[str, list[Place]] = {key: [] for key in largest}
    for number, part in enumerate(parts):
        for start, batch in finished.batches(root.store, part, ["key", "cluster"]):
            mine = pc.indices_nonzero(pc.is_in(batch.column("cluster"), pa.array(list(largest), pa.string())))
            for row, entry in zip(mine.to_pylist(), batch.take(mine).to_pylist(), strict=True):
                kept_first = "" if entry["key"] == entry["cluster"] else entry["key"]
                group = places[entry["cluster"]]
                group.append(Place(kept_first, number, start + row))
                group.sort()
                del group[MEMBERS:]
    rows = samples.read(root, parts, [place for group in places.values() for place in group])
    return [
        {"key": key, "rows": largest[key], "members": [samples.pictured(root, rows[place]) for place in group]}
        for key, group in places.items()
    ]
