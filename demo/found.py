"""What a finished run of images holds, by URL: rows of a stage, passports of the shards."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def rows(run: Path, stage: str) -> dict[str, dict[str, Any]]:
    """The rows of a stage, by URL."""
    manifest = json.loads((run / stage / "manifest.json").read_text())
    parts = [run / output["path"] for output in manifest["outputs"] if output["kind"] == "part"]
    return {row["url"]: row for part in parts for row in pq.read_table(part).to_pylist()}


def passports(run: Path) -> dict[str, dict[str, Any]]:
    """What the shards say of each sample, by URL."""
    found = {}
    for path in sorted((run / "shards").rglob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                if member.name.endswith(".json") and file is not None:
                    passport = json.load(file)
                    found[passport["url"]] = passport
    return found


def compare(url: str, found: dict[str, Any] | None, expected: dict[str, Any]) -> list[str]:
    """A sentence for each value that is not the expected one."""
    if found is None:
        return [f"{url}: it is not in the table"]
    return [
        f"{url}: {name} is {found.get(name)!r}, not {value!r}"
        for name, value in expected.items()
        if found.get(name) != value
    ]
