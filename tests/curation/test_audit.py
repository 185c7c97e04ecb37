"""The audit sheet: drawn the same every time, and estimates that hold the truth."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation import audit
from curation.estimates import Stratum, precision_and_recall
from tests.curation.roots import make_root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "root"
    make_root(folder, samples=120, to="outliers")
    return folder


def label(sheet: Path, yes: str = "1") -> None:
    rows = list(csv.DictReader(sheet.open()))
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"label": yes} for row in rows)


def test_a_sheet_is_drawn_and_read_back(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        command = ["--root", str(root), "--out", str(tmp_path / name), "--samples", "24"]
        assert audit.main(command) == 0
    assert (tmp_path / "a/sheet.csv").read_bytes() == (tmp_path / "b/sheet.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "a/sheet.csv").open()))
    assert 8 < len(rows) <= 24
    assert all((tmp_path / "a" / row["image"]).stat().st_size > 500 for row in rows)
    assert not any(row["caption"].startswith(("=", "+", "-", "@")) for row in rows)
    key = json.loads((tmp_path / "a/strata.json").read_text())
    assert {sample["stratum"] for sample in key["samples"]} == {name for name, n in key["rows"].items() if n}
    capsys.readouterr()
    label(tmp_path / "a/sheet.csv")
    assert audit.main(["--labels", str(tmp_path / "a/sheet.csv")]) == 0
    assert "precision 100.0%" in capsys.readouterr().out


def test_mistakes_are_sentences(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "a" / "sheet.csv"
    assert audit.main(["--root", str(root)]) == 2
    assert audit.main(["--root", str(root), "--out", str(sheet.parent), "--samples", "8"]) == 0
    assert audit.main(["--root", str(root), "--out", str(sheet.parent)]) == 2
    assert "holds a sheet already" in capsys.readouterr().err
    assert audit.main(["--labels", str(sheet)]) == 2
    assert "go on labelling" in capsys.readouterr().err
    label(sheet, "maybe")
    assert audit.main(["--labels", str(sheet)]) == 2
    assert "line 2: label is 'maybe'" in capsys.readouterr().err
    assert audit.main(["--labels", str(tmp_path / "none.csv")]) == 2


def test_rows_near_the_cut_are_told_from_the_rest() -> None:
    scores = np.arange(100, dtype=np.float32)
    status = ["dropped" if score < 30 else "kept" for score in scores]
    nulls = pa.nulls(100, pa.float32())
    table = pa.table({"status": status, "vlm_score": scores, "detector_logit": nulls, "caption_similarity": nulls})
    strata = audit.stratify(table, "and")
    assert np.flatnonzero(strata == 0).tolist() == list(range(30, 37))
    assert np.flatnonzero(strata == 2).tolist() == [27, 28, 29]
    assert (np.sum(strata == 1), np.sum(strata == 3)) == (63, 27)


def test_estimates_hold_the_truth() -> None:
    """Of 400 surveys of a population with known shares, about 95 % of the intervals hold its precision and recall."""
    rng = np.random.default_rng(8)
    sizes, shares, kept = [900, 8000, 500, 1500], [0.7, 0.97, 0.4, 0.05], [True, True, False, False]
    positives = [int(size * share) for size, share in zip(sizes, shares, strict=True)]
    precision = sum(positives[:2]) / sum(sizes[:2])
    recall = sum(positives[:2]) / sum(positives)
    hits = np.zeros(2)
    for survey in range(400):
        found = [rng.hypergeometric(yes, size - yes, 50) for yes, size in zip(positives, sizes, strict=True)]
        strata = {
            name: Stratum(rows=size, labelled=50, positive=int(yes), is_kept=inside)
            for name, size, yes, inside in zip(audit.STRATA, sizes, found, kept, strict=True)
        }
        estimates = precision_and_recall(strata, survey)
        hits += [e.low <= truth <= e.high for e, truth in zip(estimates, (precision, recall), strict=True)]
    assert (hits / 400 > 0.9).all(), hits
