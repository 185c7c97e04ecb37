"""Other people's loaders, unmodified, on our tars."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

Rows = list[dict[str, Any]]
IMAGES = ("jpg", "png", "webp", "img_content")


def captions(rows: Rows) -> dict[str, str]:
    return {row["key"]: row["caption"] for row in rows}


def test_webdataset_decodes_every_sample(webdataset_shards: Path, rows: Rows) -> None:
    import webdataset as wds

    found = {}
    for split in ("train", "val"):
        data = wds.WebDataset(str(webdataset_shards / split / f"pub11-{split}-{{0000..0001}}.tar"), shardshuffle=False)
        for key, image, text, passport in data.decode("pil").to_tuple("__key__", "jpg;png;webp", "txt", "json"):
            found[key] = text
            assert image.size == (16, 12)
            assert passport["source"] in ("cc3m", "laion2b")
    assert found == captions(rows)


def test_a_loader_after_rs5ms_description(rs5m_shards: Path, rows: Rows) -> None:
    """Braces, a buffer of 10,000, then image, name and caption under RS5M's keys, through a DataLoader of batches."""
    import webdataset as wds
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor, resize

    def decoded(sample: dict[str, bytes]) -> tuple[Any, str, str]:
        image = Image.open(io.BytesIO(sample["img_content"])).convert("RGB")
        return resize(pil_to_tensor(image), [8, 8]), sample["img_name"].decode(), sample["caption"].decode()

    found: dict[str, str] = {}
    for split in ("train", "val"):
        pattern = str(rs5m_shards / split / f"pub11-{split}-{{0000..0001}}.tar")
        data = wds.WebDataset(pattern, shardshuffle=False).shuffle(10_000).map(decoded).batched(5)
        for images, names, texts in wds.WebLoader(data, batch_size=None, num_workers=0):
            assert images.shape[1:] == (3, 8, 8)
            found |= dict(zip(names, texts, strict=True))
    assert found == captions(rows)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("layout", ["webdataset", "rs5m"])
def test_hugging_face_datasets(
    layout: str, streaming: bool, request: pytest.FixtureRequest, tmp_path: Path, rows: Rows
) -> None:
    """With the features said: what the library infers from the first samples has no place for PNG among JPEG."""
    from datasets import Features, Image, Json, Value, load_dataset

    shards: Path = request.getfixturevalue(f"{layout}_shards")
    files = {split: str(shards / split / "*.tar") for split in ("train", "val")}
    columns = {
        "webdataset": {"jpg": Image(), "png": Image(), "webp": Image(), "txt": Value("string"), "json": Json()},
        "rs5m": {"img_content": Image(), "img_name": Value("binary"), "caption": Value("binary")},
    }[layout]
    features = Features({"__key__": Value("string"), **columns})
    loaded = load_dataset(
        "webdataset", data_files=files, features=features, streaming=streaming, cache_dir=str(tmp_path)
    )
    found = {}
    for sample in (*loaded["train"], *loaded["val"]):
        key = sample["__key__"]
        found[key] = sample["txt"] if layout == "webdataset" else sample["caption"].decode()
        [image] = [sample[name] for name in columns if name in IMAGES and sample[name] is not None]
        assert image.size == (16, 12)
        assert layout == "rs5m" or sample["json"]["url"].startswith("http://a.org/")
    assert found == captions(rows)
    sizes = json.loads((shards / "train" / "sizes.json").read_text())
    assert sum(sizes.values()) == sum(1 for _ in loaded["train"])


@pytest.mark.soak
@pytest.mark.ray
def test_ray_data(webdataset_shards: Path, rows: Rows) -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        # A block of JPEGs and PNGs has gaps in both columns, which Ray cannot make tensors of; WebP stays as bytes.
        ray.data.DataContext.get_current().enable_tensor_extension_casting = False
        found = {}
        for split in ("train", "val"):
            data = ray.data.read_webdataset(str(webdataset_shards / split), file_extensions=["tar"])
            for sample in data.take_all():
                found[sample["__key__"]] = sample["txt"]
                [image] = [sample[kind] for kind in IMAGES if isinstance(sample.get(kind), np.ndarray | bytes)]
                pixels = np.asarray(PIL.Image.open(io.BytesIO(image))) if isinstance(image, bytes) else image
                assert pixels.shape == (12, 16, 3)
        assert found == captions(rows)
    finally:
        ray.shutdown()
