"""Copies that image features find, by cosine; and how fast they are compared.

    python -m benchmarks.dedup_embeddings quality --data … [--model FOLDER_OR_NAME --pretrained TAG | --imagenet]
    python -m benchmarks.dedup_embeddings speed [--images 100000]

`quality` encodes real images and copies of a sample (cut, shifted, changed) as `outliers` does, and counts
for each bound the copies whose cosine with their original reaches it, and the pairs of unrelated images that do.
Without `--model` it fits a small CLIP to captions of other images first, and shows one of random weights beside it;
with `--imagenet` it takes the features of the network that teaches the detector (`pip install '.[detector]'`).
`speed` compares random vectors in crowds, all with all, in cells, and by FAISS, and counts the pairs that cells miss.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from benchmarks.copies import CHANGES, QUALITY
from demo.models import CLIP_PREPROCESS, new_open_clip, save_open_clip
from stages import cosine
from stages.embeddings import IMAGES_PER_CELL, SAMPLE_PER_CELL, EmbeddingsConfig
from stages.features import COLUMN, Vectors, vectors_of
from stages.images import open_rgb
from stages.scorers import VlmConfig, VlmScorer, score_batches

if TYPE_CHECKING:
    from PIL.Image import Image

BOUNDS = (0.85, 0.90, 0.93, 0.95, 0.97, 0.98, 0.99)
UNSEEN = ("rs/hurricane", "rs/ucm", "photo/intel", "photo/imagenet_small")
COPIED = ("rs/aid", "rs/hurricane", "photo/imagenet_small")
KINDS = ("resize 0.5", "grey", "colour shift", "logo", "crop 5 %", "crop 10 %", "crop 20 %", "tilt 5°", "rotate 90°")
SHIFTS = (5, 10, 20)
"""Percent of the width by which two tiles of one image stand apart."""
CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
"""A CLIP small enough to be fitted on two cores in minutes."""
BATCH = 64
IMAGENET_SIDE = 128
PROBES = (1, 2, 4, 8)

T = TypeVar("T")


@dataclass(frozen=True)
class Pictures:
    """Images to be told apart: their JPEG bytes, and what two unrelated ones do not share."""

    bodies: list[bytes]
    groups: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("--data", type=Path, default=os.environ.get("CURATION_REAL_DATA"), help="real images")
    parser.add_argument("--each", type=int, default=8, help="every n-th image is copied")
    parser.add_argument("--model", help="an open_clip folder or name, instead of a small one fitted here")
    parser.add_argument("--pretrained", help="its tag of weights")
    parser.add_argument("--imagenet", action="store_true", help="a network trained on ImageNet instead")
    parser.add_argument("--steps", type=int, default=400, help="of fitting the small one")
    parser.add_argument("--images", type=int, default=100_000, help="vectors that `speed` compares")
    parser.add_argument("--width", type=int, default=512, help="of those vectors")
    args = parser.parse_args()
    if args.what == "speed":
        speed(args.images, args.width)
    elif args.data is None:
        parser.error("name a folder of real images with --data or CURATION_REAL_DATA")
    else:
        quality(Path(args.data), args)


def quality(data: Path, args: argparse.Namespace) -> None:
    """Tables of one model, or of the small one fitted and unfitted."""
    real, pairs = _pictures(data, args.each)
    counts = f"{len(real.bodies):,} images; {len(pairs['crop 5 %']):,} of them copied"
    if args.model:
        _show(f"{args.model} {args.pretrained or ''}, {counts}", args.model, args.pretrained, real, pairs)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.imagenet:
            _show(f"ImageNet features, {counts}", str(_imagenet(Path(folder))), None, real, pairs)
            return
        for title, model in (("fitted", _fitted(data, args.steps)), ("random weights", new_open_clip(0, CONFIG))):
            path = save_open_clip(model, Path(folder) / title, CONFIG)
            _show(f"{title}, {counts}", str(path), None, real, pairs)


def _pictures(data: Path, each: int) -> tuple[Pictures, dict[str, list[tuple[bytes, bytes]]]]:
    """Distinct images that the small model does not learn from, and (copy, original) for each kind of copy."""
    found: dict[bytes, str] = {}
    for path, group in _unseen(data):
        found.setdefault(path.read_bytes(), group)
    pairs: defaultdict[str, list[tuple[bytes, bytes]]] = defaultdict(list)
    copied = [body for body, group in found.items() if group.startswith(COPIED)]
    for body in copied[::each]:
        image = open_rgb(body)
        for kind in KINDS:
            pairs[kind].append((_jpeg(CHANGES[kind](image)), body))
        for percent in SHIFTS:
            apart = round(image.width * percent / 100)
            left, right = (image.crop((x, 0, x + image.width - apart, image.height)) for x in (0, apart))
            pairs[f"shift {percent} %"].append((_jpeg(right), _jpeg(left)))
    return Pictures(list(found), list(found.values())), dict(pairs)


def _unseen(data: Path) -> Iterator[tuple[Path, str]]:
    """Images with what tells unrelated ones: the class of a scene, else the collection."""
    for name, split, label in _scenes(data):
        if split != "train":
            yield data / "rs" / "aid" / name, f"rs/aid/{label}"
    for collection in UNSEEN:
        for path in sorted((data / collection).rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
                yield path, collection


def _scenes(data: Path) -> Iterator[tuple[str, str, str]]:
    for line in (data / "rs" / "aid" / "captions.jsonl").read_text().splitlines():
        entry = json.loads(line)
        yield entry["image"], entry["split"], entry["label"]


def _jpeg(image: Image) -> bytes:
    out = BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _imagenet(folder: Path) -> Path:
    """An open_clip folder whose images' features are the pooled ones of a network trained on ImageNet."""
    import torch
    from open_clip.model import CLIP

    from trainer.detector import teacher
    from trainer.detector.config import load

    trained = teacher.load(load(None).teacher, "cpu")
    vision = {"timm_model_name": load(None).teacher.architecture, "timm_model_pretrained": False, "timm_pool": "avg"}
    vision |= {"timm_proj": "none", "image_size": IMAGENET_SIDE}
    config = {"embed_dim": trained.num_features, "vision_cfg": vision, "text_cfg": CONFIG["text_cfg"]}
    model = CLIP(**deepcopy(config)).eval()
    weights = {name: value for name, value in trained.state_dict().items() if not name.startswith("classifier.")}
    model.visual.trunk.load_state_dict(weights)
    with torch.inference_mode():
        probe = torch.zeros(1, 3, IMAGENET_SIDE, IMAGENET_SIDE)
        assert torch.allclose(model.visual(probe), teacher.pooled(trained, probe), atol=1e-4)
    half = [0.5, 0.5, 0.5]
    preprocess = CLIP_PREPROCESS | {"size": [IMAGENET_SIDE] * 2, "mean": half, "std": half}
    save_open_clip(model, folder, config)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def _fitted(data: Path, steps: int) -> Any:
    """The small CLIP, by its contrastive loss on the captions of other images than those measured."""
    import torch
    from open_clip import ClipLoss, get_tokenizer

    images, captions = _captioned(data)
    length = CONFIG["text_cfg"]["context_length"]
    tokens = [get_tokenizer("ViT-B-32")(texts, length) for texts in captions]
    model, loss_of, rng = new_open_clip(1, CONFIG).train(), ClipLoss(), np.random.default_rng(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(steps):
        chosen = rng.choice(len(images), BATCH, replace=False)
        texts = torch.stack([tokens[n][rng.integers(len(tokens[n]))] for n in chosen])
        loss = loss_of(*model(images[chosen], texts))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _captioned(data: Path) -> tuple[Any, list[list[str]]]:
    """(n, 3, side, side) images and the captions of each."""
    import torch

    side = CONFIG["vision_cfg"]["image_size"]
    entries = []
    for folder in (data / "rs" / "aid", data / "photo" / "flickr8k"):
        for line in (folder / "captions.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if entry.get("split", "train") == "train":
                entries.append((folder / entry["image"], entry["captions"]))
    squares = [np.asarray(open_rgb(path.read_bytes()).resize((side, side)), np.float32) for path, _ in entries]
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255
    return (pixels - 0.45) / 0.27, [captions for _, captions in entries]


def _show(
    title: str, model: str, pretrained: str | None, real: Pictures, pairs: dict[str, list[tuple[bytes, bytes]]]
) -> None:
    """Percent of copies found for each bound, then pairs of unrelated images."""
    place = {body: n for n, body in enumerate(dict.fromkeys([*real.bodies, *_bodies(pairs)]))}
    features = _encoder(model, pretrained)(list(place))
    print(f"### {title}\n")
    print(f"| copy | {' | '.join(f'{bound:.2f}' for bound in BOUNDS)} |")
    print(f"| --- | {' | '.join('---' for _ in BOUNDS)} |")
    for kind, bodies in pairs.items():
        copies, originals = (features[[place[pair[side]] for pair in bodies]] for side in (0, 1))
        reached = [100 * float((cosine.cosines(copies, originals) >= bound).mean()) for bound in BOUNDS]
        print(f"| {kind} | {' | '.join(f'{share:.1f}' for share in reached)} |")
    vectors = features[[place[body] for body in real.bodies]]
    groups = np.unique(real.groups, return_inverse=True)[1]
    left, right = cosine.similar_within(vectors, BOUNDS[0])
    unrelated = groups[left] != groups[right]
    near = cosine.cosines(vectors[left[unrelated]], vectors[right[unrelated]])
    met = [np.unique(np.concatenate([s[unrelated][near >= bound] for s in (left, right)])) for bound in BOUNDS]
    print(f"| *unrelated pairs* | {' | '.join(f'{int((near >= bound).sum()):,}' for bound in BOUNDS)} |")
    print(f"| *images in them, %* | {' | '.join(f'{100 * len(m) / len(vectors):.1f}' for m in met)} |\n")
    _show_cells(vectors, 100, BOUNDS[3])
    print()


def _bodies(pairs: dict[str, list[tuple[bytes, bytes]]]) -> Iterator[bytes]:
    return (body for bodies in pairs.values() for pair in bodies for body in pair)


def _encoder(model: str, pretrained: str | None) -> Callable[[Sequence[bytes]], Vectors]:
    """Features as `outliers` stores them."""
    scorer = VlmScorer(VlmConfig(model=model, pretrained=pretrained, threads=os.cpu_count() or 1), with_features=True)
    scorer.check()
    transform, run = scorer.preprocess().transform(), scorer.load(scorer.preprocess())

    def encode(bodies: Sequence[bytes]) -> Vectors:
        pixels = [transform(open_rgb(body)) for body in bodies]
        scores = score_batches(run, scorer.config.batch_size, pixels, [""] * len(pixels), scorer.columns)
        return vectors_of(scores[COLUMN])

    return encode


def speed(images: int, width: int) -> None:
    """Seconds of each way, on the same vectors; and the share of pairs that cells find."""
    vectors, bound = _crowds(images, width), EmbeddingsConfig().cosine
    few = vectors[: min(images, 20_000)]
    print(f"{images:,} vectors of {width}, cosine {bound}, {os.cpu_count()} cores\n")
    (left, _), exact = _timed(lambda: cosine.similar_within(few, bound))
    print(f"all with all, {len(few):,}: {exact:.1f} s, {len(left):,} pairs")
    theirs, seconds = _timed(lambda: _by_faiss(few, bound))
    print(f"FAISS IndexFlatIP.range_search, the same: {seconds:.1f} s ({seconds / exact:.1f} times), {theirs:,} pairs")
    _show_cells(vectors, IMAGES_PER_CELL, bound)


def _show_cells(vectors: Vectors, images_per_cell: int, bound: float) -> None:
    """How many of the pairs of some images cells find, by the number of probes; and what the cells take."""
    images = len(vectors)
    cells = max(1, images // images_per_cell)
    sample = vectors[:: max(1, images // (cells * SAMPLE_PER_CELL))]
    middles, fitting = _timed(lambda: cosine.centres(sample, cells))
    probed, assigning = _timed(lambda: cosine.nearest(vectors, middles, max(PROBES)))
    print(f"{cells} cells, made in {fitting:.1f} s; {images:,} images assigned in {assigning:.1f} s")
    queries = np.linspace(0, images - 1, 2000).astype(np.int64)
    rows, columns = cosine.similar(vectors[queries], vectors, bound)
    one, other = queries[rows], columns
    one, other = one[one != other], other[one != other]
    for probes in PROBES:
        near = probed[:, :probes]
        found = (near[one] == probed[other][:, :1]).any(axis=1) | (near[other] == probed[one][:, :1]).any(axis=1)
        print(f"{probes} probes: {100 * found.mean():.2f} % of {len(one):,} pairs of 2,000 images at {bound}")


def _crowds(images: int, width: int) -> Vectors:
    """Unit vectors, ten around each of random directions, at cosines around the bound."""
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(images // 10, width)).astype(np.float32)
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    vectors = middles[rng.integers(0, len(middles), images)]
    vectors += rng.normal(size=vectors.shape).astype(np.float32) * rng.uniform(0.1, 0.3, (images, 1)) / width**0.5
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def _by_faiss(vectors: Vectors, bound: float) -> int:
    import faiss

    wide = vectors.astype(np.float32)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(wide.shape[1])
    index.add(wide)
    limits, _, _ = index.range_search(wide, bound)
    return (int(limits[-1]) - len(vectors)) // 2


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


if __name__ == "__main__":
    main()
