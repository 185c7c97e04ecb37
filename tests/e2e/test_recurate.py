"""An existing dataset in tars of both kinds, curated anew: the shipped recipe recurate as a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo.models import make_open_clip
from tests.e2e.head import Head
from tests.e2e.world import counts, jpeg, picture, tar_digests
from tests.stages.ingesting import tar

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(900)]
PLAIN, OLD = 30, 20
"""Samples of the two tars; the second has five pictures of the first, encoded once more."""
TWINS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of webdataset, one of RS5M, a large image to be cut, and a model."""
    folder = tmp_path_factory.mktemp("recurate")
    members: dict[str, bytes] = {}
    for number in range(PLAIN):
        said = {"labels": ["dam"], "latitude": 45.0 + number, "longitude": 9.0}
        members |= {
            f"{number:04d}.jpg": jpeg(picture(number)),
            f"{number:04d}.txt": f"a dam seen from above, number {number}".encode(),
            f"{number:04d}.json": json.dumps(said).encode(),
        }
    members["large.jpg"] = jpeg(picture(900, size=256))
    tar(folder / "plain.tar", members)
    older: dict[str, bytes] = {}
    for number in range(PLAIN - TWINS, PLAIN - TWINS + OLD):
        older |= {
            f"{number}.img_content": jpeg(picture(number), quality=70),
            f"{number}.img_name": f"old-{number}.jpg".encode(),
            f"{number}.caption": b"a dam",
        }
    tar(folder / "older.tar", older)
    make_open_clip(folder / "clip")
    return folder


def run(folder: Path, root: Path, env: dict[str, str], *more: str) -> str:
    changes = {
        "sources.old.path": folder / "*.tar",
        "sources.old.options": "{tile: {size: 128}}",
        "stages.outliers.vlm": f"{{model: {folder / 'clip'}}}",
        "stages.shards.count": 2,
        "stages.shards.val_fraction": 0.2,
    }
    settings = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "curation.run", "recurate", "--root", str(root), *settings, *more]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_tars_become_tars_once_more(folder: Path, ray_head: Head, tmp_path: Path) -> None:
    root = tmp_path / "root"
    run(folder, root, ray_head.env)
    images = PLAIN + OLD + 4
    assert counts(root, "ingest")["old"] == {"in": images, "kept": images, "dropped": {}}
    assert counts(root, "dedup")["old"]["dropped"] == {"duplicate_image": TWINS}
    kept = counts(root, "outliers")["old"]["kept"]
    assert kept == pytest.approx(0.9 * (images - TWINS), abs=1)
    report = json.loads((root / "report/report.json").read_text())
    assert report["funnel"][-1]["remain"] == kept
    assert {"Italy", "Germany", "Norway"} <= {place["name"] for place in report["places"]["countries"]}
    done = subprocess.run(
        [sys.executable, "-m", "curation.verify", "--root", str(root)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before = tar_digests(root)
    assert "up to date" in run(folder, root, ray_head.env, "--plan")
    run(folder, root, ray_head.env, "--force", "dedup")
    assert tar_digests(root) == before
