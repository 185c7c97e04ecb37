"""Images with their captions: samples of tars, or a table beside images.

A table is JSON lines or CSV, one or several rows an image. The image's column is `file_name` (as in `imagefolder` of
Hugging Face), `filename`, `image` or `image_path`; its captions are a list in `captions` or a text in `text`, `caption`
or `title`; a column `split` tells what is trained on (`train`).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.index import Index, open_index
from trainer.data.loader import Unusable, parts
from trainer.errors import UserError
from trainer.evaluation.data import ENCODINGS
from trainer.evaluation.files import open_rgb

TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv", "captions.csv")
"""Names that are looked for in a folder."""
NAMES = ("file_name", "filename", "image", "image_path")
TEXTS = ("captions", "text", "caption", "title")


@dataclass(frozen=True)
class Captioned:
    """An image and what is said of it."""

    name: str
    image: Any
    """PIL, RGB."""
    captions: list[str]


@dataclass(frozen=True)
class Source:
    """Something that holds captioned images."""

    names: Sequence[str]
    """Of the images, unique."""
    splits: Sequence[str]
    """Official ones; empty where there is none."""
    load: Callable[[int], Captioned]
    """Raises `Unusable`, with the reason."""
    digest: str
    """Of which images there are."""

    def __len__(self) -> int:
        return len(self.names)


def read(places: Sequence[str], option: str) -> Source:
    """What the places hold, in order: patterns of tars, folders with a table, tables.

    Raises:
        UserError: nothing is there, or it has another form; it names the option.
    """
    sources = [_read(place, option) for place in places]
    if len(sources) == 1:
        return sources[0]
    where = [(number, at) for number, source in enumerate(sources) for at in range(len(source))]
    return Source(
        names=[f"{number}/{sources[number].names[at]}" for number, at in where],
        splits=[split for source in sources for split in source.splits],
        load=_Joined(sources, where).load,
        digest=_digest(source.digest for source in sources),
    )


@dataclass(frozen=True)
class _Joined:
    sources: Sequence[Source]
    where: Sequence[tuple[int, int]]

    def load(self, number: int) -> Captioned:
        source, at = self.where[number]
        return self.sources[source].load(at)


def _read(place: str, option: str) -> Source:
    path = Path(place).expanduser()
    if path.is_dir():
        table = next((path / name for name in TABLES if (path / name).is_file()), None)
        if table is None:
            raise UserError(f"{option} {place}: the folder has no {', '.join(TABLES[:-1])} or {TABLES[-1]}")
        return _from_table(table, option)
    if path.suffix.lower() in (".jsonl", ".csv"):
        return _from_table(path, option)
    index = open_index(place)
    names = index.keys.to_pylist()
    return Source(names=names, splits=[""] * len(names), load=_Tars(index).load, digest=index.digest)


@dataclass(frozen=True)
class _Tars:
    """Samples as the trainer's loader reads them."""

    index: Index

    def load(self, number: int) -> Captioned:
        block = self.index.read([number])[0]
        if isinstance(block, Exception):
            raise Unusable(f"cannot be read ({block})")
        data, caption, passport = parts(block)
        said = [entry["text"] for entry in passport.get("captions") or () if entry.get("origin") == "user"]
        texts = said or [caption or str(passport.get("caption") or "")]
        return _captioned(self.index.name(number), data, texts)


def _captioned(name: str, data: bytes, texts: Iterable[str]) -> Captioned:
    image = open_rgb(data)
    if image is None:
        raise Unusable("its image cannot be decoded")
    captions = [" ".join(text.split()) for text in texts if text.strip()]
    if not captions:
        raise Unusable("has no caption")
    return Captioned(name, image, captions)


@dataclass(frozen=True)
class _Table:
    folder: Path
    rows: Sequence[tuple[str, list[str]]]

    def load(self, number: int) -> Captioned:
        name, texts = self.rows[number]
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise Unusable(f"cannot be read ({error.strerror})") from error
        return _captioned(name, data, texts)


def _from_table(path: Path, option: str) -> Source:
    try:
        rows = _lines(path) if path.suffix.lower() == ".jsonl" else _csv(path)
        texts, splits = _grouped(rows)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be read ({error.strerror})") from error
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{option} {path}: every row needs one of {', '.join(NAMES)} and one of {', '.join(TEXTS)} ({error})"
        ) from error
    if not texts:
        raise UserError(f"{option} {path}: it has no row")
    return Source(
        names=list(texts),
        splits=[splits[name] for name in texts],
        load=_Table(path.parent, list(texts.items())).load,
        digest=_digest(f"{name}\0{text}" for name, said in texts.items() for text in said),
    )


def _grouped(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions and split of each image, in the order of the rows."""
    texts: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        name = next((row[each] for each in NAMES if row.get(each)), None)
        said = next((row[each] for each in TEXTS if each in row), None)
        if name is None or said is None:
            raise ValueError(f"row {number} has {', '.join(map(str, row)) or 'nothing'}")
        texts.setdefault(str(name), []).extend([said] if isinstance(said, str) else map(str, said))
        splits[str(name)] = str(row.get("split") or "")
    return texts, splits


def _lines(path: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _csv(path: Path) -> list[Mapping[str, Any]]:
    data = path.read_bytes()
    for encoding in ENCODINGS:
        try:
            return list(csv.DictReader(data.decode(encoding).splitlines(keepends=True)))
        except UnicodeDecodeError:
            continue
    raise ValueError(f"its text is none of {', '.join(ENCODINGS)}")


def _digest(texts: Iterable[str]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for text in texts:
        found.update(text.encode("utf-8", "replace") + b"\n")
    return found.hexdigest()


def divide(source: Source, share: float) -> tuple[list[int], list[int]]:
    """Numbers of the images to train on, and of those held out: by the official split, else by a hash of their names.

    Which side an image is on does not depend on the others.

    Raises:
        UserError: one side is empty.
    """
    if any(source.splits):
        held = [split != "train" for split in source.splits]
    else:
        held = [_hashed(name) < share for name in source.names]
    train = [number for number, is_held in enumerate(held) if not is_held]
    rest = [number for number, is_held in enumerate(held) if is_held]
    if not train or not rest:
        raise UserError(
            f"{len(source)} images: {len(train)} are left to train on and {len(rest)} to measure METEOR on;"
            " give more, --val-data or another --held-out"
        )
    return train, rest


def _hashed(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest()) / 2**64
