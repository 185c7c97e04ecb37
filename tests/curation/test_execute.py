"""Units on a real Ray cluster: failures, deaths, retries and resume."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from benchmarks.dedup import give_rows
from curation import commit
from curation.execute import UnitsFailed, run_phase
from curation.finish import finish
from curation.manifest import Manifest
from curation.progress import Display
from curation.workspace import StageRun
from stages.dedup import DedupConfig, DedupStage
from stages.storage import Store
from tests.harness import give_input, run_stage
from tests.toy import ToyConfig, ToyStage, numbers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def execute(root: Path, config: ToyConfig, fingerprint: str = "f" * 32) -> Manifest:
    stage = ToyStage(config)
    run = StageRun(store=Store(str(root)), stage="toy", fingerprint=fingerprint, input_stage="before")
    for phase in stage.phases():
        run_phase(run, phase, Display(StringIO()))
    return finish(run, stage, stage.phases(), {}, [], seconds=1, rows_done=0, device="test")


def output(root: Path, manifest: Manifest) -> list[int]:
    return [n for file in manifest.outputs for n in pq.read_table(root / file.path)["number"].to_pylist()]


def test_a_cluster_of_this_machine_alone_has_no_autoscaler() -> None:
    children = psutil.Process().children()
    commands = [" ".join(child.cmdline()) for child in children if child.status() != psutil.STATUS_ZOMBIE]
    assert any("/raylet" in command for command in commands), "Ray's processes are not this one's children"
    assert not any("autoscaler/_private/monitor.py" in command for command in commands)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    give_input(tmp_path, "before", [numbers(start, 10) for start in range(0, 50, 10)])
    return tmp_path


@pytest.mark.parametrize("model", [False, True])
def test_units_are_done_and_counted(root: Path, model: bool) -> None:
    done = execute(root, ToyConfig(model=model, drop_above=60))
    assert output(root, done) == [2 * n for n in range(50)]
    assert done.counts == {"s": {"in": 50, "kept": 31, "dropped": {"too_large": 19}}}


@pytest.mark.parametrize("model", [False, True])
def test_a_failing_unit_stops_no_other_and_leaves_nothing_behind(root: Path, model: bool) -> None:
    with pytest.raises(UnitsFailed, match="unit 00002: unit 00002 is broken by design"):
        execute(root, ToyConfig(model=model, broken=["00002"]))
    store = Store(str(root))
    assert [record.unit for record in commit.records(store, "toy", "f" * 32, "map")] == [
        "00000",
        "00001",
        "00003",
        "00004",
    ]
    assert not (root / "toy/manifest.json").exists()
    assert len(list((root / "toy").glob("part-*.parquet"))) == 4
    done = execute(root, ToyConfig(model=model))
    assert output(root, done) == [2 * n for n in range(50)]


def test_a_passing_failure_is_tried_again(root: Path) -> None:
    done = execute(root, ToyConfig(flaky=["00001"]))
    assert done.kept == 50
    assert not (root / "toy/flaky-00001").exists()


def test_a_worker_that_dies_is_replaced_and_the_unit_then_runs_carefully(root: Path) -> None:
    done = execute(root, ToyConfig(deadly=["00003"]))
    assert done.kept == 50


def test_results_of_another_fingerprint_are_swept_when_cheap(root: Path) -> None:
    first = execute(root, ToyConfig())
    second = execute(root, ToyConfig(drop_above=5), fingerprint="e" * 32)
    assert second.kept == 3
    assert not any((root / file.path).exists() for file in first.outputs)
    assert commit.runs(Store(str(root)), "toy") == ["e" * 32]


def test_dedup_dealt_to_units_writes_what_one_process_writes(tmp_path: Path) -> None:
    written = []
    for limit in (10**6, 10_000):
        root = tmp_path / str(limit)
        give_rows(root, 30_000, part=5_000)
        stage = DedupStage(DedupConfig(radius=3, partition_rows=limit))
        if limit == 10**6:
            written.append(run_stage(stage, root, "download", sources=["a", "b", "c"]))
            continue
        run = StageRun(
            store=Store(str(root)), stage="dedup", fingerprint="f", input_stage="download", sources=("a", "b", "c")
        )
        units = {phase.name: run_phase(run, phase, Display(StringIO())).units for phase in stage.phases()}
        assert units["pairs"] == 3 * 4
        written.append(finish(run, stage, stage.phases(), {}, [], seconds=1, rows_done=0, device="test"))
    one, dealt = written
    assert dealt.summary == one.summary
    assert one.counts["a"]["dropped"]["duplicate_image"] > 100
    assert [file.sha256 for file in dealt.outputs] == [file.sha256 for file in one.outputs]
