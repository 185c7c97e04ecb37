"""BigEarthNet: Sentinel-2 patches of 120 × 120 pixels, in three layouts that are told apart by their files.

* version 1: a folder a patch, with a GeoTIFF a band and `…_labels_metadata.json`;
* version 2: folders of patches a tile, labels and splits in `metadata.parquet` beside them;
* RGB JPEGs with a CSV of labels, corners, projection and time, as RS5M's authors made them.

The view is B04, B03, B02 as reflectance from 0 to 2,000 (in 1/10,000): x / 2000 · 255, clipped, as TensorFlow Datasets
shows them. From processing baseline 04.00 on values carry an offset of 1,000, which is taken off first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache, cached_property
from importlib import resources
from typing import Any

import yaml

import manifests
from stages.errors import UnitError, UserError, listing
from stages.scenes import tables
from stages.scenes.base import WEB_SUFFIXES, BadScene, Bands, Entry, Scene
from stages.scenes.folder import own_names, suffix
from stages.scenes.options import Stretch, choice, raster_options
from stages.scenes.raster import place_of
from stages.scenes.tree import File, Folder, common_folder, joined, relative, walk
from stages.sources import Source, SourceFile
from stages.storage import Store

RGB = ("B04", "B03", "B02")
GSD_M = 10.0
"""Of B02, B03 and B04."""
SIDE = 120
LISTS = {
    "metadata": (
        "metadata.parquet",
        "metadata_for_patches_with_snow_cloud_or_shadow.parquet",
        "BENs2_info.csv",
    ),
    "test": ("test.csv",),
    "snow": ("patches_with_seasonal_snow.csv",),
    "cloud": ("patches_with_cloud_and_shadow.csv",),
}
"""Files that are found by their official names in the source's folders, unless the recipe's path names others."""
_BASELINE = re.compile(r"_N(\d{2})(\d{2})_")
_NAME = re.compile(r"(S2[A-D])_MSIL(1C|2A)_(\d{8}T\d{5,6})_")
_NUMBER = re.compile(r"(\d+)$")
_NO_OFFSET = range(200, 400)
_OFFSET = range(400, 600)
_REPROCESSED = 9999
"""How version 2 marks patches processed anew from products without an offset."""


@cache
def _nomenclature() -> dict[str, Any]:
    text = (resources.files(manifests) / "classes" / "bigearthnet.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@cache
def nineteen() -> dict[str, str | None]:
    """Each of the 43 classes, and each of the 19, to that of the 19 which it is part of; None for those left out."""
    made: dict[str, str | None] = dict.fromkeys(_nomenclature()["left_out"])
    for name, parts in _nomenclature()["classes"].items():
        made |= dict.fromkeys([name, *parts], name)
    return made


@cache
def forty_three() -> frozenset[str]:
    """CORINE's classes as BigEarthNet's first version has them."""
    parts = (part for parts in _nomenclature()["classes"].values() for part in parts)
    return frozenset([*parts, *_nomenclature()["left_out"]])


class BigEarthNetReader:
    """Reads `format: bigearthnet`."""

    touching = 0.5
    locates = False

    def __init__(self, source: Source) -> None:
        self.source = source
        options = raster_options(source)
        is_default = "stretch" not in source.options
        self.options = replace(options, stretch=Stretch("range", 0.0, 2000.0)) if is_default else options
        self.classes = choice(source, "classes", (19, 43), 19)
        self.baseline = _baseline_option(source)
        self.roots = source.files["images"]
        self.base = common_folder([root.url for root in self.roots])

    def entries(self) -> Iterator[Entry]:
        """An entry a patch, or a JPEG; lists are read first, whole."""
        for root in self.roots:
            for folder in walk(root.url, self.source.storage_options):
                yield from self._of_folder(joined(root.url, folder.path), folder)

    def _of_folder(self, path: str, folder: Folder) -> Iterator[Entry]:
        name = path.rstrip("/").rpartition("/")[2]
        bands = {file.name: file for file in folder.files}
        if any(f"{name}_{band}.tif" in bands for band in RGB):
            yield self._patch(path, name, bands)
            return
        for file in folder.files:
            if suffix(file.name) in WEB_SUFFIXES:
                place = joined(path, file.name)
                note = {"meta": self._described(file.name.rpartition(".")[0])}
                url = relative(place, self.base)
                yield Entry(url=url, path=place, size=file.size, version=file.version, note=note)

    def _patch(self, path: str, name: str, files: Mapping[str, File]) -> Entry:
        found = [file for band in RGB if (file := files.get(f"{name}_{band}.tif"))]
        record = f"{name}_labels_metadata.json"
        if _BASELINE.search(name) and not self._metadata:
            raise UnitError(
                f"source {self.source.name!r}: patches of version 2 need metadata.parquet, which is not in "
                f"{listing(root.url for root in self.roots)}; name the folder that holds it, or path.metadata"
            )
        rasters = {file[len(name) + 1 :]: files[file].size for file in files if file.endswith(".tif")}
        note = {
            "bands": len(found) == len(RGB),
            "record": record in files,
            "meta": self._described(name),
            "files": rasters,
        }
        version = " ".join(file.version for file in (*found, *filter(None, [files.get(record)])))
        return Entry(url=name, path=path, size=sum(file.size for file in found), version=version, note=note)

    def _described(self, name: str) -> dict[str, Any] | None:
        """What tables and lists say of a patch, as JSON values; None when nothing does."""
        number = _NUMBER.search(name)
        text = self._metadata.get(name) or (self._metadata.get(number[1].lstrip("0") or "0") if number else None)
        flags = {kind: True for kind in ("test", "snow", "cloud") if name in self._lists[kind]}
        return {**(json.loads(text) if text else {}), **flags} or None

    @cached_property
    def _files(self) -> dict[str, list[SourceFile]]:
        """The tables and lists of each kind: those that the recipe names, else those that lie in the folders."""
        found: dict[str, list[SourceFile]] = {kind: list(self.source.files.get(kind, ())) for kind in LISTS}
        for root in self.roots:
            for folder in walk_top(root.url, self.source.storage_options):
                for kind, names in LISTS.items():
                    if not self.source.files.get(kind):
                        mine = (file for file in folder.files if file.name in names)
                        paths = ((joined(root.url, folder.path, file.name), file) for file in mine)
                        found[kind] += [
                            SourceFile(url=path, size=file.size, version=file.version) for path, file in paths
                        ]
        return found

    @cached_property
    def _lists(self) -> dict[str, frozenset[str]]:
        return {kind: frozenset(self._names(self._files[kind])) for kind in ("test", "snow", "cloud")}

    def notes(self) -> list[str]:
        """What nothing is dropped for, since no list or column says which patches it holds for."""
        if any(file.url.endswith(".parquet") for file in self._files["metadata"]):
            return []
        lists = {"official_test": "test", "snow": "snow", "cloud": "cloud"}
        missing = [reason for reason, kind in lists.items() if not self._lists[kind]]
        missing = [reason for reason in missing if reason not in self.options.keep]
        if not missing:
            return []
        named = listing(LISTS[lists[reason]][0] for reason in missing)
        are = "is" if len(missing) == 1 else "are"
        return [
            f"source {self.source.name!r}: nothing was dropped for {listing(missing)}, since {named} {are} not in its "
            "folders; path: can name them"
        ]

    def _names(self, files: list[SourceFile]) -> Iterator[str]:
        for file in files:
            try:
                text = Store(file.url, self.source.storage_options).read(file.url).decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise UnitError(f"{file.url} cannot be read: {error}") from error
            yield from (line.split(",")[0].strip().strip('"') for line in text.splitlines())

    @cached_property
    def _metadata(self) -> dict[str, str]:
        """Rows of version 2's parquet by patch, and of the JPEGs' CSV by number; as JSON, for less memory."""
        known: dict[str, str] = {}
        for file in self._files["metadata"]:
            for row in tables.rows(file, self.source.storage_options):
                patch = tables.pick(row, ("patch_id", "img_name", "name"))
                if patch is not None:
                    known[str(patch).rpartition("/")[2].removesuffix(".jpg")] = json.dumps(_plain(row))
        return known

    def parts(self, entry: Entry) -> Mapping[str, tuple[int, int]]:
        return {}

    def ids(self, entry: Entry) -> tuple[str, ...]:
        return (entry.url,) if "bands" in entry.note else own_names(entry)

    def scene(self, entry: Entry, parts: Mapping[str, bytes]) -> Scene:
        meta: dict[str, Any] = dict(entry.note.get("meta") or {})
        is_patch = "bands" in entry.note
        if entry.note.get("record"):
            meta |= self._record(entry)
        self._drop(meta)
        if is_patch and not entry.note["bands"]:
            raise BadScene("corrupt")
        facts = _of_name(entry.url) | self._labelled(meta) | _placed(meta, is_patch)
        facts |= {"gsd_m": GSD_M, "modality": "optical", "bands": list(RGB), "sensor": "MSI"}
        acquired = tables.moment(meta.get("acquired"))
        if acquired is None and meta.get("acquired"):
            raise BadScene("bad_metadata")
        facts = {**facts, **({"acquired_at": acquired} if acquired else {}), **self.options.facts}
        if not is_patch:
            return Scene(facts=facts)
        files = tuple((f"{entry.path}/{entry.url}_{band}.tif", 1) for band in RGB)
        offset = self._offset(entry, meta)
        native = tuple((f"{entry.path}/{entry.url}_{end}", size) for end, size in entry.note["files"].items())
        return Scene(facts=facts, is_raster=True, bands=Bands(files, RGB, offset), native=native)

    def _drop(self, meta: Mapping[str, Any]) -> None:
        """Raise `BadScene` for what is dropped by default: official test splits, snow, cloud."""
        reasons = (
            ("official_test", meta.get("test") or meta.get("official_split") == "test"),
            ("snow", meta.get("snow")),
            ("cloud", meta.get("cloud")),
        )
        for reason, holds in reasons:
            if holds and reason not in self.options.keep:
                raise BadScene(reason)

    def _record(self, entry: Entry) -> dict[str, Any]:
        path = f"{entry.path}/{entry.url}_labels_metadata.json"
        try:
            record = tables.parsed(Store(path, self.source.storage_options).read(path))
        except (OSError, ValueError) as error:
            raise BadScene("bad_metadata") from error
        corners = record.get("coordinates") if isinstance(record, dict) else None
        if not isinstance(corners, dict) or not isinstance(record.get("labels"), list):
            raise BadScene("bad_metadata")
        return _plain({**record, **corners})

    def _labelled(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Labels in the nomenclature asked for, and the official split.

        Raises:
            BadScene: there are none, or not of BigEarthNet.
            UnitError: the 43 are asked for, and the source has the 19.
        """
        stated = list(dict.fromkeys(meta.get("labels") or []))
        if not stated or any(label not in nineteen() for label in stated):
            raise BadScene("bad_metadata")
        if self.classes == 19:
            stated = list(dict.fromkeys(label for name in stated if (label := nineteen()[name])))
        elif not set(stated) <= forty_three():
            raise UnitError(f"source {self.source.name!r} has 19 classes, and options.classes is 43; leave it out")
        if not stated:
            raise BadScene("bad_metadata")
        split = "test" if meta.get("test") else meta.get("official_split")
        return {"labels": stated, "official_split": split}

    def _offset(self, entry: Entry, meta: Mapping[str, Any]) -> float:
        """What is added to a patch's values, by its processing baseline.

        Raises:
            BadScene: nothing says which baseline it is.
            UnitError: a baseline that is not known.
        """
        found = _BASELINE.search(str(meta.get("tile_source") or "")) or _BASELINE.search(f"{entry.url}_")
        baseline = self.baseline if self.baseline is not None else int(found[1] + found[2]) if found else None
        if baseline is None:
            raise BadScene("bad_metadata")
        if baseline == _REPROCESSED or baseline in _NO_OFFSET:
            return 0.0
        if baseline in _OFFSET:
            return -1000.0
        raise UnitError(
            f"{entry.path}: processing baseline {baseline // 100:02d}.{baseline % 100:02d} is not known; "
            f'options.baseline of source {self.source.name!r} says which one holds, as "02.05" or "04.00"'
        )


def walk_top(root: str, access: Mapping[str, Any]) -> Iterator[Folder]:
    """The root's own files, and those of a folder of splits."""
    filesystem = Store(root, access).fs
    for path in ("", "splits"):
        place = Store(root, access).full(path)
        if filesystem.isdir(place):
            names = sorted(info["name"] for info in filesystem.ls(place, detail=True) if info["type"] == "file")
            infos = {name: filesystem.info(name) for name in names if suffix(name) in ("csv", "parquet")}
            files = tuple(
                File(name.rpartition("/")[2], int(info["size"]), str(info.get("mtime", "")))
                for name, info in infos.items()
            )
            yield Folder(path, files)


def _baseline_option(source: Source) -> int | None:
    value = source.options.get("baseline")
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"\d{2}\.\d{2}", value):
        raise UserError(f'source {source.name!r}: options.baseline is {value!r}; a text like "02.05" is needed')
    return int(value.replace(".", ""))


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A record of any layout under one set of names, without what is empty."""
    made: dict[str, Any] = {
        "labels": tables.texts(tables.pick(row, ("labels", "cls_label", "class_label"))),
        "official_split": tables.pick(row, ("split",)),
        "snow": _is_true(tables.pick(row, ("contains_seasonal_snow",))),
        "cloud": _is_true(tables.pick(row, ("contains_cloud_or_shadow",))),
        "projection": tables.pick(row, ("projection",)),
        "tile_source": tables.pick(row, ("tile_source",)),
    }
    acquired = tables.pick(row, ("acquisition_date", "acquisition_time"))
    made["acquired"] = str(acquired) if acquired is not None else None
    corners = [tables.number(tables.pick(row, names)) for names in (("ulx",), ("lry", "lly"), ("lrx",), ("uly",))]
    if any(corner is not None for corner in corners):
        made["bounds"] = corners
    return {name: value for name, value in made.items() if value not in (None, False, [])}


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "1.0")


def _of_name(name: str) -> dict[str, Any]:
    """Satellite, level and time, from a patch's official name."""
    match = _NAME.match(name + "_")
    if match is None:
        return {}
    text = match[3]
    # names of single-digit hours lack their zero: 20170924T93021
    stamp = f"{text[:9]}{text[9:].zfill(6)}"
    try:
        acquired = tables.moment(datetime.strptime(stamp, "%Y%m%dT%H%M%S"))
    except ValueError:
        acquired = None
    return {"platform": f"Sentinel-{match[1][1:]}", "processing_level": f"L{match[2]}", "acquired_at": acquired}


def _placed(meta: Mapping[str, Any], is_patch: bool) -> dict[str, Any]:
    """Where the record's corners say that the patch lies.

    Raises:
        BadScene: corners that are missing, or the wrong way round.
    """
    bounds = meta.get("bounds")
    if bounds is None or not meta.get("projection"):
        if bounds is None and is_patch:
            return {}
        raise BadScene("bad_metadata")
    if None in bounds or bounds[0] >= bounds[2] or bounds[1] >= bounds[3]:
        raise BadScene("bad_metadata")
    return place_of(meta["projection"], tuple(bounds), (SIDE, SIDE)).facts
