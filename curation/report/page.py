"""The report as a page and as Markdown. The page loads nothing and runs nothing; every text in it is only text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from curation.funnel import COLUMNS
from curation.report import labels
from curation.report.charts import LEGEND
from curation.report.samples import Outcome

HEADINGS = {
    "name": "source",
    "amount": "rows read",
    "after_keyword_filtering": "keyword hits",
    "download_image": "downloaded",
    "invalid_image": "invalid",
    "duplicate_image": "duplicates",
    "outlier_image": "outliers",
    "other_removed": "other",
    "remain": "remain",
}
WIDTH, HEIGHT = 360, 150
"""Size of a histogram in the page, in units of its own."""


def html(
    facts: Mapping[str, Any],
    samples: Mapping[Outcome, Sequence[Mapping[str, Any]]],
    groups: Sequence[Mapping[str, Any]],
    captioned: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("curation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=labels.clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (labels.number, labels.size, labels.duration, labels.share, labels.weblink):
        environment.filters[function.__name__] = function
    style = (resources.files("curation") / "templates" / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        facts=facts,
        total=facts["funnel"][-1],
        sources=facts["funnel"][:-1],
        columns=COLUMNS,
        headings=HEADINGS,
        fates=LEGEND,
        histograms=histograms(facts),
        joint=joint(facts),
        samples=samples,
        split=split(facts),
        groups=groups,
        captioned=captioned,
        dropped={(entry["stage"], entry["reason"]): entry["rows"] for entry in facts["drop_reasons"]},
        reasons=labels.REASONS,
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def histograms(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Charts of the page: `{title, note, bars: [{x, y, w, h, tip}], ticks: [{x, text}], threshold}`."""
    found = []
    captions, width = facts["caption_words"], facts["image_width"]
    if captions["rows"]:
        note = f"{captions['mean']} words on average, {captions['max']:,} at most"
        found.append(_tally("Caption length, words", note, captions, closed=True))
    if width["rows"]:
        note = f"{width['mean']:,} × {facts['image_height']['mean']:,} pixels on average"
        found.append(_tally("Image width, pixels", note, width, closed=False))
    if facts["groups"] and facts["groups"]["sizes"]["rows"]:
        sizes = facts["groups"]["sizes"]
        note = f"{sizes['rows']:,} images that stand for others, the largest group {sizes['max']:,} rows"
        found.append(_tally("Groups of twins, rows", note, sizes, closed=True))
    return found + [_score(labels.SCORES[name], score) for name, score in facts["scores"].items()]


def _tally(title: str, note: str, tally: Mapping[str, Any], *, closed: bool) -> dict[str, Any]:
    names = labels.bins(tally["lower"], closed=closed)
    tips = [
        f"{name}: {count:,} ({labels.share(count, tally['rows'])})"
        for name, count in zip(names, tally["counts"], strict=True)
    ]
    step = WIDTH / len(names)
    ticks = [{"x": round((i + 0.5) * step, 1), "text": name} for i, name in enumerate(names)]
    shares = [labels.share(count, tally["rows"]) for count in tally["counts"]]
    return {
        "title": title,
        "note": note,
        "bars": _bars(tally["counts"], tips, 0.12, shares if len(names) < 8 else None),
        "ticks": ticks,
        "threshold": None,
    }


def _score(title: str, score: Mapping[str, Any]) -> dict[str, Any]:
    edges, counts, threshold = score["edges"], score["counts"], score["threshold"]
    tips = [f"{low:.4g} – {high:.4g}: {count:,}" for low, high, count in zip(edges, edges[1:], counts, strict=False)]
    span = edges[-1] - edges[0]
    ticks = [
        {"x": round(WIDTH * part, 1), "text": f"{edges[0] + span * part:.3g}", "end": part}
        for part in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    note = f"{score['rows']:,} images"
    place = None
    if threshold is not None:
        share = f" (best {score['keep']:.0%})" if isinstance(score["keep"], float) else ""
        note += f", kept from {threshold:.4g} on{share}"
        place = round(WIDTH * min(max((threshold - edges[0]) / span, 0.0), 1.0), 1)
    return {"title": title, "note": note, "bars": _bars(counts, tips, 0.06), "ticks": ticks, "threshold": place}


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


def _bars(
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


def markdown(facts: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The report for readers of plain text."""
    blocks = [f"# {labels.markdown(facts['name'] or 'Run')}: from metadata to dataset"]
    if facts["unfinished"]:
        blocks.append(f"Not finished yet: {', '.join(facts['unfinished'])}.")
    blocks += [f"Warning: {labels.markdown(warning)}" for warning in facts["warnings"]]
    blocks += ["## Funnel", _table([HEADINGS[name] for name in COLUMNS], _funnel_cells(facts["funnel"]))]
    stages = [
        [s["stage"], s["in"], s["kept"], labels.duration(s["seconds"]), f"{s['rows_per_second']:,.0f}"]
        for s in facts["stages"]
    ]
    blocks += ["## Stages", _table(["stage", "rows in", "rows kept", "time", "rows/s"], stages)]
    if (apart := split(facts)) is not None:
        blocks.append(apart)
    reasons = [[r["stage"], r["reason"], r["rows"], labels.REASONS.get(r["reason"], "")] for r in facts["drop_reasons"]]
    blocks += ["## Rows dropped", _table(["stage", "reason", "rows", "the row"], reasons)]
    if facts["added"]:
        names = facts["added"]["names"]
        added = [[row["source"], row["kept"], *row["twins_of"]] for row in facts["added"]["rows"]]
        headings = ["source", "kept", *(f"twins of {labels.markdown(name)}" for name in names)]
        blocks += ["## What each source added", _table(headings, added)]
    if facts["groups"]:
        groups = facts["groups"]
        blocks += ["## Largest groups of twins", _table(["kept image", "rows"], groups["largest"])]
        if groups["tests"]:
            matched = [[kind, rows] for kind, rows in groups["tests"]["matched"].items()]
            blocks += ["## Test sets", _table(["match", "rows"], matched)]
    blocks += _captions(facts["captions"])
    terms = [[t["keyword"], t["matched"], t["remain"]] for t in facts["keywords"]]
    blocks += ["## Keywords", _table(["term", "hits", "remain"], terms)]
    for title, name in (("Domains", "domain"), ("Licences", "licence")):
        entries = [[entry[name], entry["rows"]] for entry in facts[f"{name}s"]]
        blocks += [f"## {title}", _table([name, "rows"], entries)]
    blocks += ["## Charts", *(f"![{name.removesuffix('.png')}]({name})" for name in pictures)]
    return "\n\n".join(blocks) + "\n"


def split(facts: Mapping[str, Any]) -> str | None:
    """How far validation samples lie from training ones; None where places are not known."""
    apart = facts["shards"].get("split_distance_km")
    if not apart:
        return None
    return (
        f"From a validation sample to the nearest training sample: {apart['min']:,.1f} km at least, "
        f"{apart['median']:,.1f} km in the middle, within 1 km for {apart['near']:.1%} of the {apart['measured']:,} "
        "samples measured."
    )


def _captions(found: Mapping[str, Any] | None) -> list[str]:
    """Tokens of captions; for generated ones, their quality and what the gate dropped."""
    if not found or not found["tokens"]:
        return []
    tokens = [[row[name] for name in ("source", "rows", "max", "cut", "tokens_cut")] for row in found["tokens"]]
    headings = ["source", "captions", "most tokens", f"beyond {found['context']}", "tokens cut"]
    blocks = ["## Captions", _table(headings, tokens)]
    if found["sources"]:
        names = list(found["sources"][0])
        blocks.append(_table(names, [[_shown(row[name]) for name in names] for row in found["sources"]]))
        reasons = found["reasons"]
        cells = [[row["source"], row["candidates"], *row["counts"]] for row in reasons["rows"]]
        blocks.append(_table(["source", "candidates", *reasons["names"]], cells))
    return blocks


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else str(value)


def _funnel_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [[row["name"], *(row[name] for name in COLUMNS[1:])] for row in rows]


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table: text to the left, numbers to the right."""
    if not rows:
        return "None."
    is_number = [all(isinstance(row[i], int | None) for row in rows) for i in range(len(headings))]
    lines = [list(headings), ["---:" if right else "---" for right in is_number]]
    lines += [
        [labels.number(c) if c is None or isinstance(c, int) else labels.markdown(c) for c in row] for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
