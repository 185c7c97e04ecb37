"""The whole recipe as users run it: processes that end, are killed, resume and grow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import S3, SECRET
from tests.e2e.world import STAGES, World, counts, tar_digests

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_the_sums_hold_and_the_report_lies_there(calm: Path) -> None:
    report = json.loads((calm / "report/report.json").read_text())
    total = report["funnel"][-1]
    assert total["name"] == "Total"
    assert total["amount"] == 402 + 24
    assert total["after_keyword_filtering"] == 134 + 2 + 24
    assert total["invalid_image"] == 1
    removed = sum(total[c] for c in ("invalid_image", "duplicate_image", "outlier_image", "other_removed"))
    assert total["download_image"] - removed == total["remain"]
    assert counts(calm, "download")["laion2b"]["dropped"] == {"http_error": 1, "truncated": 1}
    assert (calm / "report/index.html").stat().st_size > 1000
    verify = subprocess.run(
        [sys.executable, "-m", "curation.verify", "--root", calm], capture_output=True, text=True, check=False
    )
    assert verify.returncode == 0, verify.stdout + verify.stderr


def test_a_second_run_does_nothing(world: World, calm: Path) -> None:
    asked = world.server.images_asked()
    before = (calm / "shards/manifest.json").read_bytes()
    said = world.run(calm)
    assert [f"{stage}: up to date" in said for stage in STAGES] == [True] * len(STAGES)
    assert world.server.images_asked() == asked
    assert (calm / "shards/manifest.json").read_bytes() == before


def test_a_forced_stage_is_run_again_and_what_follows_stays(world: World, calm: Path, copy: Path) -> None:
    said = world.run(copy, "--force", "dedup")
    assert "dedup: to run (forced)" in said
    assert "shards: up to date" in said
    assert tar_digests(copy) == tar_digests(calm)


@pytest.mark.soak
def test_another_root_gets_the_same_tars(world: World, calm: Path, tmp_path: Path) -> None:
    world.run(tmp_path / "again", env=world.env | {"PYTHONHASHSEED": "7"})
    assert tar_digests(tmp_path / "again") == tar_digests(calm)


def test_a_run_killed_in_the_download_resumes_under_an_edited_recipe(world: World, calm: Path, tmp_path: Path) -> None:
    """The killed run had other options: nothing of it may be mixed in."""
    root = tmp_path / "root"
    assert world.kill_in(root, "download", "--set", "stages.dedup.radius=0", "--set", "stages.download.max_bytes=9000")
    world.run(root)
    assert tar_digests(root) == tar_digests(calm)


def test_a_run_killed_in_the_shards_resumes_to_the_same_tars(world: World, calm: Path, copy: Path) -> None:
    shutil.rmtree(copy / "shards")
    assert world.kill_in(copy, "shards"), "the shards were over before the run could be killed"
    world.run(copy)
    assert tar_digests(copy) == tar_digests(calm)


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
def test_killed_twice_in_every_stage(world: World, calm: Path, tmp_path: Path, stage: str) -> None:
    root = tmp_path / "root"
    assert world.kill_in(root, stage)
    world.kill_in(root, stage)
    world.run(root)
    assert tar_digests(root) == tar_digests(calm)


def test_a_new_source_costs_only_what_is_new(world: World, copy: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.parquet"
    table = pa.table({"link": [world.server.url(f"/copy-{n}.jpg") for n in (1, 3)], "alt": ["aerial photo"] * 2})
    pq.write_table(table, extra)
    scored = _scored(copy)
    asked = world.server.images_asked()
    original = world.recipe.read_text()
    recipe = yaml.safe_load(original)
    columns = {"url": "link", "caption": "alt"}
    recipe["sources"].append({"name": "mine", "format": "parquet", "columns": columns, "path": str(extra)})
    try:
        world.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
        plan = world.run(copy, "--plan")
        assert "keywords   to run: source mine is new; 426 rows to adopt, 2 to do" in plan
        world.run(copy)
    finally:
        world.recipe.write_text(original)
    assert world.server.images_asked() == asked + 2
    assert counts(copy, "download")["mine"] == {"in": 2, "kept": 2, "dropped": {}}
    added = json.loads((copy / "dedup/manifest.json").read_text())["summary"]["between"]["mine"]
    assert added["kept"] == sum(added["twins_of"].values()) == 1
    new = [path for path in _scored(copy) if path not in scored]
    assert [pq.read_metadata(path).num_rows for path in new] == [1], "one of the two images is no twin"


def test_another_threshold_scores_nothing_anew(world: World, copy: Path) -> None:
    scored = _scored(copy)
    plan = world.run(copy, "--set", "stages.outliers.keep.detector=0.5", "--plan")
    assert re.search(r"^outliers   to run: keep\.detector is 0\.5, was 0\.\d+; \d+ rows to adopt, 0 to do$", plan, re.M)
    world.run(copy, "--set", "stages.outliers.keep.detector=0.5")
    assert _scored(copy) == scored
    manifest = json.loads((copy / "outliers/manifest.json").read_text())
    assert manifest["config"]["keep"]["detector"] == 0.5


def _scored(root: Path) -> list[Path]:
    return sorted((root / "outliers").rglob("scores/*"))


def test_retry_failed_fetches_only_what_may_mend(world: World, tmp_path: Path) -> None:
    root = tmp_path / "root"
    world.write_recipe(
        stages={"keywords": {}, "download": {"allow_private": ["127.0.0.0/8"], "retries": 0, "timeout_s": 5}},
        sources=[{"name": "cc3m", "path": str(world.folder / "retry.tsv")}],
    )
    image = world.server.pages["/1.jpg"]
    server = world.server
    try:
        rows = [f"aerial view\t{server.url(path)}\n" for path in ("/1.jpg", "/gone.jpg", "/_/flaky/503/1/2.jpg")]
        (world.folder / "retry.tsv").write_text("".join(rows))
        world.run(root)
        assert counts(root, "download")["cc3m"]["dropped"] == {"http_error": 2}
        server.pages["/gone.jpg"] = image
        asked = server.images_asked()
        world.run(root, "--retry-failed")
        assert server.images_asked() == asked + 1
        assert counts(root, "download")["cc3m"] == {"in": 3, "kept": 2, "dropped": {"http_error": 1}}
        assert "download: up to date" in world.run(root)
    finally:
        server.pages.pop("/gone.jpg", None)
        world.write_recipe()


def test_two_runs_on_one_root(world: World, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = subprocess.Popen(world.command(root), env=world.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (root / "recipe.yaml").exists() and first.poll() is None:
            pass
        said = world.run(root, code=2)
        assert "is in use by another run" in said
        assert said.count("\n") == 1
    finally:
        first.kill()
        first.wait()


def test_sources_and_root_on_s3(world: World, calm: Path, s3: S3) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(**s3.options)
    for path in sorted((world.folder / "laion").iterdir()):
        fs.put(str(path), f"{s3.bucket}/laion/{path.name}")
    sources = [
        {"name": "laion2b", "path": s3.url("laion/*.parquet")},
        {"name": "cc3m", "path": str(world.folder / "cc3m.tsv")},
    ]
    try:
        world.write_recipe(sources=sources, storage_options={"s3": s3.options})
        world.run(s3.url("runs/one"))
        again = world.run(s3.url("runs/one"))
        assert "shards: up to date" in again
    finally:
        world.write_recipe()
    manifest = json.loads(fs.cat_file(f"{s3.bucket}/runs/one/shards/manifest.json"))
    tars = {file["path"]: file["sha256"] for file in manifest["outputs"] if file["kind"] == "tar"}
    assert tars == tar_digests(calm)
    for name in fs.find(f"{s3.bucket}/runs/one"):
        assert SECRET.encode() not in fs.cat_file(name), name
        assert b"AKIATESTKEY0123" not in fs.cat_file(name), name
