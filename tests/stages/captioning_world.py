"""Images with records, and tiny models of the real classes: what the tests of captions share."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curation.manifest import Manifest
from stages.captioning.ranker import RankConfig, RerankConfig
from stages.captions import CaptionsConfig, CaptionsStage
from stages.schema import COMMON, DEDUP, INGEST, extend
from tests.harness import give_input, read_output, run_stage

SCHEMA = extend(COMMON, INGEST, DEDUP)
BROKEN = b"\xff\xd8\xff\xe0 this is no JPEG"
RECORD: dict[str, Any] = {
    "labels": ["airport"],
    "country": "Brazil",
    "place": "Cuiabá",
    "season": "winter",
    "month": 7,
    "year": 2015,
    "gsd_m": 0.5,
    "platform": "WorldView-2",
}


def picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((80 + seed % 50, 90), Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
    return out.getvalue()


def give(
    root: Path, bodies: list[bytes], records: list[dict[str, Any]] | None = None, parts: int = 2, **columns: Any
) -> list[str]:
    """Images in one file with rows pointing at them, as the output of dedup; returns the keys."""
    (root / "ingest").mkdir(parents=True, exist_ok=True)
    (root / "ingest" / "images-0.tar").write_bytes(b"".join(bodies))
    rows: list[dict[str, Any]] = []
    offset = 0
    for number, body in enumerate(bodies):
        rows.append(
            {
                "key": hashlib.md5(body).hexdigest(),
                "source": "scenes",
                "url": f"{number}.jpg",
                "status": "kept",
                "sha256": hashlib.sha256(body).hexdigest(),
                "image": {"tar": "ingest/images-0.tar", "offset": offset, "size": len(body)},
                **(records[number] if records else RECORD),
                **columns,
            }
        )
        offset += len(body)
    tables = [pa.Table.from_pylist(rows[part::parts], schema=SCHEMA) for part in range(parts)]
    give_input(root, "dedup", tables)
    return [row["key"] for row in rows]


def config(models: Path, **changes: Any) -> CaptionsConfig:
    options: dict[str, Any] = {
        "model": str(models / "blip2"),
        "candidates": 6,
        "max_tokens": 10,
        "batch_size": 4,
        "rank": RankConfig(model=str(models / "clip"), keep=4, batch_size=4),
        "rerank": RerankConfig(model=str(models / "clip2"), keep=2, batch_size=4),
    }
    return CaptionsConfig(**options | changes)


def run(root: Path, settings: CaptionsConfig, **options: Any) -> tuple[dict[str, dict[str, Any]], Manifest]:
    """(rows by key, the manifest)."""
    stage = CaptionsStage(settings)
    stage.check()
    written = run_stage(stage, root, "dedup", sources=["scenes"], **options)
    return {row["key"]: row for row in read_output(root, written).to_pylist()}, written


def texts(row: dict[str, Any]) -> list[str]:
    return [candidate["text"] for candidate in row["candidates"]]
