"""A small finished root, made of real files: for tests of what reads one."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from curation import manifest
from curation.manifest import Manifest
from stages import schema
from stages.keys import make_key
from stages.shards import ShardsConfig, ShardsStage
from stages.storage import Store
from stages.tar import TarWriter
from tests.harness import give_input, run_stage

SOURCES = ("laion2b", "cc3m")
HOSTILE = "<script>alert(1)</script> aerial view \x1b[31m\x00 of a <b>port</b>"
BEFORE = {"laion2b": {"no_keyword": 900, "no_url": 3}, "cc3m": {"no_keyword": 400}}
"""Rows that keywords dropped."""
OUTCOMES: tuple[tuple[str, str | None], ...] = (
    ("shards", None),
    ("shards", None),
    ("shards", None),
    ("download", "http_error"),
    ("shards", None),
    ("download", "truncated"),
    ("dedup", "duplicate_image"),
    ("shards", None),
    ("outliers", "low_vlm_score"),
    ("dedup", "duplicate_url"),
    ("outliers", "low_detector_score"),
)
"""What becomes of sample n modulo their number: the stage that settles it, and why."""
KEEP = {"vlm": 0.9, "detector": 0.8}
THRESHOLDS = {"vlm": {"keep": 0.9, "threshold": 0.15}, "detector": {"keep": 0.8, "threshold": 0.5}}
TABLES = ("keywords", "download", "dedup", "outliers")
ADDS = {
    "keywords": schema.KEYWORDS,
    "download": schema.DOWNLOAD,
    "dedup": schema.DEDUP,
    "outliers": schema.OUTLIERS,
}


def picture(number: int) -> bytes:
    """A JPEG whose size and colours depend on the number."""
    from PIL import Image

    rng = np.random.default_rng(number)
    width, height = (int(n) for n in rng.choice([96, 180, 300, 640], 2))
    coarse = rng.integers(40, 216, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def sample(number: int) -> dict[str, Any]:
    """The row of sample `number`, in every column of every stage."""
    source = SOURCES[number % 3 == 0]
    url = f"http{'s' * (number % 2)}://img{number % 5}.example.org/tiles/{number}.jpg"
    caption = (
        HOSTILE
        if number % len(OUTCOMES) == 0
        else f"aerial view number {number} of a harbour " + "with boats " * (number % 30)
    )
    key = make_key(source, url, caption)
    stage, reason = OUTCOMES[number % len(OUTCOMES)]
    return {
        "key": key,
        "source": source,
        "url": url,
        "caption": caption,
        "stage": stage,
        "reason": reason,
        "keywords": ["aerial view"] if number % 4 else ["aerial view", "Landsat"],
        "row": {"file": "data.parquet", "row_group": 0, "row": number},
        "captions": [{"text": caption, "source": source, "origin": "alt_text"}],
        "licence": ["CC-BY-4.0", None][number % 2],
        "http_status": 404 if reason == "http_error" else 200,
        "cluster": key,
        "component": key,
        "vlm_score": 0.1 if reason == "low_vlm_score" else 0.2 + (number % 17) / 100,
        "detector_score": 0.2 if reason == "low_detector_score" else 0.7 + (number % 13) / 50,
        "detector_logit": -1.0 if reason == "low_detector_score" else 1.0 + (number % 13) / 5,
        "attempts": 1,
        "format": "jpeg",
    }


def add_images(root: Path, rows: list[dict[str, Any]]) -> None:
    """Write the images of rows that have one into a tar, and point the rows at them."""
    from PIL import Image

    path = root / "download" / "images-0.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        tar = TarWriter(file)
        for number, row in enumerate(rows):
            if row["stage"] == "download":
                continue
            data = picture(number)
            width, height = Image.open(io.BytesIO(data)).size
            row |= {
                "image": {"tar": "download/images-0.tar", "offset": tar.add(row["key"], data), "size": len(data)},
                "sha256": hashlib.sha256(data).hexdigest(),
                "phash": number,
                "thumbnail": bytes([number % 256]) * 1024,
                "bytes": len(data),
                "width": width,
                "height": height,
            }
        tar.close()


def make_root(root: Path, samples: int = 60, to: str = "shards") -> Store:
    """A finished run of keywords, download, dedup, outliers and shards, or up to one of them."""
    rows = [sample(number) for number in range(samples)]
    add_images(root, rows)
    _find_twins(rows)
    stages = [*TABLES, "shards"]
    recipe = {
        "name": "small",
        "subset": "small",
        "seed": 1,
        "sources": [{"name": name, "path": f"{name}.parquet"} for name in SOURCES],
        "stages": {stage: {} for stage in stages},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    before: Manifest | None = None
    for stage in stages[: stages.index(to) + 1]:
        if stage == "shards":
            made = run_stage(ShardsStage(ShardsConfig(count=2, val_fraction=0.3)), root, "outliers", subset="small")
            manifest.save(Store(str(root)), made)
        else:
            before = _stage(root, stage, rows, before)
    return Store(str(root))


def _find_twins(rows: list[dict[str, Any]]) -> None:
    """Dropped twins name the first kept sample as theirs."""
    kept = next((row["key"] for row in rows if row["stage"] == "shards"), None)
    for row in rows:
        if (row["reason"] or "").startswith("duplicate"):
            row["cluster"] = row["component"] = kept


def _between(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As dedup's summary has it: all twins are the first kept sample's."""
    first = next((row["source"] for row in rows if row["status"] == "kept"), "")
    found: dict[str, Any] = {row["source"]: {"kept": 0, "twins_of": {}} for row in rows}
    for row in rows:
        if row["status"] == "kept":
            found[row["source"]]["kept"] += 1
        else:
            found[row["source"]]["twins_of"][first] = found[row["source"]]["twins_of"].get(first, 0) + 1
    return found


def _groups(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As dedup's summary has it: one group, if any."""
    twins = [row for row in rows if row["status"] == "dropped"]
    size = len(twins) + 1
    return {
        "cluster_sizes": {str(size): 1} if twins else {},
        "largest": [[twins[0]["cluster"], size]] if twins else [],
        "tests": {"images": 3, "captions": 15, "unreadable": 1, "matched": {"bytes": 2}},
    }


def _stage(root: Path, stage: str, rows: list[dict[str, Any]], before: Manifest | None) -> Manifest:
    """One stage's table, in two parts, and its manifest."""
    place = TABLES.index(stage)
    columns = schema.extend(schema.COMMON, *(ADDS[name] for name in TABLES[: place + 1]))
    mine = []
    for row in rows:
        if row["stage"] in TABLES[:place]:
            continue
        here = row["stage"] == stage
        mine.append(row | {"status": "dropped" if here else "kept", "reason": row["reason"] if here else None})
    table = pa.Table.from_pylist(mine, schema=columns)
    half = len(mine) // 2
    made = give_input(root, stage, [table.slice(0, half), table.slice(half)])
    counts = {source: dict(entry) for source, entry in made.counts.items()}
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {"keep": KEEP} if stage == "outliers" else {}
    if stage == "keywords":
        for source, dropped in BEFORE.items():
            entry = counts.setdefault(source, {"in": 0, "kept": 0, "dropped": {}})
            entry["dropped"] = dropped
            entry["in"] += sum(dropped.values())
        summary = {"terms": ["aerial view", "Landsat", "Gaofen"], "warnings": ["laion2b: left out: b.parquet"]}
    if stage == "dedup":
        summary = {"between": _between(mine), **_groups(mine)}
    if stage == "outliers":
        summary = {"thresholds": THRESHOLDS}
    inputs = ({"stage": before.stage, "output_digest": before.output_digest},) if before else ()
    made = replace(made, counts=counts, summary=summary, config=config, inputs=inputs)
    made = replace(made, seconds=2.5, rows_per_second=float(len(rows)))
    manifest.save(Store(str(root)), made)
    return made
