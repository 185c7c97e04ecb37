"""The report as a page and as Markdown. The page loads nothing and runs nothing; every text in it is only text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from curation.funnel import COLUMNS
from curation.report import atlas, figures, labels
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


QUALITY = {
    "images": ("images", "number"),
    "generated": ("with a generated caption", "number"),
    "meta": ("with a meta caption", "number"),
    "score_quartiles": ("CLIP score, quartiles", "quartiles"),
    "image_agreement": ("the image’s zero-shot class is its label", "percent"),
    "caption_agreement": ("the caption’s class is the label", "percent"),
    "degenerate": ("candidates that are empty, echo or loop", "percent"),
    "distinct_1": ("different words", "percent"),
    "distinct_2": ("different pairs of words", "percent"),
    "mtld": ("lexical diversity (MTLD)", "number"),
    "beyond_context": ("captions beyond CLIP’s context", "number"),
    "facts_left_out": ("facts that found no room", "number"),
}
"""What is said of a source's captions: key, words, how the value is written."""


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
    ingested = any(stage["stage"] == "ingest" for stage in facts["stages"])
    style = (resources.files("curation") / "templates" / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        facts=facts,
        total=facts["funnel"][-1],
        sources=facts["funnel"][:-1],
        columns=[name for name in COLUMNS if not (ingested and name == "after_keyword_filtering")],
        headings=HEADINGS | ({"download_image": "images"} if ingested else {}),
        ingested=ingested,
        fates=LEGEND,
        histograms=figures.histograms(facts),
        joint=figures.joint(facts),
        clip_scores=figures.clip_scores(facts["captions"]),
        quality=QUALITY,
        tails=atlas.tails(facts),
        calendars=atlas.calendars(facts),
        world=atlas.world(facts),
        samples=samples,
        split=atlas.split(facts),
        groups=groups,
        captioned=captioned,
        dropped={(entry["stage"], entry["reason"]): entry["rows"] for entry in facts["drop_reasons"]},
        reasons=labels.REASONS,
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


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
    blocks += atlas.markdown(facts, _table)
    terms = [[t["keyword"], t["matched"], t["remain"]] for t in facts["keywords"]]
    blocks += ["## Keywords", _table(["term", "hits", "remain"], terms)]
    for title, name in (("Domains", "domain"), ("Licences", "licence")):
        entries = [[entry[name], entry["rows"]] for entry in facts[f"{name}s"]]
        blocks += [f"## {title}", _table([name, "rows"], entries)]
    blocks += ["## Charts", *(f"![{name.removesuffix('.png')}]({name})" for name in pictures)]
    return "\n\n".join(blocks) + "\n"


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
