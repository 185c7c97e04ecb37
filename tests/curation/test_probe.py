"""`curation probe`: the sample goes through the real stages; the counts are those of their tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from curation import finished, probe
from curation.estimates import share
from curation.recipe import load
from demo.models import make_detector
from stages.errors import UserError
from stages.storage import Store
from tests.e2e.world import jpeg, picture
from tests.harness import read_output, run_stage
from tests.webserver import serving


def arguments(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"rows": 20, "seed": 3, "detector": None, "at_least": 0.5} | changes)


def write_recipe(folder: Path, stages: dict[str, Any]) -> str:
    path = folder / "recipe.yaml"
    source = {"name": "laion2b", "path": str(folder / "laion.parquet")}
    path.write_text(yaml.safe_dump({"name": "probed", "sources": [source], "stages": stages}, sort_keys=False))
    return str(path)


def test_counts_by_source(tmp_path: Path) -> None:
    make_detector(tmp_path / "detector")
    with serving() as server:
        urls = [server.url(f"/{n}.jpg") for n in range(60)]
        for number in range(0, 60, 2):  # every other image is gone
            server.pages[f"/{number}.jpg"] = jpeg(picture(number, 96))
        captions = [f"{'satellite image' if n % 3 == 0 else 'a lawn'} {n}" for n in range(60)]
        pq.write_table(pa.table({"URL": urls, "TEXT": captions}), tmp_path / "laion.parquet")
        stages = {
            "keywords": {},
            "download": {"allow_private": ["127.0.0.0/8"], "retries": 0},
            "outliers": {"detector": {"model": str(tmp_path / "detector")}, "keep": {"detector": 0.3}},
        }
        recipe = probe.derived(load(write_recipe(tmp_path, stages)), arguments())
        before, root = None, tmp_path / "root" / "probe"
        for stage in recipe.stages:
            written = run_stage(stage, root, before, sources=["laion2b"])
            before = stage.name
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe.effective(), sort_keys=False))
    rows = read_output(root, written).to_pylist()
    [found] = probe.collect(finished.load(Store(str(root))))["sources"]
    positive = sum(row["detector_score"] >= 0.5 for row in rows)
    assert {name: found[name] for name in ("rejected", "drawn", "scored", "positive")} == {
        "rejected": 40,
        "drawn": 20,
        "scored": len(rows),
        "positive": positive,
    }
    assert 0 < len(rows) < 20
    assert found["low"] <= found["share"] == positive / len(rows) <= found["high"]
    assert f"{len(rows)}" in probe.table({"sources": [found]})


def test_intervals_hold_nothing_and_everything() -> None:
    none, every = share(0, 50), share(50, 50)
    assert none is not None
    assert every is not None
    assert (none.value, every.value) == (0.0, 1.0)
    assert (none.low, every.high) == (0, 1)
    assert 0.03 < none.high < 0.06
    assert every.low == pytest.approx(1 - none.high)
    assert share(0, 0) is None
    unknown = {"source": "a", "rejected": 1, "drawn": 0, "scored": 0, "positive": 0, "share": None}
    assert probe.table({"sources": [unknown]}).endswith("unknown")


@pytest.mark.parametrize(
    ("stages", "changes", "sentence"),
    [
        ({"ingest": {}}, {}, "has no keywords|read by the stage"),
        ({"keywords": {}}, {}, "name one with --detector"),
        ({"keywords": {}}, {"detector": "/no/such"}, "there is no folder"),
        ({"keywords": {}}, {"detector": "{folder}/detector", "rows": 0}, "from 1 on"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, stages: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    make_detector(tmp_path / "detector")
    pq.write_table(pa.table({"URL": ["http://a.org/1"], "TEXT": ["a"]}), tmp_path / "laion.parquet")
    if "detector" in changes:
        changes = changes | {"detector": changes["detector"].format(folder=tmp_path)}
    with pytest.raises(UserError, match=sentence):
        probe.derived(load(write_recipe(tmp_path, stages)), arguments(**changes))
