"""One bad week of a run: disks fill, processes die, a host dies and comes back; the kept set is that of a calm run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import manifest
from stages.storage import Store
from tests.e2e.world import IMAGES, STAGES, World, counts, tar_digests
from tests.webserver import WebServer, serving

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(1800)]

SHARE = 30
"""Rows at the host that dies."""


class Mortal:
    """A host that can be switched off and on again, at one address."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        self.server = WebServer(pages=pages, delay=0.1)
        self.life = ExitStack()
        self.wake()

    def wake(self) -> None:
        self.life.enter_context(serving(self.server))

    def die(self) -> None:
        self.life.close()


@pytest.fixture
def mortal(world: World) -> Iterator[Mortal]:
    """The host, and a recipe whose second source has rows there."""
    host = Mortal(world.server.pages)
    lines = [f"aerial photo {n}\t{host.server.url(f'/{n % IMAGES}.jpg?{n}')}\n" for n in range(SHARE)]
    (world.folder / "mortal.tsv").write_text("".join(lines))
    laion = {"name": "laion2b", "path": str(world.folder / "laion/*.parquet")}
    world.write_recipe(sources=[laion, {"name": "cc3m", "path": str(world.folder / "mortal.tsv")}])
    yield host
    host.die()
    world.write_recipe()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def kept(root: Path) -> dict[str, set[str]]:
    """By stage, the keys that it kept."""
    found = {}
    for stage in STAGES[:-1]:
        outputs = manifest.load(Store(str(root)), stage)
        assert outputs is not None
        parts = [
            pq.read_table(root / file.path, columns=["key", "status"])
            for file in outputs.outputs
            if file.kind == "part"
        ]
        table = pa.concat_tables(parts).to_pylist()
        found[stage] = {row["key"] for row in table if row["status"] == "kept"}
    return found


def kill_fetcher() -> bool:
    """Kill a worker that fetches, if there is one."""
    for process in psutil.process_iter(["cmdline"]):
        if "ray::fetch" in " ".join(process.info["cmdline"] or ()):
            process.kill()
            return True
    return False


def run_while_the_host_dies(world: World, root: Path, mortal: Mortal) -> None:
    """A run that loses a worker and the host in the middle of its fetches; it ends well, without that host's rows."""
    run = subprocess.Popen(world.command(root), env=world.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    asked, worker_killed, host_dead = mortal.server.images_asked(), False, False
    while run.poll() is None:
        if not host_dead and mortal.server.images_asked() > asked:
            mortal.die()
            host_dead = True
        worker_killed = worker_killed or (host_dead and kill_fetcher())
        time.sleep(0.02)
    assert run.stderr is not None
    assert run.returncode == 0, run.stderr.read().decode()
    assert worker_killed
    assert host_dead


def test_a_run_with_every_fault_keeps_what_a_calm_one_keeps(
    world: World, mortal: Mortal, disk: Path, tmp_path: Path
) -> None:
    calm, root = tmp_path / "calm", disk / "root"
    world.run(calm)
    assert counts(calm, "download")["cc3m"] == {"in": SHARE, "kept": SHARE, "dropped": {}}
    assert "disk is full" in world.run(root, code=1)
    resize(disk, "100m")
    run_while_the_host_dies(world, root, mortal)
    lost = counts(root, "download")["cc3m"]["dropped"]
    assert set(lost) <= {"connect", "timeout", "host_down"}
    assert sum(lost.values()) > 0
    mortal.wake()
    for stage in STAGES[1:]:
        world.kill_in(root, stage, "--retry-failed")
    resize(disk, f"{used(disk) // 1024 + 100}k")
    world.run(root, "--retry-failed", "--set", "stages.shards.count=3", code=1)
    resize(disk, "100m")
    world.run(root, "--retry-failed")
    assert kept(root) == kept(calm)
    assert tar_digests(root) == tar_digests(calm)
    verify = [sys.executable, "-m", "curation.verify", "--root", str(root)]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0


def used(folder: Path) -> int:
    """Bytes in use on the disk of a folder."""
    return psutil.disk_usage(str(folder)).used
