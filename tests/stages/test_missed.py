"""The sample of rows that no keyword hits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from curation.manifest import Manifest
from curation.recipe import load
from stages.errors import UserError
from tests.harness import read_output, run_stage

WORDS = ("a cat on a sofa", "aerial view of a town", "two bowls of soup", "Satellite imagery of a port")


def give(folder: Path, rows: int = 400, group: int = 50) -> dict[str, Any]:
    """A parquet source and one with several captions a row; a recipe over both."""
    captions = [f"{WORDS[n % 4]} {n}" for n in range(rows)]
    urls = [f"http://a.org/{n}.jpg" if n % 50 else None for n in range(rows)]
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), folder / "laion.parquet", row_group_size=group)
    images = [{"image_id": n, "url": f"http://b.org/{n}.jpg"} for n in range(30)]
    regions = [
        {"id": n, "regions": [{"image_id": n, "phrase": text} for text in (f"a dog {n}", f"a lawn {n}")]}
        for n in range(30)
    ]
    (folder / "image_data.json").write_text(json.dumps(images))
    (folder / "regions.json").write_text(json.dumps(regions))
    sources = [
        {"name": "laion2b", "path": str(folder / "laion.parquet")},
        {"name": "vg", "path": {"images": str(folder / "image_data.json"), "regions": str(folder / "regions.json")}},
    ]
    return {"name": "probe", "sources": sources, "stages": {"missed": {"rows": 40, "seed": 7}}}


def run(folder: Path, root: Path, recipe: dict[str, Any]) -> tuple[list[dict[str, Any]], Manifest]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load(str(folder / "recipe.yaml"))
    written = run_stage(loaded.stages[0], root, sources=[source.name for source in loaded.sources])
    return read_output(root, written).to_pylist(), written


def test_so_many_misses_of_each_source(tmp_path: Path) -> None:
    rows, written = run(tmp_path, tmp_path / "root", give(tmp_path))
    web = [row for row in rows if row["source"] == "laion2b"]
    other = [row for row in rows if row["source"] == "vg"]
    assert (len(web), len(other)) == (40, 30)
    assert all(row["caption"].startswith(("a cat", "two bowls")) and row["url"] for row in web)
    assert all(row["caption"].startswith("a dog") and len(row["captions"]) == 2 for row in other)
    assert all(row["keywords"] == [] and row["status"] == "kept" for row in rows)
    without_url = sum(n % 50 == 0 and n % 4 in (0, 2) for n in range(400))
    assert written.summary["rejected"] == {"laion2b": 200 - without_url, "vg": 30}
    assert written.counts["laion2b"] == {"in": 40, "kept": 40, "dropped": {}}


def test_the_seed_alone_draws(tmp_path: Path) -> None:
    recipe = give(tmp_path)
    first = {row["key"] for row in run(tmp_path, tmp_path / "one", recipe)[0]}
    again = {row["key"] for row in run(tmp_path, tmp_path / "two", recipe)[0]}
    recipe["stages"]["missed"]["seed"] = 8
    other = {row["key"] for row in run(tmp_path, tmp_path / "three", recipe)[0]}
    assert first == again != other
    recipe["stages"]["missed"] = {"rows": 60, "seed": 7}
    assert first < {row["key"] for row in run(tmp_path, tmp_path / "four", recipe)[0]}


def test_the_draw_is_even(tmp_path: Path) -> None:
    recipe = give(tmp_path, rows=40_000, group=4000)
    recipe["stages"]["missed"]["rows"] = 1000
    rows, _ = run(tmp_path, tmp_path / "root", recipe)
    tenths = [0] * 10
    for row in rows:
        if row["source"] == "laion2b":
            tenths[row["row"]["row_group"]] += 1
    assert sum(tenths) == 1000
    assert sum((count - 100) ** 2 / 100 for count in tenths) < 27.9  # chi-squared of 9, one in a thousand


def test_no_rows_is_a_sentence(tmp_path: Path) -> None:
    recipe = give(tmp_path)
    recipe["stages"]["missed"]["rows"] = 0
    with pytest.raises(UserError, match="from 1 on"):
        run(tmp_path, tmp_path / "root", recipe)
