"""Tars of the shards stage in both layouts, which other people's tools then read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.shards import ShardsConfig, ShardsStage
from tests.harness import run_stage
from tests.stages.test_shards import make_root, sample

SAMPLES = 24
FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff")


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Four of every format; texts beyond ASCII; passports that do not all say the same."""
    said: list[dict[str, Any]] = [{}, {"licence": "CC BY"}, {"keywords": ["aerial view"], "vlm_score": None}]
    return [sample(n, format=FORMATS[n % len(FORMATS)], **said[n % 3]) for n in range(SAMPLES)]


def packed(root: Path, rows: list[dict[str, Any]], layout: str) -> Path:
    """The shards' folder: two tars of each split."""
    make_root(root, [dict(row) for row in rows])
    config = ShardsConfig(count=2, val_fraction=0.3, layout=layout)
    run_stage(ShardsStage(config), root, "dedup", subset="pub11")
    return root / "shards"


@pytest.fixture(scope="session")
def webdataset_shards(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    return packed(tmp_path_factory.mktemp("webdataset"), rows, "webdataset")


@pytest.fixture(scope="session")
def rs5m_shards(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    return packed(tmp_path_factory.mktemp("rs5m"), rows, "rs5m")
