"""Shapes of the page's charts: bars, ticks, cuts and cells, in units of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curation.report import labels

WIDTH, HEIGHT = 360, 150
"""Size of a histogram in the page, in units of its own."""


def histograms(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Charts of the page: `{title, note, bars: [{x, y, w, h, tip}], ticks: [{x, text}], threshold}`."""
    found = []
    captions, width = facts["caption_words"], facts["image_width"]
    if captions["rows"]:
        note = f"{captions['mean']} words on average, {captions['max']:,} at most"
        found.append(tally("Caption length, words", note, captions, closed=True))
    if width["rows"]:
        note = f"{width['mean']:,} × {facts['image_height']['mean']:,} pixels on average"
        found.append(tally("Image width, pixels", note, width, closed=False))
    if facts["groups"] and facts["groups"]["sizes"]["rows"]:
        sizes = facts["groups"]["sizes"]
        note = f"{sizes['rows']:,} images that stand for others, the largest group {sizes['max']:,} rows"
        found.append(tally("Groups of twins, rows", note, sizes, closed=True))
    return found + [score(labels.SCORES[name], found_score) for name, found_score in facts["scores"].items()]


def tally(title: str, note: str, found: Mapping[str, Any], *, closed: bool) -> dict[str, Any]:
    """A histogram over bins given by their lower ends."""
    return named(title, note, labels.bins(found["lower"], closed=closed), found["counts"])


def named(title: str, note: str, names: Sequence[str], counts: Sequence[int]) -> dict[str, Any]:
    """A bar for each name, with its share above it where there is room."""
    shares = [labels.share(count, sum(counts)) for count in counts]
    tips = [f"{name}: {count:,} ({part})" for name, count, part in zip(names, counts, shares, strict=True)]
    step = WIDTH / len(names)
    return {
        "title": title,
        "note": note,
        "bars": bars(counts, tips, 0.12, shares if len(names) < 8 else None),
        "ticks": [{"x": round((i + 0.5) * step, 1), "text": name} for i, name in enumerate(names)],
        "threshold": None,
    }


def score(title: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A histogram between edges, with its cut if there is one."""
    edges, counts, threshold = found["edges"], found["counts"], found["threshold"]
    tips = [f"{low:.4g} – {high:.4g}: {count:,}" for low, high, count in zip(edges, edges[1:], counts, strict=False)]
    span = edges[-1] - edges[0]
    ticks = [
        {"x": round(WIDTH * part, 1), "text": f"{edges[0] + span * part:.3g}", "end": part}
        for part in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    note = f"{found['rows']:,} images"
    place = None
    if threshold is not None:
        share = f" (best {found['keep']:.0%})" if isinstance(found["keep"], float) else ""
        note += f", kept from {threshold:.4g} on{share}"
        place = round(WIDTH * min(max((threshold - edges[0]) / span, 0.0), 1.0), 1)
    return {"title": title, "note": note, "bars": bars(counts, tips, 0.06), "ticks": ticks, "threshold": place}


def joint(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The joint distribution of both scores: `{side, cells: [{x, y, shade, tip}], across, up}`; cuts as positions."""
    found = (facts["selection"] or {}).get("joint")
    if not found:
        return None
    counts, size = found["counts"], len(found["counts"])
    most = max(max(column) for column in counts)
    step = WIDTH / size
    cells = [
        {
            "x": round(i * step, 2),
            "y": round((size - 1 - j) * step, 2),
            "shade": round((counts[i][j] / most) ** 0.5, 3),
            "tip": f"{counts[i][j]:,} images",
        }
        for i in range(size)
        for j in range(size)
        if counts[i][j]
    ]
    scores = facts["scores"]
    across = _place(scores.get("vlm_score"), found["vlm_edges"])
    up = _place(scores.get("detector_logit"), found["detector_edges"])
    return {"step": round(step, 2), "cells": cells, "across": across, "up": None if up is None else WIDTH - up}


def _place(score: Mapping[str, Any] | None, edges: Sequence[float]) -> float | None:
    """Where a score's threshold lies along an axis."""
    if score is None or score["threshold"] is None or edges[-1] <= edges[0]:
        return None
    return round(WIDTH * min(max((score["threshold"] - edges[0]) / (edges[-1] - edges[0]), 0.0), 1.0), 1)


def clip_scores(captions: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A chart of the captions' CLIP scores for each source, all over the same bins."""
    found = (captions or {}).get("scores")
    if not found:
        return []
    return [
        score(
            f"CLIP scores, {source}",
            {"edges": found["edges"], "counts": counts, "rows": sum(counts), "threshold": None},
        )
        for source, counts in found["sources"].items()
    ]


def bars(
    counts: Sequence[int], tips: Sequence[str], gap: float, shares: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Bars of a histogram; `label` stands above a bar where there is room for one."""
    step, most = WIDTH / len(counts), max(*counts, 1)
    return [
        {
            "x": round((i + gap / 2) * step, 2),
            "w": round(step * (1 - gap), 2),
            "y": round(HEIGHT * (1 - count / most), 2),
            "h": round(HEIGHT * count / most, 2),
            "tip": tips[i],
            "label": shares[i] if shares else None,
        }
        for i, count in enumerate(counts)
    ]
