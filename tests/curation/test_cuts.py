"""The report's view of selection by scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from curation import finished
from curation.report import cuts, facts, page
from tests.curation.roots import make_root


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


def test_rates_are_those_of_the_table(tmp_path: Path) -> None:
    root = finished.load(make_root(tmp_path, samples=90, to="outliers"))
    found = facts.collect(root)
    rows = {entry["group"]: entry for entry in found["selection"]["rates"] if entry["kind"] == "source"}
    counts = root.plain["outliers"]["counts"]
    assert {name: (entry["rows"], entry["kept"]) for name, entry in rows.items()} == {
        name: (entry["in"], entry["kept"]) for name, entry in counts.items()
    }
    drawn = page.joint(found)
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
