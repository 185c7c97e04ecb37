"""What goes wrong around a run: full disks, lost workers, foreign roots, a cluster of two nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.head import Head
from tests.e2e.world import World, counts, tar_digests

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing(world: World, calm: Path, small_disk: Path) -> None:
    said = world.run(small_disk / "root", code=1)
    last = said.strip().splitlines()[-1]
    assert last.startswith("failed: ")
    assert "disk is full" in last
    assert "to resume: python -m curation.run" in last
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    world.run(small_disk / "root")
    assert tar_digests(small_disk / "root") == tar_digests(calm)


def test_a_worker_killed_in_the_middle_is_survived(
    world: World, calm: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy
    shutil.rmtree(root / "download")
    monkeypatch.setattr(world.server, "delay", 0.5)  # so that there is a middle
    before = world.server.images_asked()
    run = subprocess.Popen(world.command(root), env=world.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    killed = 0
    while run.poll() is None and not killed:
        if world.server.images_asked() > before:
            workers = [
                process
                for process in psutil.process_iter(["cmdline"])
                if "ray::fetch" in " ".join(process.info["cmdline"] or ())
            ]
            for process in workers[:1]:
                process.kill()
                killed += 1
        time.sleep(0.05)
    _, err = run.communicate()
    assert run.returncode == 0, err.decode()
    assert killed
    assert tar_digests(root) == tar_digests(calm)


def test_empty_sources_run_to_the_end(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    schema = pa.schema([("URL", pa.string()), ("TEXT", pa.string())])
    pq.write_table(schema.empty_table(), folder / "empty.parquet")
    pq.write_table(pa.table([[None] * 5, [None] * 5], schema=schema), folder / "nulls.parquet")
    (folder / "empty.tsv").write_bytes(b"")
    sources = [{"name": "laion2b", "path": str(folder / "*.parquet")}, {"name": "cc3m", "path": str(folder / "*.tsv")}]
    try:
        world.write_recipe(sources=sources)
        said = world.run(tmp_path / "root")
    finally:
        world.write_recipe()
    assert counts(tmp_path / "root", "keywords")["laion2b"] == {"in": 5, "kept": 0, "dropped": {"no_url": 5}}
    assert counts(tmp_path / "root", "shards") == {}
    assert "report: " in said
    assert (tmp_path / "root/report/index.html").exists()


def test_roots_of_other_versions_are_refused(world: World, calm: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "keywords").mkdir(parents=True)
    manifest = json.loads((calm / "keywords/manifest.json").read_text())
    for version in (0, 99):
        (root / "keywords/manifest.json").write_text(json.dumps(manifest | {"schema_version": version}))
        said = world.run(root, code=2)
        assert f"has schema_version {version}, this program reads 1" in said
        assert said.count("\n") == 1
    (root / "keywords/manifest.json").write_text("{")
    assert "is no manifest" in world.run(root, code=2)


def test_a_manifest_edited_by_hand_is_found(copy: Path) -> None:
    path = copy / "dedup/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"]["laion2b"]["kept"] += 1
    path.write_text(json.dumps(manifest))
    command = [sys.executable, "-m", "curation.verify", "--root", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "dedup" in done.stdout + done.stderr


def test_ray_job_submit(world: World, calm: Path, copy: Path, ray_head: Head) -> None:
    shutil.rmtree(copy / "dedup")
    shutil.rmtree(copy / "shards")
    env = {key: value for key, value in ray_head.env.items() if key != "RAY_ADDRESS"}
    repository = Path(__file__).parents[2]
    command = ["ray", "job", "submit", "--working-dir", ".", "--", sys.executable, "-m", "curation.run"]
    command += [str(world.recipe), "--root", str(copy)]
    done = subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert tar_digests(copy) == tar_digests(calm)


def test_two_nodes(world: World, calm: Path, copy: Path, ray_head: Head) -> None:
    ray_head.add_node(1)
    shutil.rmtree(copy / "download")
    shutil.rmtree(copy / "shards")
    world.run(copy)
    assert tar_digests(copy) == tar_digests(calm)
    assert "on 2 nodes" in json.loads((copy / "shards/manifest.json").read_text())["device"]


def test_a_root_that_a_node_does_not_see_is_named(world: World, tmp_path: Path, ray_head: Head) -> None:
    """A mount of the driver's own hides its root from the workers, which were there before."""
    script = f"mount -t tmpfs tmpfs {tmp_path} && exec " + " ".join(world.command(tmp_path / "root"))
    if os.geteuid() != 0:
        pytest.skip("no right to mount")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], env=world.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"does not see {tmp_path}/root" in done.stderr
