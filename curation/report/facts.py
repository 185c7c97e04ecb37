"""The numbers of the report, read from manifests and, column by column, from the tables they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import finished
from curation.finished import Finished
from curation.funnel import funnel
from curation.report import added, captioning, cuts, groups, places, scenes
from stages.base import KEPT

SIDES = (0, 128, 256, 512, 1024)
"""Lower ends of RS5M's bins of image width, in pixels; the last is open."""
WORDS = (0, 1, 6, 11, 16, 21, 31, 51, 101)
"""Lower ends of the bins of caption length, in words; the last is open."""
SCORES = {"vlm_score": "vlm", "detector_logit": "detector", "caption_similarity": "similarity"}
"""Columns that quantiles are taken of, and what the recipe calls them."""
SCORE_BINS = 40
TOP = 30
"""Entries of a list of the most frequent."""
_HOST = r"^[A-Za-z][A-Za-z0-9+.\\-]*://(?:[^/?#@]*@)?(?P<host>[^/?#:]+)"


def collect(root: Finished) -> dict[str, Any]:
    """Everything `report.json` holds.

    Raises:
        ConservationError: the sums of the manifests do not hold.
    """
    manifests = root.plain
    selection = cuts.collect(root)
    return {
        "name": root.recipe.get("name", ""),
        "subset": root.recipe.get("subset", ""),
        "unfinished": [name for name in root.recipe.get("stages", {}) if name not in root.manifests],
        "funnel": funnel(manifests, root.sources),
        "stages": [_stage(name, entry) for name, entry in manifests.items()],
        "drop_reasons": _drop_reasons(manifests),
        "keywords": _keywords(root),
        **_described(root),
        "scores": {name: found for name in SCORES if (found := _score(root, name))},
        "selection": selection,
        "added": added.collect(root),
        "groups": groups.collect(root),
        "captions": captioning.collect(root),
        "scenes": scenes.collect(root),
        "places": places.collect(root),
        "warnings": [
            *(text for found in root.manifests.values() for text in found.summary.get("warnings", [])),
            *(selection["warnings"] if selection else []),
        ],
        "shards": dict(root.manifests["shards"].summary) if "shards" in root.manifests else {},
    }


def _stage(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    for entry in manifest["counts"].values():
        dropped.update(entry["dropped"])
    return {
        "stage": name,
        "in": sum(entry["in"] for entry in manifest["counts"].values()),
        "kept": sum(entry["kept"] for entry in manifest["counts"].values()),
        "dropped": dict(dropped.most_common()),
        "bytes": sum(file["bytes"] for file in manifest["outputs"]),
        **{key: manifest[key] for key in ("started_at", "seconds", "rows_per_second", "device")},
    }


def _drop_reasons(manifests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`{stage, reason, rows, sources: {source: rows}}`, stages in order, frequent reasons first."""
    found = []
    for stage, manifest in manifests.items():
        reasons: dict[str, dict[str, int]] = {}
        for source, entry in manifest["counts"].items():
            for reason, rows in entry["dropped"].items():
                reasons.setdefault(reason, {})[source] = rows
        entries = [
            {"stage": stage, "reason": reason, "rows": sum(sources.values()), "sources": sources}
            for reason, sources in reasons.items()
        ]
        found += sorted(entries, key=lambda entry: (-int(str(entry["rows"])), str(entry["reason"])))
    return found


def _columns(root: Finished, stage: str | None, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of some columns of a stage's table, rows that it kept."""
    for file in root.parts(stage) if stage else ():
        for _, batch in finished.batches(root.store, file, ["status", *names]):
            yield batch.filter(pc.equal(batch.column("status"), KEPT))


def _keywords(root: Finished) -> list[dict[str, Any]]:
    """`{keyword, matched, remain}`: rows that hit each term of the pack after `keywords`, and in the last table."""
    if "keywords" not in root.manifests:
        return []
    matched, remain = _terms(root, "keywords"), _terms(root, root.table_stage)
    terms = {*matched, *root.manifests["keywords"].summary.get("terms", [])}
    order = sorted(terms, key=lambda term: (-matched[term], term))
    return [{"keyword": term, "matched": matched[term], "remain": remain[term]} for term in order]


def _terms(root: Finished, stage: str | None) -> Counter[str]:
    found: Counter[str] = Counter()
    for batch in _columns(root, stage, ["keywords"]):
        if "keywords" in batch.schema.names:
            _count(found, pc.list_flatten(batch.column("keywords")))
    return found


def _count(counter: Counter[str], values: pa.Array) -> None:
    for entry in values.value_counts().to_pylist():
        if entry["values"] is not None:
            counter[entry["values"]] += entry["counts"]


def _described(root: Finished) -> dict[str, Any]:
    """What the kept rows of the last table are like: captions, image sizes, domains, licences."""
    words, width, height = Tally(WORDS), Tally(SIDES), Tally(SIDES)
    domains: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    for batch in _columns(root, root.table_stage, ["caption", "url", "licence", "width", "height"]):
        names = batch.schema.names
        captions = pc.fill_null(batch.column("caption"), "")
        words.add(pc.count_substring_regex(captions, r"\S+"))
        if {"width", "height"} <= set(names):
            width.add(batch.column("width"))
            height.add(batch.column("height"))
        _count(domains, pc.utf8_lower(pc.struct_field(pc.extract_regex(batch.column("url"), _HOST), "host")))
        if "licence" in names:
            _count(licences, pc.fill_null(batch.column("licence"), "not stated"))
    return {
        "caption_words": words.to_json(),
        "image_width": width.to_json(),
        "image_height": height.to_json(),
        "domains": [{"domain": name, "rows": rows} for name, rows in _top(domains)],
        "domain_count": len(domains),
        "licences": [{"licence": name, "rows": rows} for name, rows in _top(licences)],
    }


def _top(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda entry: (-entry[1], entry[0]))[:TOP]


class Tally:
    """A histogram over half-open bins given by their lower ends, with mean and largest value."""

    def __init__(self, lower: Sequence[int]) -> None:
        self.lower = lower
        self.counts = np.zeros(len(lower), np.int64)
        self.sum = 0
        self.max = 0

    def add(self, values: pa.Array) -> None:
        """Count values; nulls do not count."""
        known = np.asarray(values.drop_null(), np.int64)
        if len(known):
            bins = np.searchsorted(self.lower, known, side="right") - 1
            self.counts += np.bincount(bins, minlength=len(self.lower))
            self.sum += int(known.sum())
            self.max = max(self.max, int(known.max()))

    def to_json(self) -> dict[str, Any]:
        """`{lower, counts, rows, mean, max}`."""
        rows = int(self.counts.sum())
        return {
            "lower": list(self.lower),
            "counts": self.counts.tolist(),
            "rows": rows,
            "mean": round(self.sum / rows, 1) if rows else None,
            "max": self.max,
        }


def _score(root: Finished, column: str) -> dict[str, Any] | None:
    """Histogram of a score over every row that has one, kept or not, and its threshold."""
    if "outliers" not in root.manifests:
        return None
    low, high = np.inf, -np.inf
    for values in _score_values(root, column):
        low, high = min(low, values.min()), max(high, values.max())
    if low > high:
        return None
    edges = np.linspace(low, high if high > low else low + 1e-6, SCORE_BINS + 1)
    counts = np.zeros(SCORE_BINS, np.int64)
    for values in _score_values(root, column):
        counts += np.histogram(values, edges)[0]
    cut = root.manifests["outliers"].summary.get("thresholds", {}).get(SCORES[column], {})
    return {
        "edges": [round(float(edge), 6) for edge in edges],
        "counts": counts.tolist(),
        "rows": int(counts.sum()),
        "threshold": cut.get("threshold"),
        "keep": cut.get("keep"),
    }


def _score_values(root: Finished, column: str) -> Iterator[np.ndarray]:
    for file in root.parts("outliers"):
        for _, batch in finished.batches(root.store, file, [column]):
            values = np.asarray(batch.column(0).drop_null(), np.float64) if batch.num_columns else np.array([])
            values = values[np.isfinite(values)]
            if len(values):
                yield values
