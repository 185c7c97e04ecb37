"""The arms: what of a pool a model is trained on. The pipeline makes the filtered ones, each by its own recipe."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

PORT = 18_790
"""Keys depend on URLs, and URLs on the port."""
NONE, ALL = "none", "all"
ARMS = {
    NONE: (),
    "keywords": ("keywords",),
    "dedup": ("dedup",),
    "vlm": ("vlm",),
    "detector": ("detector",),
    "detector new to AID": ("unseen",),
    ALL: ("keywords", "dedup", "vlm", "detector"),
    "all but keywords": ("dedup", "vlm", "detector"),
}
"""By name: what filters."""
ABLATED = 0.5
"""The level at which every arm is made; at the others `none` and `all` are."""


def arms_at(level: float) -> list[str]:
    """The arms of a level."""
    return list(ARMS) if level == ABLATED else [NONE, "all"]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server for a folder's files on a loopback address; yields the base of their URLs."""
    handler = partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{PORT}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *values: Any) -> None:
        """Tell nothing."""


def recipe(name: str, rows: Path, models: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's recipe for an arm.

    Args:
        name: of `ARMS`.
        rows: a TSV of URLs and captions.
        models: `everything` (a keyword pack that every text hits), `vlm`, `detector` and `unseen` (a detector that
            never saw AID; folders), `prompts`, and `at_least` (the VLM's threshold).
    """
    uses = ARMS[name]
    stages: dict[str, Any] = {
        "keywords": {"pack": "rs5m" if "keywords" in uses else str(models["everything"])},
        "download": {"allow_private": ["127.0.0.0/8"], "per_host": 32},
    }
    if "dedup" in uses:
        stages["dedup"] = {"radius": 2}
    scorers: dict[str, Any] = {}
    keep: dict[str, Any] = {"vlm": None, "detector": None}
    if "vlm" in uses:
        scorers["vlm"] = {"model": str(models["vlm"]), "prompts": str(models["prompts"])}
        keep["vlm"] = {"at_least": models["at_least"]}
    for detector in {"detector", "unseen"} & set(uses):
        scorers["detector"] = {"model": str(models[detector])}
        keep["detector"] = {"at_least": 0.5}
    if scorers:
        stages["outliers"] = {**scorers, "keep": keep}
    stages["shards"] = {"count": 4, "val_fraction": 0.0}
    source = {"name": "pool", "format": "tsv", "path": str(rows), "columns": {"url": "url", "caption": "caption"}}
    source["options"] = {"names": ["url", "caption"]}
    return {"name": "proof", "subset": "proof", "seed": 1, "sources": [source], "stages": stages}


@contextmanager
def cluster() -> Iterator[None]:
    """One Ray for all runs within, since to start it takes longer than they do."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()


def curate(described: Mapping[str, Any], root: Path, place: Path) -> Path:
    """Run the pipeline, as a user would; returns the folder of the tars, below `place`.

    Runs may share a root: what an earlier recipe fetched and scored is adopted.

    Raises:
        RuntimeError: it failed; the message is its own.
    """
    import yaml

    shards = place / "shards"
    if shards.exists():
        return shards / "train"
    place.mkdir(parents=True, exist_ok=True)
    (place / "recipe.yaml").write_text(yaml.safe_dump(dict(described), sort_keys=False))
    command = [sys.executable, "-m", "curation.run", str(place / "recipe.yaml"), "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{place}: {done.stderr.strip().splitlines()[-1]}")
    half = place / "shards.part"
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(root / "shards", half)
    half.rename(shards)
    return shards / "train"


def keys_of(shards: Path) -> dict[str, str]:
    """URL of every sample by key, from the passports."""
    found: dict[str, str] = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    passport = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    found[member.name.removesuffix(".json")] = passport["url"]
    return found
