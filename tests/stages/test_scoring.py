"""Scoring on bad days: memory that runs out, images that kill their decoder, workers that die for good."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation import commit, worker
from curation.workspace import StageRun, UnitWorkspace
from stages import scoring
from stages.base import Unit
from stages.errors import UnitError
from stages.outliers import OutliersConfig, OutliersStage
from stages.scorers import Batches, DetectorConfig, DetectorScorer, Scores, VlmConfig
from stages.storage import Store
from stages.vision import Pixels
from tests.harness import run_phase, run_stage
from tests.stages.test_outliers import config, give, models, picture, run

__all__ = ["models"]


class Small:
    """A model with memory for so many images, which counts what it is asked."""

    def __init__(self, room: int, said: str = "CUDA out of memory. Tried to allocate 2 GiB") -> None:
        self.room, self.said = room, said
        self.asked: list[int] = []

    def __call__(self, images: Sequence[Pixels], captions: Sequence[str]) -> Scores:
        self.asked.append(len(images))
        if len(images) > self.room:
            raise RuntimeError(self.said)
        return {"score": np.array([float(image[0, 0, 0]) for image in images], np.float32)}


IMAGES = [np.full((2, 2, 3), number, np.uint8) for number in range(11)]


def test_out_of_memory_halves_the_batch_once(caplog: pytest.LogCaptureFixture) -> None:
    model = Small(room=4)
    batches = Batches(model, 16, "stages.outliers.vlm")
    for _ in range(2):
        scores = batches.score(IMAGES, [""] * 11, ["score"])
        assert scores["score"].to_pylist() == list(range(11))
    assert batches.size == 4
    assert model.asked == [16, 8, 4, 4, 4, 4, 4, 4]
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert [text.rpartition("batches have ")[2] for text in said] == ["8 images from now on", "4 images from now on"]


def test_a_model_that_fits_nothing_is_a_sentence() -> None:
    with pytest.raises(UnitError, match=r"stages\.outliers\.vlm: the model has no memory left for a single image"):
        Batches(Small(room=0), 4, "stages.outliers.vlm").score(IMAGES, [""] * 11, ["score"])


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Batches(Small(room=0, said="shapes cannot be multiplied"), 4, "here").score(IMAGES, [""] * 11, ["score"])


def test_a_smaller_shape_stands_in_the_manifest(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(tmp_path, [picture(seed) for seed in range(10)])
    load = DetectorScorer.load

    def cramped(self: DetectorScorer, preprocess: Any) -> Any:
        inner = load(self, preprocess)

        def small(images: Sequence[Pixels], captions: Sequence[str]) -> Scores:
            if len(images) > 2:
                raise MemoryError
            return inner(images, captions)

        return small

    monkeypatch.setattr(DetectorScorer, "load", cramped)
    _, written = run(tmp_path, config(models, vlm=None))
    [warning] = written.summary["warnings"]
    assert warning.startswith("stages.outliers.detector: batches of 8 images did not fit into memory")
    assert warning.endswith("set batch_size: 2")


def kill_at(preprocess: Any, data: bytes) -> bytes | None:
    """What a decoder does that meets its end, in the child."""
    if data == picture(2):
        os._exit(9)
    return next(scoring.decoded(preprocess, [data]))


def test_an_image_that_kills_its_decoder_is_unscorable(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(tmp_path, [picture(seed) for seed in range(4)], parts=1)
    stage = OutliersStage(config(models, vlm=None))
    settings = StageRun(store=Store(str(tmp_path)), stage="outliers", fingerprint="f", input_stage="dedup")
    plan, score, *_ = stage.phases()
    run_phase(settings, plan)
    monkeypatch.setattr(scoring, "decoded_one", kill_at)
    [unit] = score.cut(UnitWorkspace(settings, score.name, Unit(id="cut")))
    plain = score.prepare(unit, UnitWorkspace(settings, score.name, unit))
    careful = score.prepare(unit, UnitWorkspace(settings, score.name, unit, careful=True))
    assert [each.is_valid for each in careful["pixels"]] == [True, True, False, True]
    for row in (0, 1, 3):
        assert careful["pixels"][row] == plain["pixels"][row]


def test_deaths_lead_to_care_and_then_to_an_end(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(1)])
    stage = OutliersStage(config(models, vlm=None))
    settings = StageRun(store=Store(str(tmp_path)), stage="outliers", fingerprint="f", input_stage="dedup")
    plan, score, *_ = stage.phases()
    run_phase(settings, plan)
    [unit] = score.cut(UnitWorkspace(settings, score.name, Unit(id="cut")))
    for death in range(worker.LAST_DEATH):
        with worker.attempted(settings, score, unit) as deaths:
            assert deaths == death
        worker._mark_attempt(settings, score, unit)
    outcome = worker.do_unit(settings, score, unit, None)
    assert outcome.error is not None
    assert "its worker died 8 times" in outcome.error
    with worker.attempted(settings, score, unit) as deaths:
        assert deaths == 0
    assert not commit.records(settings.store, "outliers", "f", score.name)


def test_nan_for_one_image_is_unscorable(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = give(tmp_path, [picture(seed) for seed in range(4)])
    load = DetectorScorer.load

    def moody(self: DetectorScorer, preprocess: Any) -> Any:
        inner = load(self, preprocess)

        def scores(images: Sequence[Pixels], captions: Sequence[str]) -> Scores:
            found = inner(images, captions)
            found["detector_score"][1] = found["detector_logit"][1] = np.nan
            return found

        return scores

    monkeypatch.setattr(DetectorScorer, "load", moody)
    found, written = run(tmp_path, config(models, vlm=None))
    assert written.counts["web"]["dropped"]["unscorable"] == 1
    assert sum(found[key]["reason"] == "unscorable" for key in keys) == 1


def test_bf16_is_near_fp32(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(seed) for seed in range(6)])
    scores = {}
    for precision in ("fp32", "bf16"):
        detector = DetectorConfig(model=str(models / "detector"), precision=precision)  # type: ignore[arg-type]
        vlm = VlmConfig(model=str(models / "clip"), precision=precision)  # type: ignore[arg-type]
        written = run_stage(OutliersStage(OutliersConfig(vlm=vlm, detector=detector)), tmp_path, "dedup")
        parts = [pq.read_table(tmp_path / file.path) for file in written.outputs if file.kind == "part"]
        scores[precision] = np.concatenate([part["vlm_score"].to_numpy() for part in parts])
    np.testing.assert_allclose(scores["bf16"], scores["fp32"], atol=0.02)
    assert not np.array_equal(scores["bf16"], scores["fp32"])
