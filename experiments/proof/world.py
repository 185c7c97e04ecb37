"""What the experiment is made of: AID's images in parts that never meet, photographs, and the contaminated pools."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

SEED = 0
POOL = 2000
"""Pairs of a pool."""
LEVELS = (0.1, 0.25, 0.5)
"""Shares of a pool that are no good: half of them off topic, half of them copies."""
COPIES = 20
"""Copies of an image in a pool."""
SELECTOR, JUDGE = 900, 600
"""Images of RSICD's train part that train the selecting CLIP, and that judge beside the val part."""
SAYS = {"topic": 0.8, "duplicate": 0.8, "off_topic": 0.2}
"""Share of a kind's captions that name the view: of aerial images most do, of photographs some."""
VIEWS = ("aerial view: {}", "satellite image, {}", "{} (aerial photo)", "{}, remote sensing image")
"""How a caption names it."""
TOPIC, DUPLICATE, OFF_TOPIC = "topic", "duplicate", "off_topic"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image with a text."""

    name: str
    """Of its file, made of its content."""
    caption: str
    kind: str
    origin: str
    """The image it is, or is a copy of."""


def stable_order(names: Iterable[str], seed: int = SEED) -> list[str]:
    """Names by a digest of seed and name: an order that has nothing to do with the alphabet, and never changes."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


@dataclass(frozen=True)
class Captioned:
    """An image's file and its texts."""

    path: Path
    label: str
    captions: list[str]


def read_captioned(folder: Path) -> dict[str, tuple[Captioned, str]]:
    """Of a folder with `captions.jsonl`: image name to its texts and the official split."""
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        row["image"]: (Captioned(folder / row["image"], row.get("label", ""), row["captions"]), row.get("split", ""))
        for row in rows
    }


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The images by what they are for."""

    train: list[Captioned]
    """RSICD's train part, all of it."""
    val: list[Captioned]
    """RSICD's val part."""
    selector: list[Captioned]
    judge: list[Captioned]
    """Val and some of train."""
    topic: list[Captioned]
    """What is left of train."""
    photographs_selector: list[Captioned]
    photographs: list[Captioned]
    """The rest of Flickr8k, then pictures of other sets with texts of Flickr30k's and Flickr8k's."""


def split(data: Path) -> Parts:
    """Assign the images under `data`; the same ones every time."""
    aid, flickr = read_captioned(data / "rs/aid"), read_captioned(data / "photo/flickr8k")
    order = stable_order(name for name, (_, part) in aid.items() if part == "train")
    train = [aid[name][0] for name in order]
    val = [aid[name][0] for name in stable_order(name for name, (_, part) in aid.items() if part == "val")]
    photographs = [flickr[name][0] for name in stable_order(flickr)]
    half = len(photographs) // 2
    return Parts(
        train=train,
        val=val,
        selector=train[:SELECTOR],
        judge=val + train[SELECTOR : SELECTOR + JUDGE],
        topic=train[SELECTOR + JUDGE :],
        photographs_selector=photographs[:half],
        photographs=photographs[half:] + _uncaptioned(data),
    )


def _uncaptioned(data: Path) -> list[Captioned]:
    """Pictures without texts, with texts that speak of other photographs."""
    import polars as pl

    texts = (
        pl.read_parquet(data / "text/captions.parquet").filter(~pl.col("is_rs"))["caption"].unique().sort().to_list()
    )
    rng = np.random.default_rng([SEED, 1])
    paths = sorted(path for name in ("imagenet_small", "intel") for path in (data / "photo" / name).rglob("*.jpg"))
    by_name = {path.name: path for path in paths}
    return [Captioned(by_name[name], "", [texts[int(rng.integers(len(texts)))]]) for name in stable_order(by_name)]


def pool(parts: Parts, level: float, web: Path) -> list[Pair]:
    """A pool of `POOL` pairs, its images written to `web` under names made of their content."""
    rng = np.random.default_rng([SEED, 2, round(level * 100)])
    bad = round(POOL * level)
    topic, off, copies = POOL - bad, bad // 2, bad - bad // 2
    pairs = [_pair(item, TOPIC, item.path.read_bytes(), web, rng) for item in parts.topic[:topic]]
    pairs += [_pair(item, OFF_TOPIC, item.path.read_bytes(), web, rng) for item in parts.photographs[:off]]
    for number in range(copies):
        item = parts.topic[number // COPIES]
        pairs.append(_pair(item, DUPLICATE, altered(item.path, rng), web, rng))
    return pairs


def altered(path: Path, rng: Generator) -> bytes:
    """The image as another site would show it: resized a little, compressed anew."""
    from PIL import Image

    with Image.open(path) as image:
        side = int(rng.integers(round(min(image.size) * 0.8), min(image.size) + 1))
        found = io.BytesIO()
        image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS).save(
            found, "JPEG", quality=int(rng.integers(60, 96))
        )
    return found.getvalue()


def _pair(item: Captioned, kind: str, data: bytes, web: Path, rng: Generator) -> Pair:
    name = f"{hashlib.sha256(data).hexdigest()[:24]}.jpg"
    (web / name).write_bytes(data)
    text = item.captions[int(rng.integers(len(item.captions)))].strip()
    view = VIEWS[int(rng.integers(len(VIEWS)))]
    caption = view.format(text) if rng.random() < SAYS[kind] else text
    return Pair(name=name, caption=caption, kind=kind, origin=str(item.path.name))


def write_pool(pairs: Sequence[Pair], folder: Path, base: str) -> Path:
    """`rows.tsv` (URL and caption, as CC12M is published) and `truth.jsonl` of a pool; returns the former."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.tsv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, escapechar="\\")
        writer.writerows([f"{base}/{pair.name}", pair.caption.replace("\t", " ")] for pair in pairs)
    (folder / "truth.jsonl").write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))
    return folder / "rows.tsv"


def write_folder(items: Sequence[Captioned], folder: Path, prefix: str = "", limit: int = 5) -> dict[str, Any]:
    """Images and `captions.jsonl` as a source of `format: folder`; returns the source's entry in a recipe."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in items:
        name = f"{item.label or 'photo'}-{item.path.name}"
        shutil.copyfile(item.path, images / name)
        lines.append({"image": name, "captions": [prefix + text.strip() for text in item.captions[:limit]]})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "name": folder.name,
        "format": "folder",
        "path": {"images": str(images), "table": str(folder / "captions.jsonl")},
        "columns": {"url": "image", "captions": "captions"},
    }


def write_judge(items: Sequence[Captioned], folder: Path) -> None:
    """Class folders for zero-shot classification, and Karpathy's JSON over them for retrieval."""
    entries = []
    for item in items:
        place = folder / "images" / item.label
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(item.path, place / item.path.name)
        sentences = [{"raw": text.strip()} for text in item.captions]
        entries.append({"filename": f"{item.label}/{item.path.name}", "split": "test", "sentences": sentences})
    (folder / "captions.json").write_text(json.dumps({"images": entries, "dataset": "aid"}))
