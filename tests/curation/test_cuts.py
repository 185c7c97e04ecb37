"""The report's view of selection by scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation import finished
from curation.report import build, cuts, facts, figures
from tests.curation.roots import KEEP, make_root


def test_the_grid_counts_what_both_fractions_keep() -> None:
    rng = np.random.default_rng(4)
    vlm, detector = rng.normal(size=(2, 137))
    found = cuts.grid(vlm, detector)
    for i, first in enumerate(found["fractions"]):
        for j, second in enumerate(found["fractions"]):
            best = {
                name: set(np.argsort(-scores)[: int(np.ceil(round(fraction * 137, 6)))].tolist())
                for name, scores, fraction in (("v", vlm, first), ("d", detector, second))
            }
            assert found["kept"][i][j] == len(best["v"] & best["d"])
    assert found["kept"][-1][-1] == 137


def test_the_recipes_choice_is_marked_in_the_grid(tmp_path: Path) -> None:
    build(make_root(tmp_path, samples=90, to="outliers"))
    grid = json.loads((tmp_path / "report/report.json").read_text())["selection"]["grid"]
    assert [grid["fractions"][at] for at in grid["chosen"]] == [KEEP["vlm"], KEEP["detector"]]
    shown = (tmp_path / "report/index.html").read_text()
    marked = re.findall(r'<td class="chosen">([0-9,]+)</td>', shown)
    assert marked == [str(grid["kept"][grid["chosen"][0]][grid["chosen"][1]])]
    assert "the recipe's choice is marked" in shown.replace("&#39;", "'")


@pytest.mark.parametrize(
    "keep",
    [
        {"vlm": 0.9, "detector": 0.77},
        {"vlm": 0.9, "detector": {"top": 10}},
        {"vlm": 0.9, "detector": None},
        {"vlm": 0.9, "detector": 0.8, "similarity": 0.5},
        {"vlm": 0.9, "detector": 0.8, "per": "source"},
        {"vlm": 0.9, "detector": 0.8, "combine": "or"},
    ],
)
def test_other_choices_are_in_no_grid(keep: dict[str, Any]) -> None:
    assert cuts.chosen(keep) is None


def test_a_detector_the_wrong_way_round_is_doubted() -> None:
    rng = np.random.default_rng(5)
    vlm = rng.normal(size=2000)
    detector = vlm + 2 * rng.normal(size=2000)
    [said] = cuts.opposed(vlm, -detector)
    assert "rank correlation -0.4" in said
    assert "label_names are the wrong way round" in said
    assert not list(cuts.opposed(vlm, detector))
    assert not list(cuts.opposed(vlm, rng.normal(size=2000))), "scores that have nothing to do with each other"
    assert not list(cuts.opposed(vlm[:900], -detector[:900])), "too few to tell"


def test_rates_are_those_of_the_table(tmp_path: Path) -> None:
    root = finished.load(make_root(tmp_path, samples=90, to="outliers"))
    found = facts.collect(root)
    rows = {entry["group"]: entry for entry in found["selection"]["rates"] if entry["kind"] == "source"}
    counts = root.plain["outliers"]["counts"]
    assert {name: (entry["rows"], entry["kept"]) for name, entry in rows.items()} == {
        name: (entry["in"], entry["kept"]) for name, entry in counts.items()
    }
    drawn = figures.joint(found)
    assert drawn is not None
    assert drawn["cells"]
    assert sum(map(sum, found["selection"]["joint"]["counts"])) == sum(entry["in"] for entry in counts.values())


def test_a_group_that_loses_most_of_its_rows_is_named() -> None:
    rates = [
        {"group": "SAR", "kind": "caption", "rows": 40, "kept": 10, "rate": 0.25},
        {"group": "web", "kind": "source", "rows": 900, "kept": 700, "rate": 0.78},
        {"group": "few", "kind": "source", "rows": 3, "kept": 0, "rate": 0.0},
    ]
    [warning] = cuts._warnings(rates, 0.72)
    assert warning.startswith(
        "outliers kept 25% of 40 rows of the caption group 'SAR', less than half of the overall 72%"
    )


def test_brightness_and_texture_come_from_thumbnails() -> None:
    checks = np.indices((32, 32)).sum(axis=0) % 2
    pictures = [np.full((32, 32), 10), np.full((32, 32), 250), checks * 40 + 100]
    thumbnails = [picture.astype(np.uint8).tobytes() for picture in pictures]
    batch = pa.record_batch({"thumbnail": pa.array([*thumbnails, None], pa.binary())})
    brightness, texture = cuts._levels(batch)
    assert brightness[:3].tolist() == [10, 250, 120]
    assert texture[:3].tolist() == [0, 0, 40]
    assert np.isnan([brightness[3], texture[3]]).all()
    assert np.isnan(cuts._levels(pa.record_batch({"key": ["a"]}))).all()


def test_rates_by_brightness_and_texture() -> None:
    names = {name: np.zeros(6, bool) for name in cuts.MODALITIES}
    values = {"brightness": [10.0, 20.0, 100.0, 200.0, np.nan, 63.9], "texture": [1.0, 5.0, 5.0, 20.0, np.nan, 3.0]}
    table = pa.table({"source": ["a"] * 6, **names})
    levels = {name: np.array(column) for name, column in values.items()}
    kept = np.array([False, False, True, True, True, True])
    found = {(rate["kind"], rate["group"]): (rate["kept"], rate["rows"]) for rate in cuts._rates(table, levels, kept)}
    assert found == {
        ("source", "a"): (4, 6),
        ("brightness", "dark"): (1, 3),
        ("brightness", "medium"): (1, 1),
        ("brightness", "bright"): (1, 1),
        ("texture", "flat"): (1, 2),
        ("texture", "moderate"): (1, 2),
        ("texture", "busy"): (1, 1),
    }


def test_looks_are_found_by_key(tmp_path: Path) -> None:
    root = finished.load(make_root(tmp_path, samples=30, to="outliers"))
    table = pa.concat_tables(list(cuts._tables(root)))
    looks = cuts._looks(root, table["key"])
    by_key: dict[str, float] = {}
    for file in root.parts("download"):
        for _, batch in finished.batches(root.store, file, ["key", "thumbnail"]):
            by_key |= dict(zip(batch["key"].to_pylist(), cuts._levels(batch)[0].tolist(), strict=True))
    expected = np.array([by_key[key] for key in table["key"].to_pylist()])
    np.testing.assert_array_equal(looks["brightness"], expected)
