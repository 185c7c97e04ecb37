"""Training sets of RSICD, RSITMD and both (RET-2), without images that either test set holds, as tars.

The two benchmarks were made from overlapping imagery: images of one's train set stand in the other's test set. An image
is left out when a test image has the same bytes, or a perceptual hash within a radius; GeoRSCLIP's authors used 2 bits.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UserError
from trainer.evaluation.data import karpathy
from trainer.evaluation.files import Stored, open_rgb

KEPT_AS_THEY_ARE = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats that every reader of such tars knows; others become PNG."""
COLUMNS = ("set", "image", "match", "distance", "test_set", "test_image")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image with its captions; `hash` is the 64 bits of imagehash's pHash."""

    set: str
    file: str
    image: Stored
    captions: Sequence[str]
    digest: str
    hash: int

    @property
    def key(self) -> str:
        """32 hex digits, of the set and the file's name."""
        return hashlib.blake2b(f"{self.set}\0{self.file}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Twin:
    """Why a sample was left out: `bytes` or `phash`, the bits that differ, and the test image."""

    match: str
    distance: int
    test: Sample


def prepare(
    sets: Mapping[str, tuple[Path, Path]], out: Path, radius: int = 2, shards: int = 4
) -> dict[str, tuple[int, int]]:
    """Write `OUT/NAME/NAME-train-0000.tar …` for each set and for `ret2`, their union, and `OUT/left_out.csv`.

    The same files give the same bytes.

    Args:
        sets: Karpathy's JSON and images' folder of each benchmark; its splits `train` and `test` count.
        out: A folder.
        radius: Bits by which hashes of twins may differ.
        shards: Tars of each set.

    Returns:
        Images (kept, left out) of each set and of `ret2`.

    Raises:
        UserError: a file is missing or of another form, or radius or shards are out of range.
    """
    if not 0 <= radius <= 16 or shards < 1:
        raise UserError(f"--radius {radius} --shards {shards}: a radius of 0 to 16 and at least one shard are wanted")
    test = [sample for name, files in sets.items() for sample in _samples(name, *files, "test")[0]]
    kept: dict[str, list[Sample]] = {}
    dropped: dict[str, list[tuple[Any, ...]]] = {}
    for name, files in sets.items():
        kept[name], dropped[name] = _without_twins(name, files, test, radius)
    kept["ret2"], dropped["ret2"] = list(chain(*kept.values())), list(chain(*dropped.values()))
    for name, samples in kept.items():
        _write_set(out / name, name, samples, shards)
    with (out / "left_out.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *dropped["ret2"]])
    return {name: (len(kept[name]), len(dropped[name])) for name in kept}


def _without_twins(
    name: str, files: tuple[Path, Path], test: Sequence[Sample], radius: int
) -> tuple[list[Sample], list[tuple[Any, ...]]]:
    """(samples kept, rows of `COLUMNS` for the others) of a set's train split."""
    train, unreadable = _samples(name, *files, "train")
    kept: list[Sample] = []
    rows: list[tuple[Any, ...]] = [(name, file, "unreadable", "", "", "") for file in unreadable]
    for sample, twin in zip(train, twins(train, test, radius), strict=True):
        if twin is None:
            kept.append(sample)
        else:
            rows.append((name, sample.file, twin.match, twin.distance, twin.test.set, twin.test.file))
    return kept, rows


def _samples(name: str, captions: Path, folder: Path, split: str) -> tuple[list[Sample], list[str]]:
    """(the images of a split, by name; the names of those that do not decode or have no caption)."""
    import imagehash

    samples: list[Sample] = []
    unreadable: list[str] = []
    for file, texts in sorted(karpathy(f"--{name} {captions}", captions, split)):
        stored = Stored(folder / file)
        data = stored.read()
        image = open_rgb(data)
        if image is None or not any(texts):
            unreadable.append(file)
            continue
        samples.append(
            Sample(
                set=name,
                file=file,
                image=stored,
                captions=[text for text in texts if text],
                digest=hashlib.sha256(data).hexdigest(),
                hash=int(str(imagehash.phash(image)), 16),
            )
        )
    return samples, unreadable


def twins(train: Sequence[Sample], test: Sequence[Sample], radius: int) -> list[Twin | None]:
    """For each training sample its twin among the test samples: the same bytes, else the nearest hash within reach."""
    by_digest = {sample.digest: sample for sample in reversed(test)}
    hashes = np.array([sample.hash for sample in test], dtype=np.uint64)
    found: list[Twin | None] = []
    for sample in train:
        distances = np.bitwise_count(hashes ^ np.uint64(sample.hash))
        if sample.digest in by_digest:
            found.append(Twin(match="bytes", distance=0, test=by_digest[sample.digest]))
        elif len(distances) and distances.min() <= radius:
            nearest = int(distances.argmin())
            found.append(Twin(match="phash", distance=int(distances[nearest]), test=test[nearest]))
        else:
            found.append(None)
    return found


def _write_set(folder: Path, name: str, samples: Sequence[Sample], shards: int) -> None:
    """Samples by the digest of their keys, cut into tars whose sizes differ by one at most, and `sizes.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(samples, key=lambda sample: hashlib.sha256(sample.key.encode()).digest())
    cuts: NDArray[np.int64] = np.linspace(0, len(ordered), shards + 1).astype(np.int64)
    sizes = {}
    for number in range(shards):
        part = ordered[cuts[number] : cuts[number + 1]]
        path = folder / f"{name}-train-{number:04d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in part:
                for extension, data in _members(sample):
                    member = tarfile.TarInfo(f"{sample.key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))
        sizes[path.name] = len(part)
    (folder / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")


def _members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    yield _image_member(sample.image.read())
    yield "txt", sample.captions[0].encode()
    described = {
        "key": sample.key,
        "source": sample.set,
        "url": sample.file,
        "caption": sample.captions[0],
        "captions": [{"text": text, "source": sample.set, "origin": "user"} for text in dict.fromkeys(sample.captions)],
        "sha256": sample.digest,
    }
    yield "json", json.dumps(described, ensure_ascii=False).encode()


def _image_member(data: bytes) -> tuple[str, bytes]:
    from PIL import Image

    with Image.open(BytesIO(data)) as opened:
        extension = KEPT_AS_THEY_ARE.get(opened.format or "")
        if extension:
            return extension, data
        buffer = BytesIO()
        opened.convert("RGB").save(buffer, "PNG")
        return "png", buffer.getvalue()
