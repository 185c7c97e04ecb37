"""From a model and benchmarks to figures: features, hits per image, and the tables that results.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UserError
from trainer.evaluation import bootstrap, localisation, retrieval, zero_shot
from trainer.evaluation.bootstrap import Tally, nested
from trainer.evaluation.data import Classification, Retrieval, Scene
from trainer.evaluation.files import Stored
from trainer.evaluation.model import Encoder
from trainer.evaluation.retrieval import KS, Pairs, Side

PERCENT = 100.0
RECALLS = [f"{way}/R@{k}" for way in ("i2t", "t2i") for k in KS]
MEANS = {"mR": RECALLS}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A benchmark's figures as results.json holds them, and what each image added, for paired comparisons."""

    figures: dict[str, Any]
    tally: Tally
    scale: float


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Images with features of length 1; files of the same bytes share one vector."""

    side: Side
    kept: list[int]
    """Numbers of the images that decode, in order; `side.of` follows them."""
    digests: list[str]
    """SHA-256 of those."""


def encode_images(encoder: Encoder, images: Sequence[Stored]) -> Encoded:
    """Features of all images that decode.

    Raises:
        UserError: none does.
    """
    digests = [image.digest() for image in images]
    first: dict[str, int] = {}
    for number, digest in enumerate(digests):
        first.setdefault(digest, number)
    features, readable = encoder.stored([images[number] for number in first.values()])
    if not readable:
        raise UserError(f"{images[0].name}: neither this nor any other image of its benchmark can be decoded")
    place = {list(first)[number]: at for at, number in enumerate(readable)}
    kept = [number for number, digest in enumerate(digests) if digest in place]
    return Encoded(
        side=Side(
            features=zero_shot.unit_length(features),
            of=np.array([place[digests[number]] for number in kept], dtype=np.int64),
        ),
        kept=kept,
        digests=[digests[number] for number in kept],
    )


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Side:
    """Features of length 1; equal texts share one vector."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return Side(
        features=zero_shot.unit_length(encoder.texts(list(numbers))),
        of=np.array([numbers[text] for text in texts], dtype=np.int64),
    )


def _units(digests: Sequence[str]) -> list[str]:
    """Names that pair an image with itself in another result: its digest, and which of its copies it is."""
    seen: dict[str, int] = {}
    names = []
    for digest in digests:
        seen[digest] = seen.get(digest, 0) + 1
        names.append(f"{digest}-{seen[digest]}")
    return names


def _with_spread(tally: Tally, seed: int, scale: float) -> dict[str, Any]:
    values, spread = bootstrap.summary(tally, seed, scale)
    return nested(values) | {"ci95": nested(spread)}


def _means(tally: Tally, scale: float) -> dict[str, Any]:
    return nested({name: float(value) for name, value in zip(tally.all_names, tally.values() * scale, strict=True)})


def judge_classification(encoder: Encoder, data: Classification, seed: int = 0) -> Found:
    """Top-1 accuracy under both averagings, in percent, and the usual one's mean over classes."""
    encoded = encode_images(encoder, data.images)
    images, labels = encoded.side.features[encoded.side.of], data.labels[encoded.kept]
    prompts = data.prompts()
    texts = encoder.texts([prompt for one in prompts for prompt in one]).reshape(len(prompts), len(data.templates), -1)
    usual, paper = (
        zero_shot.hits(images, zero_shot.class_vectors(texts, paper=paper), labels) for paper in (False, True)
    )

    def tally(order: str) -> Tally:
        sums = np.stack([usual[order], paper[order]], axis=1)
        return Tally(units=_units(encoded.digests), names=["top1", "top1_paper"], sums=sums, counts=np.ones_like(sums))

    expected = tally("expected")
    present = np.unique(labels)
    per_class = {data.classes[one]: float(PERCENT * usual["expected"][labels == one].mean()) for one in present}
    figures = _with_spread(expected, seed, PERCENT) | {
        "n": len(labels),
        "classes": len(data.classes),
        "classes_with_images": len(present),
        "mean_per_class": float(np.mean(list(per_class.values()))),
        "per_class": per_class,
        "best": _means(tally("best"), PERCENT),
        "worst": _means(tally("worst"), PERCENT),
        "unreadable": _unreadable(data.images, encoded.kept),
    }
    return Found(figures=figures, tally=expected, scale=PERCENT)


def _unreadable(images: Sequence[Stored], kept: Sequence[int]) -> list[str]:
    there = set(kept)
    return [image.name for number, image in enumerate(images) if number not in there]


def judge_retrieval(encoder: Encoder, data: Retrieval, seed: int = 0) -> Found:
    """Recalls at 1, 5 and 10 both ways and their mean, in percent, by both protocols; and the ceiling."""
    encoded = encode_images(encoder, data.images)
    renumbered = np.full(len(data.images), -1, dtype=np.int64)
    renumbered[encoded.kept] = np.arange(len(encoded.kept))
    owners = renumbered[data.text_image]
    texts = [text for text, owner in zip(data.texts, owners, strict=True) if owner >= 0]
    owners = owners[owners >= 0]
    sides = encoded.side, encode_texts(encoder, texts)
    paper = tallies_of(_units(encoded.digests), *sides, owners, aware=False)
    aware = tallies_of(_units(encoded.digests), *sides, owners, aware=True)["expected"]
    figures = _with_spread(paper["expected"], seed, PERCENT) | {
        "n_images": len(encoded.kept),
        "n_texts": len(texts),
        "distinct_texts": len(sides[1].features),
        "best": _means(paper["best"], PERCENT),
        "worst": _means(paper["worst"], PERCENT),
        "duplicate_aware": _with_spread(aware, seed, PERCENT),
        "ceiling": ceiling(sides[1].of, owners, len(encoded.kept)),
        "unreadable": _unreadable(data.images, encoded.kept),
    }
    return Found(figures=figures, tally=paper["expected"], scale=PERCENT)


def tallies_of(
    units: Sequence[str], images: Side, texts: Side, owners: NDArray[np.int64], *, aware: bool
) -> dict[str, Tally]:
    """What each image adds to the recalls, for `expected`, `best` and `worst` orders of ties.

    An image is one query; each of its texts is another, of which the image takes the sum.

    Args:
        units: Names of the images.
        images: The images, as queries and gallery.
        texts: The texts.
        owners: (texts,), the image of each.
        aware: Whether the same text is right wherever it stands.
    """
    if aware:
        right_texts, right_images = retrieval.same_text_pairs(texts.of, owners)
        asked, back = Side(features=texts.features, of=np.arange(len(texts.features))), texts.of
    else:
        asked, back = texts, np.arange(len(owners))
        right_texts, right_images = Pairs.of(owners, back), Pairs.of(back, owners)
    to_text, to_image = retrieval.hits(images, texts, right_texts), retrieval.hits(asked, images, right_images)
    count = np.bincount(owners, minlength=len(images.of)).astype(np.float64)
    counts = np.stack([np.ones_like(count)] * len(KS) + [count] * len(KS), axis=1)
    found = {}
    for order in ("expected", "best", "worst"):
        summed = np.zeros((len(images.of), len(KS)))
        np.add.at(summed, owners, getattr(to_image, order)[back])
        sums = np.concatenate([getattr(to_text, order), summed], axis=1)
        found[order] = Tally(units=units, names=RECALLS, sums=sums, counts=counts, means=MEANS)
    return found


def ceiling(text_ids: NDArray[np.int64], owners: NDArray[np.int64], images: int) -> dict[str, Any]:
    """The recalls, in percent, that no model can pass because equal texts get equal scores."""
    to_text = retrieval.ceiling_image_to_text(text_ids, owners, images)
    to_image = retrieval.ceiling_text_to_image(text_ids, owners)
    values = PERCENT * np.concatenate([to_text, to_image])
    flat = {name: float(value) for name, value in zip(RECALLS, values, strict=True)}
    return nested(flat | {"mR": float(values.mean())})


def judge_scenes(encoder: Encoder, scenes: Sequence[Scene], pictures: Path | None = None, seed: int = 0) -> Found:
    """The four figures of semantic localisation, means over sentences; heat maps as PNG into `pictures`.

    Raises:
        UserError: an image cannot be decoded.
    """
    rows: list[dict[str, float]] = [{} for _ in scenes]
    by_image: dict[Stored, list[int]] = {}
    for number, scene in enumerate(scenes):
        by_image.setdefault(scene.image, []).append(number)
    for stored, numbers in by_image.items():
        some = [scenes[number] for number in numbers]
        for number, row in zip(numbers, _judge_scene(encoder, stored, some, numbers, pictures), strict=True):
            rows[number] = row
    return _scene_figures(scenes, rows, seed)


def _judge_scene(
    encoder: Encoder, stored: Stored, scenes: Sequence[Scene], numbers: Sequence[int], pictures: Path | None
) -> list[dict[str, float]]:
    import cv2
    from PIL import Image

    image = cv2.imdecode(np.frombuffer(stored.read(), dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"--selo: {stored.name} cannot be decoded")
    pixels = np.asarray(image, dtype=np.uint8)
    height, width = pixels.shape[:2]
    where = localisation.windows(height, width)
    crops = encoder.images(Image.fromarray(crop) for crop in localisation.crops(pixels, where))
    scores = zero_shot.unit_length(crops) @ zero_shot.unit_length(encoder.texts([one.caption for one in scenes])).T
    rows = []
    for column, (scene, number) in enumerate(zip(scenes, numbers, strict=True)):
        heat = localisation.heat_map((height, width), where, scores[:, column])
        rows.append(localisation.measures(heat, scene.regions))
        if pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(pictures / f"{number:03d}.png"), localisation.picture(pixels, heat, scene.regions))
    return rows


def _scene_figures(scenes: Sequence[Scene], rows: Sequence[Mapping[str, float]], seed: int) -> Found:
    images = list(dict.fromkeys(scene.image for scene in scenes))
    at = [images.index(scene.image) for scene in scenes]
    sums = np.zeros((len(images), len(localisation.FIGURES)))
    np.add.at(sums, at, np.array([[row[name] for name in localisation.FIGURES] for row in rows]))
    counts = np.repeat(np.bincount(at).astype(np.float64)[:, None], len(localisation.FIGURES), axis=1)
    tally = Tally(units=[image.digest() for image in images], names=localisation.FIGURES, sums=sums, counts=counts)
    queries = [
        {"caption": scene.caption, "image": scene.image.path.name, **row}
        for scene, row in zip(scenes, rows, strict=True)
    ]
    figures = _with_spread(tally, seed, 1.0) | {"n_images": len(images), "n_queries": len(scenes), "queries": queries}
    return Found(figures=figures, tally=tally, scale=1.0)
