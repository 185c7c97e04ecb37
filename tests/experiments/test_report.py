from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from experiments.proof import report
from experiments.proof.plan import RANDOM
from trainer.errors import UserError


def row(experiment: str, arm: str, seed: int, top1: float, level: float = 0.0) -> dict[str, Any]:
    facts = {"topic": 90.0, "off_topic": 10.0}
    return {"experiment": experiment, "arm": arm, "seed": seed, "level": level, "size": 100, "facts": facts} | {
        "top1": top1,
        "mR": top1 / 2,
        "mR_same_text": top1 / 2 + 1,
    }


def test_intervals_of_paired_differences_are_students() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(20, 3, 6), rng.normal(18, 3, 6)
    mean, half = report.paired(dict(enumerate(first)), dict(enumerate(second)))
    interval = ttest_rel(first, second).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))
    one, none = report.paired({0: 3.0}, {0: 1.0, 1: 5.0})
    assert one == 2.0
    assert np.isnan(none)


def test_each_arm_stands_beside_the_random_subset_of_its_size(tmp_path: Path) -> None:
    rows = []
    for seed, noise in enumerate((0.0, 0.1, -0.1)):
        rows += [
            row("contamination", "none", seed, 10 + noise, 0.5),
            row("contamination", "all", seed, 14 + noise, 0.5),
        ]
        rows += [row("contamination", RANDOM + "all", seed, 9 + noise, 0.5), row("scratch", "train part", seed, 30.0)]
        rows += [row("peft", "full", seed, 20.0 + noise), row("peft", "lora", seed, 18.0 + noise)]
    told = report.write(rows, tmp_path)
    assert "| 50% | all | 100 | 90, 0, 10 | 3 | 14.00 | +5.00 ± 0.00 | 8.00 | +2.50 ± 0.00 |" in told
    assert "| 50% | none | 100 | 90, 0, 10 | 3 | 10.00 |  | 6.00 |  |" in told
    assert "| lora | 3 | 18.00 (sd 0.10) | -2.00 ± 0.00 |" in told
    assert "### Scratch" in told
    assert (
        "1 of 1 filtered arms above their random subsets, 0 below; the others undecided. Seeds an arm: at least 3."
        in told
    )
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.MARKS[0]} old {report.MARKS[1]}\nafter\n")
    report.fill(page, told)
    assert page.read_text() == f"before\n{report.MARKS[0]}\n\n{told}\n\n{report.MARKS[1]}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(UserError, match="it has no <!-- tables -->"):
        report.fill(page, told)
    drawn = (tmp_path / report.PLOT).read_text()
    assert drawn.startswith("<?xml")
    report.write(rows, tmp_path)
    assert (tmp_path / report.PLOT).read_text() == drawn
