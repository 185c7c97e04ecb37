"""The funnel: rows per source from metadata to shards, in the columns of RS5M's Table VII."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.errors import UnitError
from stages.fetch.outcome import FAILURES
from stages.images import REASONS as IMAGE_REASONS

COLUMNS = (
    "name",
    "amount",
    "after_keyword_filtering",
    "download_image",
    "invalid_image",
    "duplicate_image",
    "outlier_image",
    "other_removed",
    "remain",
)
TOTAL = "Total"

NO_BYTES = FAILURES
"""Reasons under which no image arrived: such rows stand before `download_image`."""
INVALID = IMAGE_REASONS
OTHER = frozenset(
    [
        "blocklisted",
        "test_set_image",
        "bad_metadata",
        "official_test",
        "snow",
        "cloud",
        "nodata",
        "filtered",
        "no_caption_left",
    ]
)
DUPLICATE = frozenset(["duplicate_url", "duplicate_bytes", "duplicate_image"])
OUTLIER = frozenset(["low_vlm_score", "low_detector_score", "low_similarity", "unscorable"])

Manifests = Mapping[str, Mapping[str, Any]]
"""Stage name to its manifest's JSON, in the order in which the stages ran."""


class ConservationError(UnitError):
    """Rows were lost or invented between or within stages."""


def column(stage: str, reason: str) -> str | None:
    """The funnel's column for rows dropped by a stage after keywords; None when no image ever arrived.

    Raises:
        ConservationError: a reason that the funnel has no column for.
    """
    if reason in NO_BYTES:
        return None
    if reason in INVALID:
        return "invalid_image"
    if reason == "duplicate_row":
        return "other_removed" if stage == "ingest" else "duplicate_image"
    for name, reasons in (("duplicate_image", DUPLICATE), ("outlier_image", OUTLIER), ("other_removed", OTHER)):
        if reason in reasons:
            return name
    raise ConservationError(f"stage {stage} dropped rows for {reason!r}, which has no column in the funnel")


def funnel(manifests: Manifests, source_order: Sequence[str]) -> list[dict[str, Any]]:
    """A row per source, in the order given (others behind, by name), and their `Total`.

    `download_image` and what follows from it are None while no stage has yet looked at images.

    Raises:
        ConservationError: rows were lost or invented, or a reason is unknown.
    """
    check(manifests)
    seen = {source for manifest in manifests.values() for source in manifest["counts"]}
    ordered = list(dict.fromkeys([*source_order, *sorted(seen)]))
    rows = [_row(source, manifests) for source in ordered]
    return [*rows, _total(rows)]


def check(manifests: Manifests) -> None:
    """Every stage's `in` is what it kept and dropped, and what the stage before it kept.

    Raises:
        ConservationError: naming the first stage and source that do not add up.
    """
    before: tuple[str, dict[str, int]] | None = None
    for stage, manifest in manifests.items():
        counts = manifest["counts"]
        for source, entry in counts.items():
            settled = entry["kept"] + sum(entry["dropped"].values())
            if settled != entry["in"]:
                raise ConservationError(
                    f"stage {stage}, source {source}: {entry['in']} rows in, but {settled} kept or dropped"
                )
        if before is not None:
            _check_arrivals(stage, counts, *before)
        before = stage, {source: entry["kept"] for source, entry in counts.items()}


def _check_arrivals(stage: str, counts: Mapping[str, Any], earlier: str, kept: Mapping[str, int]) -> None:
    for source in sorted({*counts, *kept}):
        arrived, sent = counts.get(source, {}).get("in", 0), kept.get(source, 0)
        if arrived != sent:
            raise ConservationError(
                f"stage {stage}, source {source}: {arrived} rows in, but stage {earlier} kept {sent}"
            )


def _row(source: str, manifests: Manifests) -> dict[str, Any]:
    counts = {
        stage: manifest["counts"].get(source, {"in": 0, "kept": 0, "dropped": {}})
        for stage, manifest in manifests.items()
    }
    stages = list(counts.values())
    row: dict[str, Any] = dict.fromkeys(COLUMNS, 0) | {"name": source}
    if not stages:
        return row
    row["amount"] = stages[0]["in"]
    row["after_keyword_filtering"] = counts["keywords"]["kept"] if "keywords" in counts else row["amount"]
    row["remain"] = stages[-1]["kept"]
    if set(counts) == {"keywords"}:
        return row | dict.fromkeys(COLUMNS[3:8])
    row["download_image"] = row["after_keyword_filtering"]
    for stage, entry in counts.items():
        if stage != "keywords":
            _settle(row, stage, entry["dropped"])
    return _balanced(row)


def _settle(row: dict[str, Any], stage: str, dropped: Mapping[str, int]) -> None:
    for reason, count in dropped.items():
        name = column(stage, reason)
        if name is None:
            row["download_image"] -= count
        else:
            row[name] += count


def _balanced(row: dict[str, Any]) -> dict[str, Any]:
    removed = sum(row[name] for name in COLUMNS[4:8])
    if row["download_image"] - removed != row["remain"]:
        raise ConservationError(
            f"source {row['name']}: {row['download_image']} images and {removed} removed leave "
            f"{row['download_image'] - removed}, not {row['remain']}"
        )
    return row


def _total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {"name": TOTAL}
    for name in COLUMNS[1:]:
        known = [row[name] for row in rows if row[name] is not None]
        total[name] = sum(known) if known or not rows else None
    return total
