"""Test sets that no sample may come from: what their images and captions are, and which rows match them.

A test set is a folder of images, a tar of them, or a list (csv, tsv, jsonl, or json as captioning sets are
published) that names images and captions. Captions also come from `.txt` and `.json` files beside the images.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from stages.base import Phase, Record, Result, Unit, Workspace
from stages.contamination import TEST, comparable_captions
from stages.errors import UnitError, UserError
from stages.images import inspect
from stages.phash import SIDE, orientation_hashes
from stages.storage import Store

IMAGES = frozenset(["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"])
TARS = (".tar", ".tar.gz", ".tgz")
LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
IMAGE_KEYS = ("image", "filepath", "file", "filename", "file_name", "path", "img")
CAPTION_KEYS = ("captions", "caption", "sentences", "text", "title", "raw")
TRAINING = frozenset(["train", "restval", "training"])
"""Values of a list's `split` that are no test data."""
IMAGES_PER_UNIT = 2000


@dataclass
class Item:
    """A test image, its captions, or both."""

    name: str
    data: bytes | None = None
    captions: list[str] = field(default_factory=list)


class TestSets(Phase):
    """Hashes the test images."""

    name: ClassVar[str] = "tests"
    __test__: ClassVar[bool] = False

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = [path if "://" in path else os.path.abspath(path) for path in paths]

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit a tar or list, and one for every so many images of a folder."""
        specs = [spec for path in self.paths for spec in _specs(path)]
        return [Unit(id=f"{number:05d}", spec=spec) for number, spec in enumerate(specs)]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the unit's items."""
        rows = [describe(item) for item in read_items(unit.spec)]
        ws.write_table("tests", pa.Table.from_pylist(rows, schema=TEST), kind="side")
        images = sum(row["thumbnail"] is not None for row in rows)
        unreadable = sum(row["sha256"] is not None and row["thumbnail"] is None for row in rows)
        captions = sum(len(row["captions"]) for row in rows)
        return Result(meta={"images": images, "unreadable": unreadable, "captions": captions})


def check(paths: Sequence[str]) -> None:
    """Raise `UserError` for a path that is not there or holds nothing to compare with."""
    for path in paths:
        if not Store(path).exists(path):
            raise UserError(f"stages.dedup.against: {path!r} does not exist; a folder or tar of images is wanted")
        if not path.lower().endswith((*TARS, *LISTS)) and not _images(path):
            raise UserError(
                f"stages.dedup.against: {path!r} holds no images; accepted: a folder of {', '.join(sorted(IMAGES))}, "
                f"a tar ({', '.join(TARS)}) or a list ({', '.join(LISTS)})"
            )


def summary(tests: Sequence[Record], narrow: Sequence[Record]) -> dict[str, Any]:
    """For the manifest: test images and captions, images that no decoder reads, and rows by kind of match."""
    found = {name: sum(record.meta[name] for record in tests) for name in ("images", "captions", "unreadable")}
    matched: Counter[str] = Counter()
    for record in narrow:
        matched.update(record.meta["matched"])
    return {**found, "matched": dict(sorted(matched.items()))}


def files(paths: Sequence[str]) -> list[str]:
    """Every file of the test sets, as full paths."""
    found = []
    for path in paths:
        if path.lower().endswith((*TARS, *LISTS)):
            found.append(path)
        else:
            found += [posixpath.join(path, name) for name in Store(path).list()]
    return found


def _images(folder: str) -> list[str]:
    return [name for name in Store(folder).list() if _extension(name) in IMAGES]


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _specs(path: str) -> list[dict[str, Any]]:
    if path.lower().endswith((*TARS, *LISTS)):
        return [{"path": path}]
    names = _images(path)
    groups = (names[start : start + IMAGES_PER_UNIT] for start in range(0, len(names), IMAGES_PER_UNIT))
    return [{"path": path, "names": group} for group in groups]


def read_items(spec: Mapping[str, Any]) -> Iterator[Item]:
    """The items of one unit.

    Raises:
        UnitError: a tar or list that cannot be read.
    """
    path = spec["path"]
    try:
        if "names" in spec:
            yield from _folder_items(path, spec["names"])
        elif path.lower().endswith(TARS):
            yield from _tar_items(path)
        else:
            yield from _list_items(path)
    except (tarfile.TarError, EOFError, ValueError, csv.Error) as error:
        raise UnitError(f"test set {path!r} cannot be read: {error}") from error


def _folder_items(folder: str, names: Sequence[str]) -> Iterator[Item]:
    store = Store(folder)
    present = set(store.list())
    for name in names:
        stem = name.rpartition(".")[0]
        beside = [f"{stem}.{ending}" for ending in ("txt", "json") if f"{stem}.{ending}" in present]
        captions = [caption for file in beside for caption in _captions_in(file, store.read(file))]
        yield Item(posixpath.join(folder, name), store.read(name), captions)


def _tar_items(path: str) -> Iterator[Item]:
    """Members that share a name up to its ending belong together, wherever they stand."""
    captions: defaultdict[str, list[str]] = defaultdict(list)
    images: list[tuple[str, bytes]] = []
    with Store(path).open(path) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
        for member in tar:
            ending = _extension(member.name)
            if member.isfile() and ending in (*IMAGES, "txt", "json"):
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                if ending in IMAGES:
                    images.append((member.name, data))
                else:
                    captions[_stem(member.name)] += _captions_in(member.name, data)
    for name, data in images:
        yield Item(f"{path}#{name}", data, captions.pop(_stem(name), []))
    for stem, texts in captions.items():
        yield Item(f"{path}#{stem}", None, texts)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _list_items(path: str) -> Iterator[Item]:
    store = Store(posixpath.dirname(path))
    for number, row in enumerate(_list_rows(path, store.read(path).decode("utf-8-sig"))):
        if str(row.get("split", "")).lower() in TRAINING:
            continue
        image = next((str(row[key]) for key in IMAGE_KEYS if row.get(key)), None)
        name = f"{path}#{image or number}"
        data = store.read(image) if image and store.exists(image) else None
        yield Item(name, data, _texts(row))


def _list_rows(path: str, text: str) -> Iterable[Mapping[str, Any]]:
    ending = _extension(path)
    if ending in ("csv", "tsv"):
        head = text.partition("\n")[0]
        return csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in head else ",")
    if ending == "json":
        whole = json.loads(text)
        rows = whole.get("images", []) if isinstance(whole, dict) else whole
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("a list of objects is wanted")
    return rows


def _captions_in(name: str, data: bytes) -> list[str]:
    """Captions of a `.txt` (one a line) or `.json` (an object) file."""
    text = data.decode("utf-8", errors="replace")
    if _extension(name) == "txt":
        return [line for line in text.splitlines() if line.strip()]
    value = json.loads(text)
    return _texts(value) if isinstance(value, dict) else []


def _texts(row: Mapping[str, Any]) -> list[str]:
    """The captions of an object: texts, lists of texts, or lists of objects that hold one."""
    found: list[str] = []
    for value in (row[key] for key in CAPTION_KEYS if row.get(key)):
        for entry in value if isinstance(value, list) else [value]:
            found += _texts(entry) if isinstance(entry, dict) else [str(entry)]
    return found


def describe(item: Item) -> dict[str, Any]:
    """The TEST row of an item."""
    texts = comparable_captions(pa.array(item.captions, pa.string())).to_pylist()
    row: dict[str, Any] = {"item": item.name, "captions": sorted({text for text in texts if text})}
    verdict = inspect(item.data) if item.data is not None else None
    if verdict is None:
        return {**row, "sha256": None, "hashes": None, "thumbnail": None}
    grey = verdict.thumbnail
    hashes = None
    if verdict.phash is not None and grey is not None:
        hashes = orientation_hashes(np.frombuffer(grey, np.uint8).reshape(1, SIDE, SIDE))[0].tolist()
    return {**row, "sha256": verdict.sha256, "hashes": hashes, "thumbnail": grey}
