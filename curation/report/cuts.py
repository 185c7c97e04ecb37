"""What selection by scores did, and what other cuts would do: read from the scores in the table of `outliers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation import finished
from curation.finished import Finished
from stages.base import KEPT

AXES = ("vlm_score", "detector_logit")
FRACTIONS = tuple(round(0.5 + 0.05 * step, 2) for step in range(11))
"""Of the grid of counts (the paper's Fig. 13 varies both quantiles)."""
CELLS = 24
"""Cells of the joint distribution, along each axis."""
MODALITIES = {
    "SAR": r"(?i)\b(SAR|synthetic aperture|sentinel-?1|radar)\b",
    "infrared": r"(?i)\b(infra-?red|thermal|NIR|false.colou?r|NDVI)\b",
    "night": r"(?i)\b(night|nighttime|night-time|VIIRS)\b",
    "historical": r"(?i)\b(historical|vintage|archival|19[0-8][0-9])\b",
}
"""Words of a caption that tell of pictures which outlier detectors may not know."""
LOOKS = {
    "brightness": {"dark": (0, 64), "medium": (64, 192), "bright": (192, 256)},
    "texture": {"flat": (0, 4), "moderate": (4, 16), "busy": (16, 256)},
}
"""Groups by an image's mean grey level, and by the mean difference of neighbours in its 32 × 32 grey levels."""
SIDE = 32
FEWEST = 20
"""Rows that a group needs before its rate is held against the overall one."""
FEWEST_COMPARED, OPPOSED = 1000, -0.2
"""Images, and the rank correlation of their two scores, from which on one of the models is doubted."""


def collect(root: Finished) -> dict[str, Any] | None:
    """`{rates, warnings, grid, joint}`; grid and joint are None with fewer than two scores. None without scores."""
    if "outliers" not in root.manifests:
        return None
    tables = list(_tables(root))
    table = pa.concat_tables(tables) if tables else None
    if table is None or table.num_rows == 0:
        return None
    kept = pc.equal(table["status"], KEPT).to_numpy()
    rates = list(_rates(table, _looks(root, table["key"]), kept))
    scores = [table[name].combine_chunks().to_numpy(zero_copy_only=False).astype(np.float64) for name in AXES]
    both = ~np.isnan(scores[0]) & ~np.isnan(scores[1])
    pair = (scores[0][both], scores[1][both]) if both.any() else None
    return {
        "rates": rates,
        "warnings": [*_warnings(rates, float(kept.mean())), *(opposed(*pair) if pair else ())],
        "grid": grid(*pair) | {"chosen": chosen(root.manifests["outliers"].config.get("keep", {}))} if pair else None,
        "joint": _joint(*pair) if pair else None,
    }


def _tables(root: Finished) -> Iterator[pa.Table]:
    for file in root.parts("outliers"):
        for _, batch in finished.batches(root.store, file, ["key", "status", "source", "caption", *AXES]):
            groups = {
                name: pc.match_substring_regex(batch.column("caption"), words) for name, words in MODALITIES.items()
            }
            columns = {name: batch.column(name) for name in ("key", "status", "source", *AXES)}
            yield pa.table(columns | {name: pc.fill_null(hit, False) for name, hit in groups.items()})


def _looks(root: Finished, keys: pa.ChunkedArray) -> dict[str, NDArray[np.float64]]:
    """`brightness` and `texture` of each key's image, from the stage that decoded it; NaN where unknown."""
    found = np.full((2, len(keys)), np.nan)
    stage = next((name for name in ("download", "ingest") if name in root.manifests), None)
    places = keys.combine_chunks()
    for file in root.parts(stage) if stage else ():
        for _, batch in finished.batches(root.store, file, ["key", "thumbnail"]):
            at = pc.index_in(batch.column("key"), places)
            known = np.flatnonzero(at.is_valid())
            found[:, at.drop_null().to_numpy()] = np.stack(_levels(batch))[:, known]
    return dict(zip(LOOKS, found, strict=True))


def _levels(batch: pa.RecordBatch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) brightness and texture of each image by its thumbnail; NaN without one."""
    brightness, texture = np.full((2, batch.num_rows), np.nan)
    thumbnails = batch.column("thumbnail").to_pylist() if "thumbnail" in batch.schema.names else []
    known = [row for row, each in enumerate(thumbnails) if each is not None and len(each) == SIDE * SIDE]
    if known:
        joined = b"".join(thumbnails[row] for row in known)
        grey = np.frombuffer(joined, np.uint8).reshape(-1, SIDE, SIDE).astype(np.float64)
        brightness[known] = grey.mean(axis=(1, 2))
        steps = [np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
        texture[known] = (steps[0] + steps[1]) / 2
    return brightness, texture


def _rates(
    table: pa.Table, looks: Mapping[str, NDArray[np.float64]], kept: NDArray[np.bool_]
) -> Iterator[dict[str, Any]]:
    """`{group, kind, rows, kept, rate}` by source, by modalities that captions name, and by what images look like."""
    for source in sorted(pc.unique(table["source"]).to_pylist()):
        yield _rate(source, "source", kept[pc.equal(table["source"], source).to_numpy()])
    for name in MODALITIES:
        here = kept[table[name].to_numpy()]
        if len(here):
            yield _rate(name, "caption", here)
    for kind, bands in LOOKS.items():
        levels = looks[kind]
        for name, (low, high) in bands.items():
            here = kept[(low <= levels) & (levels < high)]
            if len(here):
                yield _rate(name, kind, here)


def _rate(group: str, kind: str, kept: NDArray[np.bool_]) -> dict[str, Any]:
    return {"group": group, "kind": kind, "rows": len(kept), "kept": int(kept.sum()), "rate": float(kept.mean())}


def _warnings(rates: list[dict[str, Any]], overall: float) -> list[str]:
    return [
        f"outliers kept {entry['rate']:.0%} of {entry['rows']:,} rows of the {entry['kind']} group {entry['group']!r}, "
        f"less than half of the overall {overall:.0%}: look at what it dropped"
        for entry in rates
        if entry["rows"] >= FEWEST and entry["rate"] < overall / 2
    ]


def opposed(vlm: NDArray[np.float64], detector: NDArray[np.float64]) -> Iterator[str]:
    """A warning where one score falls as the other rises, as with a detector whose classes are named wrongly."""
    if len(vlm) < FEWEST_COMPARED:
        return
    correlation = float(np.corrcoef(_ranks(vlm), _ranks(detector))[0, 1])
    if correlation < OPPOSED:
        yield (
            f"outliers: the detector's scores fall as the vlm's rise (rank correlation {correlation:.2f} of "
            f"{len(vlm):,} images): perhaps the detector's label_names are the wrong way round, or the vlm's weights "
            "are not its own"
        )


def grid(vlm: NDArray[np.float64], detector: NDArray[np.float64]) -> dict[str, Any]:
    """Rows kept for every pair of fractions: `kept[i][j]` for VLM fraction i and detector fraction j."""
    rows = len(vlm)
    counts = np.ceil(np.round(np.array(FRACTIONS) * rows, 6)).astype(np.int64)
    cells = [np.searchsorted(counts, _ranks(scores), side="right") for scores in (vlm, detector)]
    size = len(FRACTIONS)
    table = np.zeros((size + 1, size + 1), np.int64)
    np.add.at(table, tuple(cells), 1)
    kept = table[:size, :size].cumsum(axis=0).cumsum(axis=1)
    return {"fractions": list(FRACTIONS), "rows": rows, "kept": kept.tolist()}


def chosen(keep: Mapping[str, Any]) -> list[int] | None:
    """The cell of the grid that the recipe's cuts chose; None where they are no two fractions of it."""
    fractions = [keep.get(name) for name in ("vlm", "detector")]
    others = (
        keep.get("similarity") is not None or keep.get("per", "all") != "all" or keep.get("combine", "and") != "and"
    )
    if others or not all(fraction in FRACTIONS for fraction in fractions):
        return None
    return [FRACTIONS.index(fraction) for fraction in fractions]


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 for the highest score."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return ranks


def _joint(vlm: NDArray[np.float64], detector: NDArray[np.float64]) -> dict[str, Any]:
    counts, across, up = np.histogram2d(vlm, detector, bins=CELLS)
    return {
        "vlm_edges": [round(float(edge), 6) for edge in across],
        "detector_edges": [round(float(edge), 6) for edge in up],
        "counts": counts.astype(np.int64).tolist(),
    }
