"""A small world with all stages in it: two sources, a web server, tiny models; runs are real processes."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from demo.models import make_detector, make_open_clip
from tests.webserver import WebServer

IMAGES = 48
ROWS = 400
STAGES = ("keywords", "download", "dedup", "outliers", "shards")


def picture(number: int, size: int = 96) -> Image.Image:
    """A smooth random field: distinct numbers give distinct hashes."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@dataclass(frozen=True)
class World:
    """Files and a server; `recipe` is the path of the recipe that reads them."""

    folder: Path
    server: WebServer
    env: dict[str, str]

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def write_recipe(self, **changes: Any) -> None:
        """The standard recipe, some keys changed."""
        whole = {
            "name": "small",
            "seed": 1,
            "sources": [
                {"name": "laion2b", "path": str(self.folder / "laion/*.parquet")},
                {"name": "cc3m", "path": str(self.folder / "cc3m.tsv")},
            ],
            "stages": {
                "keywords": {"pack": "rs5m"},
                "download": {"allow_private": ["127.0.0.0/8"], "retries": 0, "timeout_s": 5},
                "dedup": {"radius": 2},
                "outliers": {
                    "detector": {"model": str(self.folder / "detector")},
                    "keep": {"detector": 0.8},
                },
                "shards": {"count": 2, "val_fraction": 0.2},
            },
        }
        self.recipe.write_text(yaml.safe_dump(whole | changes, sort_keys=False))

    def command(self, root: Path | str, *args: str) -> list[str]:
        return [sys.executable, "-m", "curation.run", str(self.recipe), "--root", str(root), *args]

    def run(self, root: Path | str, *args: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        """Run to the end; returns what was printed. The exit code must be `code`."""
        done = subprocess.run(
            self.command(root, *args), env=env or self.env, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def kill_in(self, root: Path, stage: str, *args: str) -> bool:
        """Start a run and `kill -9` it once `stage` has begun; False if the stage was over too soon."""
        process = subprocess.Popen(
            self.command(root, *args), env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while process.poll() is None:
                if (root / stage / ".units").exists() and any((root / stage / ".units").rglob("*.json")):
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    return not (root / stage / "manifest.json").exists()
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                process.kill()
        return False


def build(folder: Path, server: WebServer, env: dict[str, str]) -> World:
    """Two sources over `IMAGES` pictures: a third of the rows have a keyword; some URLs are dead, some are twins."""
    for number in range(IMAGES):
        server.pages[f"/{number}.jpg"] = jpeg(picture(number))
        server.pages[f"/copy-{number}.jpg"] = server.pages[f"/{number}.jpg"]
    server.pages["/broken.jpg"] = server.pages["/0.jpg"][:800]
    (folder / "laion").mkdir(parents=True, exist_ok=True)
    urls = [server.url(f"/{number % IMAGES}.jpg") for number in range(ROWS)]
    texts = [f"aerial view number {n}" if n % 3 == 0 else f"a cat number {n}" for n in range(ROWS)]
    urls += [server.url("/broken.jpg"), server.url("/none.jpg")]
    texts += ["satellite image of a delta", "satellite image of a dune"]
    table = pa.table({"URL": urls, "TEXT": texts, "punsafe": [0.01] * len(urls)})
    pq.write_table(table.slice(0, 250), folder / "laion/part-0.parquet")
    pq.write_table(table.slice(250), folder / "laion/part-1.parquet")
    lines = [f"satellite photo {n}\t{server.url(f'/copy-{n}.jpg')}\n" for n in range(0, IMAGES, 2)]
    (folder / "cc3m.tsv").write_text("".join(lines))
    make_open_clip(folder / "clip")
    make_detector(folder / "detector")
    world = World(folder, server, env)
    world.write_recipe()
    return world


def tar_digests(root: Path) -> dict[str, str]:
    """Name and sha256 of every tar that the shards' manifest names."""
    manifest = json.loads((root / "shards/manifest.json").read_text())
    return {file["path"]: file["sha256"] for file in manifest["outputs"] if file["kind"] == "tar"}


def counts(root: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((root / stage / "manifest.json").read_text())["counts"])
