"""Any tree of images: with class folders or without, or named by a table of labels and captions.

MillionAID is such a tree: class folders in its training part, none in its test part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stages.errors import UnitError
from stages.scenes import tables
from stages.scenes.base import RASTER_SUFFIXES, WEB_SUFFIXES, BadScene, Entry, Scene
from stages.scenes.options import choice, raster_options
from stages.scenes.tree import common_folder, joined, relative, walk
from stages.scenes.words import words
from stages.sources import Source, SourceFile
from stages.storage import Store

SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}
"""Folders that name a split, not a class."""
FILE = ("file", "file_name", "filename", "image", "img", "path")
CAPTION = ("caption", "text", "title")
CAPTIONS = ("captions", "sentences")
LABELS = ("labels", "label", "class", "category")
SPLIT = ("official_split", "split")
_NUMBERS = ("latitude", "longitude", "gsd_m")
_TEXTS = ("sensor", "platform", "modality", "processing_level", "location")
_MISSING = -1


class FolderReader:
    """Reads `format: folder`."""

    touching = 0.5
    locates = True

    def __init__(self, source: Source) -> None:
        self.source = source
        self.options = raster_options(source)
        self.labels = choice(source, "labels", ("folders", "deepest", "none"), "folders")
        self.roots = source.files["images"]
        self.base = common_folder([root_of(root) for root in self.roots])

    def entries(self) -> Iterator[Entry]:
        if self.source.files.get("table"):
            yield from self._listed()
        else:
            for root in self.roots:
                yield from self._found(root)

    def _found(self, root: SourceFile) -> Iterator[Entry]:
        if is_file(root):
            yield Entry(url=relative(root.url, self.base), path=root.url, size=root.size, version=root.version)
            return
        for folder in walk(root.url, self.source.storage_options):
            for file in folder.files:
                if suffix(file.name) in WEB_SUFFIXES | RASTER_SUFFIXES:
                    path = joined(root.url, folder.path, file.name)
                    yield Entry(url=relative(path, self.base), path=path, size=file.size, version=file.version)

    def _listed(self) -> Iterator[Entry]:
        """A row of the table each, whether its file is there or not."""
        known = {entry.url: (entry.size, entry.version) for root in self.roots for entry in self._found(root)}
        columns = self.source.columns
        for table in self.source.files["table"]:
            for row in tables.rows(table, self.source.storage_options):
                name = tables.pick(row, _named(columns.get("url"), FILE))
                if name is None:
                    raise UnitError(
                        f"{table.url}: a row names no file; columns.url names that column, {', '.join(FILE)} are tried"
                    )
                url = str(name).removeprefix("./")
                size, version = known.get(url, (_MISSING, ""))
                note = _note(row, columns)
                yield Entry(url=url, path=joined(self.base, url), size=size, version=version, note=note)

    def notes(self) -> tuple[str, ...]:
        return ()

    def parts(self, entry: Entry) -> Mapping[str, tuple[int, int]]:
        return {}

    def ids(self, entry: Entry) -> tuple[str, ...]:
        return own_names(entry)

    def scene(self, entry: Entry, parts: Mapping[str, bytes]) -> Scene:
        if entry.size == _MISSING:
            raise BadScene("bad_metadata")
        folders = entry.url.split("/")[:-1]
        if not folders or len(self.roots) == 1:
            folders = [self.roots[0].url.rstrip("/").rpartition("/")[2], *folders]
        facts = dict(self.options.facts)
        split = next((SPLITS[name.lower()] for name in folders if name.lower() in SPLITS), None)
        if split:
            facts.setdefault("official_split", split)
        note = entry.note
        labels = [words(label) for label in note.get("labels", [])]
        if self.labels != "none" and "labels" not in note:
            inner = [name for name in entry.url.split("/")[:-1] if name.lower() not in SPLITS]
            labels = [words(name) for name in (inner[-1:] if self.labels == "deepest" else inner)]
        captions = [(text, "user") for text in note.get("captions", [])]
        if "labels" in note and not labels and not captions:
            raise BadScene("bad_metadata")
        facts |= _stated(note) | {"labels": labels}
        return Scene(facts=facts, captions=captions, is_raster=suffix(entry.path) in RASTER_SUFFIXES)


def is_file(root: SourceFile) -> bool:
    """Whether a root is an image by itself, not a folder."""
    return suffix(root.url) in WEB_SUFFIXES | RASTER_SUFFIXES and Store(root.url).home(root.url).isfile(root.url)


def root_of(root: SourceFile) -> str:
    """The folder of a root that is a file, else the root."""
    return root.url.rpartition("/")[0] if is_file(root) else root.url


def suffix(name: str) -> str:
    """What stands behind the last dot, in lower case."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def own_names(entry: Entry) -> tuple[str, ...]:
    """The entry's path, its file's name, and that without its ending."""
    name = entry.url.rpartition("/")[2]
    return entry.url, name, name.rpartition(".")[0] or name


def _named(column: Any, tried: tuple[str, ...]) -> tuple[str, ...]:
    if column is None:
        return tried
    return tuple(column) if isinstance(column, list) else (str(column),)


def _note(row: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of the table says, as JSON values."""
    note: dict[str, Any] = {}
    captions = tables.pick(row, _named(columns.get("captions"), CAPTIONS))
    caption = tables.pick(row, _named(columns.get("caption"), CAPTION))
    found = [str(caption).strip()] if caption is not None else tables.texts(captions)
    if found:
        note["captions"] = list(dict.fromkeys(text for text in found if text))
    wanted = _named(columns.get("labels"), LABELS)
    if any(name in row for name in wanted):
        note["labels"] = tables.texts(tables.pick(row, wanted))
    split = tables.pick(row, SPLIT)
    if split is not None:
        note["official_split"] = SPLITS.get(str(split).lower(), str(split))
    note |= {name: str(value) for name in _TEXTS if (value := tables.pick(row, (name,))) is not None}
    note |= {
        name: str(value) for name in (*_NUMBERS, "acquired_at") if (value := tables.pick(row, (name,))) is not None
    }
    return note


def _stated(note: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a table's row.

    Raises:
        BadScene: a number or a date is none.
    """
    facts: dict[str, Any] = {name: note[name] for name in (*_TEXTS, "official_split") if name in note}
    for name in _NUMBERS:
        if name in note:
            facts[name] = _wanted(tables.number(note[name]))
    if "acquired_at" in note:
        facts["acquired_at"] = _wanted(tables.moment(note["acquired_at"]))
    return facts


def _wanted(value: Any) -> Any:
    if value is None:
        raise BadScene("bad_metadata")
    return value
