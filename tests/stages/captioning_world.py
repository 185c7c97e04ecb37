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
from demo.captioner import SIDE, new_tokenizer
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


def make_llava(folder: Path) -> Path:
    """A LLaVA of random weights: it is spoken to, with `<image>` where the image stands; returns the folder."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer, side = new_tokenizer(), {"height": SIDE, "width": SIDE}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=SIDE, patch_size=8, projection_dim=32, **SIZES),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **LANGUAGE, **SIZES),
        image_token_index=3,
        vision_feature_layer=-1,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return _saved(LlavaForConditionalGeneration, config, processor, folder)


def make_qwen2_vl(folder: Path) -> Path:
    """A Qwen2-VL of random weights, which sees images in as many pieces as they are large; returns the folder."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = new_tokenizer()
    marks = {f"{name}_token_id": f"<|{name}|>" for name in ("vision_start", "vision_end")}
    marks |= {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks.values())})
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            **LANGUAGE,
            **SIZES,
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "patch_size": 8},
        **{name: tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()},
    )
    images = Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=256, max_pixels=1024)
    processor = Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor())
    return _saved(Qwen2VLForConditionalGeneration, config, processor, folder)


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LANGUAGE: dict[str, Any] = {
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _saved(cls: Any, config: Any, processor: Any, folder: Path) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cls(config).eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
