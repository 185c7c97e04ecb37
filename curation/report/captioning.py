"""Captions in numbers, without humans: tokens and what CLIP never reads, ranks, agreement with labels, diversity."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import finished
from curation.finished import Finished
from curation.report import samples
from curation.report.samples import Place
from stages.base import KEPT
from stages.captioning.tokens import CONTEXT, counts

MOST_ROWS = 5_000
"""Rows of a source that captions are measured on, about: those whose keys are drawn."""
MEASURED = ("key", "source", "status", "caption", "candidates", "caption_parts")
BATCH_ROWS = 8_192
SCORE_BINS = 30
SHOWN = 8
"""Images shown with all their candidates."""
MTLD_FACTOR = 0.72
"""Type-token ratio at which a factor is complete (McCarthy & Jarvis 2010)."""
DEGENERATE = ("empty", "echo", "loop")
SHOWN_COLUMNS = (
    *("key", "source", "url", "image", "caption", "labels", "candidates", "caption_parts", "image_class"),
    *("top_caption", "rotation_invariant_caption", "meta_caption"),
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def collect(root: Finished) -> dict[str, Any] | None:
    """`{tokens: [row a source], sources: [row a source], scores, reasons: {names, rows}}`; None before any captions.

    `scores` has histograms of the captions' CLIP scores: `{edges, sources: {source: counts}}`, or is None. `sources`
    and `reasons` are empty without the stage `captions`.
    """
    stage = root.table_stage
    if stage is None:
        return None
    rows = _drawn_rows(root, stage)
    summary = root.manifests["captions"].summary["sources"] if "captions" in root.manifests else {}
    names = sorted({name for found in summary.values() for name in found if name.startswith("reason ")})
    picked = {source: _picked_scores(rows.get(source, [])) for source in summary}
    return {
        "context": CONTEXT,
        "most_rows": MOST_ROWS,
        "tokens": [_tokens(source, [row["caption"] or "" for row in found]) for source, found in rows.items()],
        "sources": [_source(name, found, rows.get(name, []), picked[name]) for name, found in summary.items()],
        "scores": _histograms({source: scores for source, scores in picked.items() if scores}),
        "reasons": {
            "names": [name.removeprefix("reason ") for name in names],
            "rows": [
                {"source": source, "candidates": found["candidates"], "counts": [found.get(name, 0) for name in names]}
                for source, found in summary.items()
            ],
        },
    }


def _drawn_rows(root: Finished, stage: str) -> dict[str, list[dict[str, Any]]]:
    """Kept rows of each source, sources in the recipe's order: all, or about MOST_ROWS whose keys are the draw.

    Keys are hashes; their second half is free of dedup's preference for small ones.
    """
    kept = {source: counts["kept"] for source, counts in root.manifests[stage].counts.items()}
    limits = {source: f"{MOST_ROWS * 2**32 // rows:08x}" for source, rows in kept.items() if rows > MOST_ROWS}
    sources, ends = pa.array(list(limits), pa.string()), pa.array(list(limits.values()), pa.string())
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in root.sources}
    for part in root.parts(stage):
        for _, batch in finished.batches(root.store, part, MEASURED, BATCH_ROWS):
            end = pc.fill_null(ends.take(pc.index_in(batch.column("source"), sources)), "g")
            is_drawn = pc.less(pc.utf8_slice_codeunits(batch.column("key"), 16, 24), end)
            for row in batch.filter(pc.and_(is_drawn, pc.equal(batch.column("status"), KEPT))).to_pylist():
                found.setdefault(row["source"], []).append(row)
    return {source: rows for source, rows in found.items() if rows}


def _tokens(source: str, captions: Sequence[str]) -> dict[str, Any]:
    numbers = np.array(counts(captions))
    return {
        "source": source,
        "rows": len(captions),
        "mean": round(float(numbers.mean()), 1),
        "max": int(numbers.max()),
        "cut": int((numbers > CONTEXT).sum()),
        "tokens_cut": int(np.maximum(numbers - CONTEXT, 0).sum()),
    }


def _source(
    name: str, found: Mapping[str, int], rows: Sequence[Mapping[str, Any]], scores: Sequence[float]
) -> dict[str, Any]:
    """What the stage counted of a source, and what its drawn rows show."""
    texts = [part["text"] for row in rows for part in row.get("caption_parts") or [] if part["origin"] == "generated"]
    asked, candidates = found.get("asked", 0), max(found["candidates"], 1)
    quartiles = np.percentile(scores, [25, 50, 75]).round(4).tolist() if scores else None
    return {
        "source": name,
        "images": found["images"],
        "generated": found.get("origin generated", 0),
        "meta": found.get("meta_captions"),
        "facts_left_out": found.get("facts_left_out", 0),
        "beyond_context": found.get("beyond_context", 0),
        "score_quartiles": quartiles,
        "image_agreement": round(found["image_agrees"] / asked, 4) if asked else None,
        "caption_agreement": round(found["caption_agrees"] / asked, 4) if asked else None,
        "degenerate": round(sum(found.get(f"reason {reason}", 0) for reason in DEGENERATE) / candidates, 4),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "mtld": mtld([word for text in texts for word in words(text)]),
    }


def _picked_scores(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The first model's scores of the generated captions that were used."""
    found = []
    for row in rows:
        used = _used(row)
        scores = [each["score"] for each in row.get("candidates") or [] if used in (each["text"], f"{each['text']}.")]
        found += [score for score in scores[:1] if score is not None]
    return found


def _used(row: Mapping[str, Any]) -> str | None:
    """The generated part of the caption."""
    return next((part["text"] for part in row.get("caption_parts") or [] if part["origin"] == "generated"), None)


def _histograms(scores: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Histograms of every source over the same bins."""
    if not scores:
        return None
    low, high = min(map(min, scores.values())), max(map(max, scores.values()))
    edges = np.linspace(low, high if high > low else low + 1e-6, SCORE_BINS + 1)
    return {
        "edges": [round(float(edge), 6) for edge in edges],
        "sources": {source: np.histogram(found, edges)[0].tolist() for source, found in scores.items()},
    }


def words(text: str) -> list[str]:
    """Words in lower case."""
    return _WORD.findall(text.lower())


def distinct(texts: Sequence[str], size: int) -> float | None:
    """Different n-grams as a share of all (Li et al. 2016); None without any."""
    grams = [
        tuple(found[n : n + size]) for text in texts for found in [words(text)] for n in range(len(found) - size + 1)
    ]
    return round(len(set(grams)) / len(grams), 4) if grams else None


def mtld(found: Sequence[str]) -> float | None:
    """Measure of textual lexical diversity: the mean length of stretches whose type-token ratio stays above 0.72, read
    forwards and backwards (McCarthy & Jarvis 2010, doi 10.3758/BRM.42.2.381); None for fewer than 50 words.
    """
    if len(found) < 50:
        return None
    return round((_stretches(found) + _stretches(found[::-1])) / 2, 1)


def _stretches(found: Sequence[str]) -> float:
    factors, types, length = 0.0, set[str](), 0
    for word in found:
        types.add(word)
        length += 1
        if len(types) / length <= MTLD_FACTOR:
            factors, types, length = factors + 1, set(), 0
    if length:
        factors += (1 - len(types) / length) / (1 - MTLD_FACTOR)
    return len(found) / factors if factors else float(len(found))


def choose(root: Finished) -> list[dict[str, Any]]:
    """SHOWN images, drawn by key among those that have candidates, with all of them, scores and the pick."""
    if "captions" not in root.manifests:
        return []
    parts = root.parts("captions")
    places: list[Place] = []
    for number, part in enumerate(parts):
        for start, batch in finished.batches(root.store, part, ["key", "top_caption"]):
            entries = enumerate(batch.to_pylist())
            places += [Place(row["key"][16:], number, start + n) for n, row in entries if row["top_caption"]]
            places = sorted(places)[:SHOWN]
    found = []
    for place in places:
        [row] = finished.rows_at(root.store, parts[place.part], [place.row], SHOWN_COLUMNS)
        found.append(samples.pictured(root, dict.fromkeys(SHOWN_COLUMNS) | row) | {"candidates": _ordered(row)})
    return found


def _ordered(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Candidates that stand first, then by score; `used` marks the pick."""
    used = _used(row)
    marked = [each | {"used": used in (each["text"], f"{each['text']}.")} for each in row["candidates"]]
    return sorted(marked, key=lambda each: (each["reason"] is not None, -(each["rerank"] or each["score"] or 0.0)))
