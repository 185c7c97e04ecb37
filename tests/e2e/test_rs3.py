"""Labelled scenes become shards: the shipped recipe rs3 as a real process, with tiny models of the real classes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from demo.captioner import make_blip2
from demo.models import make_open_clip
from tests.e2e.head import Head, start_head
from tests.e2e.world import counts, tar_digests
from tests.stages.ingesting import fmow_chip, fmow_record, picture, polygon
from tests.stages.test_ingest_bigearthnet import patch

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(1800)]
CHIPS = 8
UNLABELLED = 130
"""Images without labels: with the rest, three units of candidates."""
SAMPLES = CHIPS + 1 + UNLABELLED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fMoW chips of Australia, one patch of BigEarthNet, images without labels, and models."""
    folder = tmp_path_factory.mktemp("rs3")
    for number in range(CHIPS):
        record = fmow_record(raw_location=polygon(141.5 + number, -35.30))
        fmow_chip(folder / "fmow/train", f"dam_{number}_0_rgb", number, record)
    fmow_chip(folder / "fmow/train", "dam_90_0_rgb", 90, None)
    patch(folder / "ben")
    for number in range(UNLABELLED):
        picture(folder / f"millionaid/test/P{number:07d}.jpg", 100 + number)
    make_blip2(folder / "blip2")
    make_open_clip(folder / "clip")
    make_open_clip(folder / "clip2", seed=1)
    return folder


def command(folder: Path, root: Path, *more: str) -> list[str]:
    changes = {
        "sources.fmow.path": folder / "fmow/train",
        "sources.bigearthnet.path": folder / "ben",
        "sources.millionaid.path": folder / "millionaid/test",
        "stages.captions.model": folder / "blip2",
        "stages.captions.candidates": 5,
        "stages.captions.max_tokens": 8,
        "stages.captions.rank": f"{{model: {folder / 'clip'}, keep: 4}}",
        "stages.captions.rerank": f"{{model: {folder / 'clip2'}, keep: 2}}",
        "stages.shards.count": 1,
        "stages.shards.val_fraction": 0.3,
    }
    settings = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "curation.run", "rs3", "--root", str(root), *settings, *more]


def run(folder: Path, root: Path, env: dict[str, str], *more: str) -> str:
    done = subprocess.run(command(folder, root, *more), env=env, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(folder: Path, ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished") / "root"
    run(folder, root, ray_head.env)
    return root


def passports(root: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((root / "shards").rglob("*.tar")):
        with tarfile.open(path) as archive:
            members = [member for member in archive.getmembers() if member.name.endswith(".json")]
            found += [json.load(archive.extractfile(member)) for member in members]  # type: ignore[arg-type]
    return found


def test_every_scene_is_captioned_with_facts_that_are_its_own(finished: Path) -> None:
    assert counts(finished, "ingest")["fmow"] == {"in": 9, "kept": 8, "dropped": {"bad_metadata": 1}}
    assert {source: entry["kept"] for source, entry in counts(finished, "shards").items()} == {
        "bigearthnet": 1,
        "fmow": CHIPS,
        "millionaid": UNLABELLED,
    }
    for sample in passports(finished):
        first, *facts = sample["caption_parts"]
        told = " ".join(part["text"] for part in facts)
        assert first["origin"] == "generated"
        assert sample["caption_tokens"] <= 77
        assert len(sample["candidates"]) == 5
        if sample["source"] == "fmow":
            assert "dam" in told
            assert "Australia" in told
            assert "summer" not in told, "July is winter there"
        if sample["source"] == "millionaid":
            assert told == ""
            assert "meta_caption" not in sample


def test_the_report_and_the_checks_know_the_stage(finished: Path) -> None:
    report = json.loads((finished / "report/report.json").read_text())
    assert report["funnel"][-1]["remain"] == SAMPLES
    assert {row["source"] for row in report["captions"]["sources"]} == {"bigearthnet", "fmow", "millionaid"}
    verify = [sys.executable, "-m", "curation.verify", "--root", str(finished)]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_killed_while_captioning_ends_in_the_same_tars(
    folder: Path, finished: Path, ray_head: Head, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(finished, root)
    for name in ("captions", "shards"):
        shutil.rmtree(root / name)
    process = subprocess.Popen(
        command(folder, root), env=ray_head.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list((root / "captions").glob(".units/*/generate/*.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (root / "captions/manifest.json").exists(), "captions were over before the run could be killed"
    before = commits(root)
    assert before, "what was committed before the kill"
    run(folder, root, ray_head.env)
    after = commits(root)
    assert len(after) == 3
    assert before.items() <= after.items(), "committed candidates are not written again"
    assert tar_digests(root) == tar_digests(finished)


def commits(root: Path) -> dict[str, int]:
    """When each unit of candidates was committed."""
    found = (root / "captions").glob(".units/*/generate/*.json")
    return {path.name: path.stat().st_mtime_ns for path in found}


def test_one_worker_writes_what_two_do(folder: Path, finished: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as place:
        alone = start_head(Path(place), cpus=1)
        try:
            run(folder, tmp_path / "root", alone.env)
        finally:
            alone.stop()
    assert tar_digests(tmp_path / "root") == tar_digests(finished)


def test_another_pick_reruns_no_model(folder: Path, finished: Path, ray_head: Head, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(finished, root)
    plan = run(folder, root, ray_head.env, "--set", "stages.captions.compose=paper", "--plan")
    assert f"{SAMPLES} rows to adopt, 0 to do" in plan
    run(folder, root, ray_head.env, "--set", "stages.captions.compose=paper")
    summary = json.loads((root / "captions/manifest.json").read_text())["summary"]
    assert summary["generated"] == 0
    fmow = [sample for sample in passports(root) if sample["source"] == "fmow"]
    assert all(sample["caption_parts"][0]["origin"] == "metadata" for sample in fmow)
