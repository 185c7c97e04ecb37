"""Sources of images that came with labels, as RS5M's table of RS3 has them, and the long tails of their classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from curation import finished
from curation.finished import Finished
from stages.base import KEPT

if TYPE_CHECKING:
    import polars as pl

STATED = {"labelled": "labels", "located": "latitude", "dated": "acquired_at", "measured": "gsd_m"}
"""What the table counts images with, and the column that says it."""
MOST_CLASSES = 1000
"""Classes of a source that are listed, the most frequent first."""


def frames(root: Finished, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Some columns of the last table, rows that it kept; a column that it lacks is null throughout."""
    import polars as pl

    stage = root.table_stage
    for file in root.parts(stage) if stage else ():
        for _, batch in finished.batches(root.store, file, ["status", "source", *columns]):
            frame = pl.DataFrame(pl.from_arrow(batch)).filter(pl.col("status") == KEPT)
            missing = [pl.lit(None).alias(name) for name in columns if name not in frame.columns]
            yield frame.with_columns(missing)


def collect(root: Finished) -> dict[str, Any] | None:
    """`{rows, total, classes}`; None where no image came with a label, a place, a time or a resolution.

    A row has `source, images, split` (the official ones that its images are of), `classes` and the counts of `STATED`;
    classes are `{source, images, classes: [[name, images]], names, half}`: `names` in all, the `half` most frequent
    of which have half of all labels.
    """
    if "ingest" not in root.manifests:
        return None
    counted, labels, splits = _counted(root)
    rows: list[dict[str, Any]] = [
        {
            "source": source,
            "images": found["images"],
            "split": ", ".join(sorted(splits.get(source, ()))) or None,
            "classes": len(labels.get(source, ())),
            **{name: found[name] for name in STATED},
        }
        for source in root.sources
        if (found := counted.get(source))
    ]
    if not any(row[name] for row in rows for name in STATED):
        return None
    total = {name: sum(row[name] for row in rows) for name in ("images", *STATED)}
    return {
        "rows": rows,
        "total": total,
        "classes": [_tail(row, labels[row["source"]]) for row in rows if row["classes"]],
    }


def _counted(root: Finished) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]], dict[str, set[str]]]:
    """By source: images and those with each of `STATED`; images of each class; names of official splits."""
    import polars as pl

    stated = [_is_stated(column).sum().alias(name) for name, column in STATED.items()]
    counts, classes, splits = [], [], []
    for frame in frames(root, [*STATED.values(), "official_split"]):
        counts.append(frame.group_by("source").agg(pl.len().alias("images"), *stated))
        exploded = frame.select("source", pl.col("labels").cast(pl.List(pl.String)).list.unique()).explode("labels")
        classes.append(exploded.drop_nulls().group_by("source", "labels").len())
        splits.append(frame.select("source", pl.col("official_split").cast(pl.String)).drop_nulls().unique())
    if not counts:
        return {}, {}, {}
    summed = pl.concat(counts).group_by("source").sum()
    of_class: dict[str, dict[str, int]] = {}
    for source, name, images in pl.concat(classes).group_by("source", "labels").sum().iter_rows():
        of_class.setdefault(source, {})[name] = images
    of_split: dict[str, set[str]] = {}
    for source, name in pl.concat(splits).iter_rows():
        of_split.setdefault(source, set()).add(name)
    return {row.pop("source"): row for row in summed.to_dicts()}, of_class, of_split


def _is_stated(column: str) -> pl.Expr:
    import polars as pl

    if column == "labels":
        return pl.col(column).cast(pl.List(pl.String)).list.len().fill_null(0) > 0
    return pl.col(column).is_not_null()


def _tail(row: dict[str, Any], counts: dict[str, int]) -> dict[str, Any]:
    """One source's classes, frequent ones first."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    half, seen = 0, 0
    while 2 * seen < sum(counts.values()):
        seen += ordered[half][1]
        half += 1
    return {
        "source": row["source"],
        "images": row["labelled"],
        "names": len(ordered),
        "half": half,
        "classes": [list(entry) for entry in ordered[:MOST_CLASSES]],
    }
