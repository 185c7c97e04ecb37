"""Samples to look at: the same ones for the same run, kept and dropped, with thumbnails made anew."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import finished
from curation.finished import Finished
from curation.funnel import INVALID
from stages.base import OutputFile

MOST = 24
"""Samples of one outcome."""
SIDE = 208
"""Longest side of a thumbnail, in pixels."""
SHOWN = ("key", "source", "url", "caption", "image", "width", "height", "vlm_score", "detector_score", "cluster")

Outcome = tuple[str, str | None]
"""(stage, reason); the reason of kept samples is None."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a chosen sample lies; places sort by a draw that depends on the key alone."""

    rank: str
    part: int
    row: int


def choose(root: Finished) -> dict[Outcome, list[dict[str, Any]]]:
    """At most `MOST` samples of each outcome that left rows, with `thumbnail` (a data URI or None)."""
    found: dict[Outcome, list[dict[str, Any]]] = {}
    for stage in root.manifests:
        parts = root.parts(stage)
        chosen = _places(root, stage, parts)
        rows = read(root, parts, [place for places in chosen.values() for place in places])
        for reason in sorted(chosen, key=lambda reason: reason or ""):
            mine = [rows[place] for place in chosen[reason]]
            found[stage, reason] = [pictured(root, row, reason) for row in mine]
    return found


def _places(root: Finished, stage: str, parts: list[OutputFile]) -> dict[str | None, list[Place]]:
    """The first of each reason in an order drawn from the keys; kept ones of the last table alone."""
    best: dict[str | None, list[Place]] = {}
    for number, part in enumerate(parts):
        for start, batch in finished.batches(root.store, part, ["key", "reason"]):
            for reason in batch.column("reason").unique().to_pylist():
                if reason is not None or stage == root.table_stage:
                    best[reason] = sorted([*best.get(reason, []), *_first(batch, reason, number, start)])[:MOST]
    return best


def _first(batch: pa.RecordBatch, reason: str | None, part: int, start: int) -> list[Place]:
    column = batch.column("reason")
    rows = pc.indices_nonzero(pc.is_null(column) if reason is None else pc.equal(column, reason))
    # Keys are hashes; their second half is free of dedup's preference for small keys.
    ranks = pc.utf8_slice_codeunits(batch.column("key").take(rows), 16)
    table = pa.table({"rank": ranks, "row": rows})
    least = pc.select_k_unstable(table, min(MOST, len(rows)), sort_keys=[("rank", "ascending")])
    return [Place(entry["rank"], part, start + entry["row"]) for entry in table.take(least).to_pylist()]


def read(root: Finished, parts: list[OutputFile], places: list[Place]) -> dict[Place, dict[str, Any]]:
    """What is shown of the chosen rows; each file is read once."""
    found: dict[Place, dict[str, Any]] = {}
    for number, part in enumerate(parts):
        mine = sorted((place for place in places if place.part == number), key=lambda place: place.row)
        if mine:
            rows = finished.rows_at(root.store, part, [place.row for place in mine], SHOWN)
            found |= {place: dict.fromkeys(SHOWN) | row for place, row in zip(mine, rows, strict=True)}
    return found


def pictured(root: Finished, row: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    """A row with its `thumbnail`."""
    return row | {"thumbnail": _thumbnail(root, row, reason)}


def _thumbnail(root: Finished, row: Mapping[str, Any], reason: str | None) -> str | None:
    """A small JPEG as a data URI; None when there are no bytes, or none that a decoder should meet again."""
    if row.get("image") is None or reason in INVALID:
        return None
    from stages.images import open_rgb

    place = row["image"]
    try:
        (data,) = root.store.read_ranges(place["tar"], [(place["offset"], place["size"])])
        image = open_rgb(data)
    except (OSError, ValueError, SyntaxError):
        return None
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=78)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
