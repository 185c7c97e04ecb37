from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.detector.conftest import ONE
from trainer.detector.batches import DRAWN, read_pool
from trainer.detector.config import Config, load
from trainer.detector.leave_out import curve, full, leave_out, rotation
from trainer.detector.negatives import KINDS


def test_the_rotation_leaves_out_every_source_and_kind() -> None:
    config = load(None)
    runs = rotation(config)
    assert len(runs) == 12
    left = [source for run in runs for source in (*run.rs.sources, *run.photo.sources)]
    assert set(left) == set(config.sources)
    otb = [run.rs.sources for run in runs if run.rs.name == "otb"]
    assert otb == [tuple(name for name, source in config.sources.items() if source.kin == "otb")]
    assert len(otb[0]) == 5
    kinds = [kind for run in runs for kind in run.drawn]
    assert sorted(kinds) == sorted(DRAWN + kind for kind in KINDS)


def test_the_full_design_has_every_pair_once() -> None:
    pairs = {(run.rs.name, run.photo.name) for run in full(load(None))}
    assert len(pairs) == len(full(load(None))) == 11 * 12


def test_the_curve_adds_sources_and_judges_the_same_pair() -> None:
    runs = curve(load(None))
    assert [len(run.absent) for run in runs] == [50, 47, 32, 11, 0]
    assert {(run.rs.name, run.photo.name) for run in runs} == {("aid", "flickr8k")}
    assert not any(set(run.unseen) & set(run.absent) for run in runs)
    assert len({run.name for run in runs}) == len(runs)


def test_runs_are_judged_on_what_they_never_saw_and_taken_up_again(
    toy: Config, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(toy, training=replace(toy.training, steps=2))
    pool = read_pool(config, toy_data)
    *begun, found = leave_out(pool, config, "rotation", tmp_path, tmp_path / "prepared", ONE)
    assert [len(part["runs"]) for part in begun] == list(range(1, len(found["runs"])))
    assert [(run["rs"], run["photo"]) for run in found["runs"]] == [("fields", "people"), ("roofs", "pets")]
    first = found["runs"][0]
    assert first["unseen_sources"]["fields"]["images"] == 24
    assert first["unseen"]["images"] == 24 + 24 + len(first["drawn"])
    assert set(first["pairs"]) == {"people", "pets", "drawn"}
    assert set(found["overall"]["least_by_source"]) == {"fields", "roofs", "people", "pets"} | {
        DRAWN + k for k in KINDS
    }
    capsys.readouterr()
    assert list(leave_out(pool, config, "rotation", tmp_path, tmp_path / "prepared", ONE))[-1] == found
    assert "leaving out" not in capsys.readouterr().err
    json.dumps(found, allow_nan=False)
