"""Dedup moved behind outliers, on a root that has run already: by features, through Ray, adopting what is there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from tests.e2e.world import World, counts, picture

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(600)]


def test_dedup_by_features_behind_outliers(world: World, copy: Path, tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    picture(4, 300).crop((3, 3, 297, 297)).save(tests / "part.png")
    clip = str(world.folder / "clip")
    recipe = yaml.safe_load(world.recipe.read_text())
    stages = recipe["stages"]
    embeddings = {"cosine": 0.9999, "model": clip}
    dedup = {"radius": 2, "against": [str(tests)], "embeddings": embeddings}
    outliers = stages["outliers"] | {"vlm": {"model": clip}, "features": True}
    order = {"keywords": stages["keywords"], "download": stages["download"], "outliers": outliers, "dedup": dedup}
    asked = world.server.images_asked()
    try:
        world.write_recipe(stages=order | {"shards": stages["shards"]})
        world.run(copy)
        shutil.rmtree(copy / "dedup")
        said = world.run(copy)
    finally:
        world.write_recipe()
    assert world.server.images_asked() == asked
    assert "outliers: up to date" in said
    assert sum(entry["in"] for entry in counts(copy, "dedup").values()) == _kept(copy, "outliers")
    summary = json.loads((copy / "dedup/manifest.json").read_text())["summary"]
    assert summary["alike_pairs"] >= 0
    assert summary["tests"]["images"] == 1
    funnel = json.loads((copy / "report/report.json").read_text())["funnel"][-1]
    assert funnel["remain"] == _kept(copy, "shards")
    verify = [sys.executable, "-m", "curation.verify", "--root", str(copy)]
    assert subprocess.run(verify, check=False).returncode == 0
    for path in _files(copy, "outliers", "part"):
        table = pq.read_table(path)
        scored = table.filter(pc.is_valid(table["vlm_score"]))
        assert scored["features"].null_count == 0


def _kept(root: Path, stage: str) -> int:
    return sum(entry["kept"] for entry in counts(root, stage).values())


def _files(root: Path, stage: str, kind: str) -> list[Path]:
    manifest = json.loads((root / stage / "manifest.json").read_text())
    return [root / file["path"] for file in manifest["outputs"] if file["kind"] == kind]
