"""The whole recipe as users run it: processes that end, are killed, resume and grow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import S3, SECRET
from tests.e2e.conftest import Head
from tests.e2e.world import STAGES, World, build, counts, tar_digests
from tests.webserver import serving

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ray_head: Head) -> Iterator[World]:
    with serving() as server:
        yield build(tmp_path_factory.mktemp("world"), server, ray_head.env)


@pytest.fixture(scope="module")
def calm(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("calm") / "root"
    world.run(root)
    return root


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


def test_another_root_gets_the_same_tars(world: World, calm: Path, tmp_path: Path) -> None:
    said = world.run(tmp_path / "again", env=world.env | {"PYTHONHASHSEED": "7"})
    assert tar_digests(tmp_path / "again") == tar_digests(calm)
    assert re.search(r"download.*rows", said)


@pytest.mark.parametrize("stage", ["download", "shards"])
def test_a_killed_run_resumes_to_the_same_tars(world: World, calm: Path, tmp_path: Path, stage: str) -> None:
    root = tmp_path / "root"
    assert world.kill_in(root, stage), f"{stage} was over before it could be killed"
    world.run(root)
    assert tar_digests(root) == tar_digests(calm)


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_every_stage_and_again(world: World, calm: Path, tmp_path: Path, stage: str) -> None:
    root = tmp_path / "root"
    assert world.kill_in(root, stage)
    world.kill_in(root, stage)
    world.run(root)
    assert tar_digests(root) == tar_digests(calm)


def test_an_edited_recipe_mixes_nothing(world: World, calm: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    world.kill_in(root, "download", "--set", "stages.dedup.radius=0", "--set", "stages.download.max_bytes=1000")
    world.run(root)
    assert tar_digests(root) == tar_digests(calm)


def test_a_new_source_costs_only_what_is_new(world: World, calm: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    world.run(root)
    asked = world.server.images_asked()
    extra = tmp_path / "extra.parquet"
    table = pa.table({"link": [world.server.url(f"/copy-{n}.jpg") for n in (1, 3)], "alt": ["aerial photo"] * 2})
    pq.write_table(table, extra)
    original = world.recipe.read_text()
    recipe = yaml.safe_load(original)
    columns = {"url": "link", "caption": "alt"}
    recipe["sources"].append({"name": "mine", "format": "parquet", "columns": columns, "path": str(extra)})
    try:
        world.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
        plan = world.run(root, "--plan")
        assert "keywords   to run: source mine is new; 426 rows to adopt, 2 to do" in plan
        world.run(root)
    finally:
        world.recipe.write_text(original)
    assert world.server.images_asked() == asked + 2
    assert counts(root, "download")["mine"] == {"in": 2, "kept": 2, "dropped": {}}


def test_another_threshold_scores_nothing_anew(world: World, calm: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    world.run(root)
    scores = sorted((root / "outliers").rglob("scores/*"))
    world.run(root, "--set", "stages.outliers.keep.vlm=0.5")
    assert sorted((root / "outliers").rglob("scores/*")) == scores
    manifest = json.loads((root / "outliers/manifest.json").read_text())
    assert manifest["config"]["keep"]["vlm"] == 0.5


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
