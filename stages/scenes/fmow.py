"""Functional Map of the World: images with a JSON record beside each.

`{class}_{number}_{image}_rgb.jpg` and `…_msrgb.jpg` are renderings of one chip; all chips of `{class}_{number}` show
one location. Records state the sensor's nominal GSD; what a pixel covers on the ground follows from the chip's
polygon, whose corners are geographic, so that pixels are square in degrees and not in metres.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

import manifests
from stages.geo.countries import country_distance_km, is_country_code
from stages.geo.ground import is_on_earth
from stages.scenes import tables
from stages.scenes.base import RASTER_SUFFIXES, WEB_SUFFIXES, BadScene, Entry, Scene
from stages.scenes.folder import SPLITS, own_names, suffix
from stages.scenes.options import raster_options
from stages.scenes.raster import place_of
from stages.scenes.tree import File, Folder, common_folder, joined, relative, walk
from stages.sources import Source
from stages.storage import Store

NAME = re.compile(r"(?P<location>.+_\d+)_(?P<image>\d+)_(?P<kind>rgb|msrgb)$")
BORDER_KM = 25.0
"""A record whose country lies farther from the image than this contradicts itself."""
MOST_DEGREES = 1.0
"""Across a chip, which is some kilometres wide: a longer side is wrong, or goes round the Earth at the date line."""
PLATFORMS = {
    "GEOEYE01": "GeoEye-1",
    "QUICKBIRD02": "QuickBird-2",
    "WORLDVIEW02": "WorldView-2",
    "WORLDVIEW03_VNIR": "WorldView-3",
}
LEVELS = {"rgb": "pan-sharpened", "msrgb": "multispectral"}
RESOLUTIONS = {"rgb": "pan_resolution_dbl", "msrgb": "multi_resolution_dbl"}
"""What a rendering's pixels resolve, for records that lack `gsd`."""
_ACQUISITION = {
    "cloud_cover": "cloud_cover",
    "off_nadir": "off_nadir_angle_dbl",
    "sun_azimuth": "sun_azimuth_dbl",
    "sun_elevation": "sun_elevation_dbl",
    "target_azimuth": "target_azimuth_dbl",
}
_TEST_FOLDERS = frozenset({"test", "seq", "test_gt", "seq_gt"})


@cache
def classes() -> dict[str, str | None]:
    """Readable names by category; None for the one that names nothing (`false_detection`)."""
    text = (resources.files(manifests) / "classes" / "fmow.yaml").read_text(encoding="utf-8")
    found: dict[str, str | None] = yaml.safe_load(text)
    return found


class FmowReader:
    """Reads `format: fmow`."""

    touching = 0.0
    locates = False

    def __init__(self, source: Source) -> None:
        self.source = source
        self.options = raster_options(source)
        self.roots = source.files["images"]
        self.base = common_folder([root.url for root in self.roots])

    def entries(self) -> Iterator[Entry]:
        """An entry for each image, and for each record without one."""
        for root in self.roots:
            for folder in walk(root.url, self.source.storage_options):
                yield from self._of_folder(joined(root.url, folder.path), folder)

    def _of_folder(self, path: str, folder: Folder) -> Iterator[Entry]:
        records = {file.name[:-5]: file for file in folder.files if file.name.endswith(".json")}
        for file in folder.files:
            stem, ending = file.name.rpartition(".")[0], suffix(file.name)
            if ending in WEB_SUFFIXES | RASTER_SUFFIXES:
                yield self._entry(joined(path, file.name), file, records.pop(stem, None))
        for stem, record in records.items():
            if NAME.match(stem):
                yield self._entry(joined(path, f"{stem}.jpg"), None, record)

    def _entry(self, path: str, image: File | None, record: File | None) -> Entry:
        return Entry(
            url=relative(path, self.base),
            path=path,
            size=image.size if image else 0,
            note={"image": image is not None, "record": record is not None},
            version=" ".join(file.version for file in (image, record) if file),
        )

    def notes(self) -> tuple[str, ...]:
        return ()

    def parts(self, entry: Entry) -> Mapping[str, tuple[int, int]]:
        return {}

    def ids(self, entry: Entry) -> tuple[str, ...]:
        return own_names(entry)

    def scene(self, entry: Entry, parts: Mapping[str, bytes]) -> Scene:
        if not entry.note["image"] or not entry.note["record"]:
            raise BadScene("bad_metadata")
        record = self._record(entry)
        name = NAME.match(own_names(entry)[2])
        place = _place(record, entry)
        facts = (
            place.facts
            | _stated(record, name["kind"] if name else None)
            | {"labels": _labels(record), "objects": _objects(record)}
        )
        _check_country(record.get("country_code"), facts["latitude"], facts["longitude"])
        facts |= {"modality": "optical", "bands": ["red", "green", "blue"]}
        if name:
            facts |= {"location": f"{self.source.name}/{name['location']}", "processing_level": LEVELS[name["kind"]]}
        facts |= self.options.facts
        split = _split(joined(self.base.rpartition("/")[2], entry.url))
        if split:
            facts.setdefault("official_split", split)
        if facts.get("official_split") == "test" and "official_test" not in self.options.keep:
            raise BadScene("official_test")
        is_raster = suffix(entry.path) in RASTER_SUFFIXES
        return Scene(facts=facts, is_raster=is_raster, footprint=place.footprint, record_size=_size(record) or (1, 1))

    def _record(self, entry: Entry) -> dict[str, Any]:
        path = entry.path.rpartition(".")[0] + ".json"
        try:
            record = tables.parsed(Store(path, self.source.storage_options).read(path))
        except (OSError, ValueError) as error:
            raise BadScene("bad_metadata") from error
        if not isinstance(record, dict):
            raise BadScene("bad_metadata")
        return record


def _split(path: str) -> str | None:
    for name in path.lower().split("/")[:-1]:
        if name in _TEST_FOLDERS:
            return "test"
        if name in SPLITS:
            return SPLITS[name]
    return None


def _boxes(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    boxes = record.get("bounding_boxes")
    return [box for box in boxes if isinstance(box, dict)] if isinstance(boxes, list) else []


def _labels(record: Mapping[str, Any]) -> list[str]:
    """Readable names of the record's classes, each once.

    Raises:
        BadScene: it has none, or one that is not among fMoW's.
    """
    stated = [box.get("category") for box in _boxes(record)] or [record.get("category")]
    named = [name for name in stated if name]
    if not named or not all(isinstance(name, str) and name in classes() for name in named):
        raise BadScene("bad_metadata")
    return [text for name in dict.fromkeys(named) if (text := classes()[name])]


def _objects(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Annotated boxes, each once: x, y, width and height in pixels of the record's image."""
    found = {}
    for box in _boxes(record):
        label, sides = classes().get(str(box.get("category"))), box.get("box")
        if label is None or not isinstance(sides, list) or len(sides) != 4:
            continue
        values = [tables.number(side) for side in sides]
        if None not in values:
            found[(label, *values)] = dict(zip(("label", "x", "y", "width", "height"), (label, *values), strict=True))
    return list(found.values())


def _place(record: Mapping[str, Any], entry: Entry) -> Any:
    """Where the chip lies, from its polygon; pixel spacing is per pixel of the record's image.

    Raises:
        BadScene: the polygon is missing, broken, empty, too large for a chip or not on Earth.
    """
    import shapely

    try:
        polygon = shapely.from_wkt(str(record.get("raw_location")))
    except shapely.errors.ShapelyError as error:
        raise BadScene("bad_metadata") from error
    if polygon is None or polygon.geom_type != "Polygon" or not polygon.is_valid or not polygon.area:
        raise BadScene("bad_metadata")
    west, south, east, north = polygon.bounds
    is_chip = max(east - west, north - south) <= MOST_DEGREES
    if not (is_chip and is_on_earth(south, west) and is_on_earth(north, east)):
        raise BadScene("bad_metadata")
    width, height = _size(record) or (1, 1)
    return place_of("EPSG:4326", (west, south, east, north), (height, width))


def _size(record: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = record.get("img_width"), record.get("img_height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return None


def _stated(record: Mapping[str, Any], kind: str | None) -> dict[str, Any]:
    """Sensor, time, nominal GSD and facts of the acquisition.

    Raises:
        BadScene: a time that is none.
    """
    sensor = record.get("sensor_platform_name")
    acquired = tables.moment(record.get("timestamp"))
    if acquired is None and record.get("timestamp"):
        raise BadScene("bad_metadata")
    acquisition: dict[str, Any] = {name: tables.number(record.get(key)) for name, key in _ACQUISITION.items()}
    acquisition["scan_direction"] = str(record["scan_direction"]).lower() if record.get("scan_direction") else None
    gsd = tables.number(record.get("gsd")) or tables.number(record.get(RESOLUTIONS.get(kind or "", "")))
    return {
        "sensor": str(sensor) if sensor else None,
        "platform": PLATFORMS.get(str(sensor)),
        "acquired_at": acquired,
        "gsd_m": gsd if gsd and gsd > 0 else None,
        "acquisition": acquisition if any(value is not None for value in acquisition.values()) else None,
    }


def _check_country(code: Any, latitude: float, longitude: float) -> None:
    """Raise `BadScene` for a code that is none, or of a country that is elsewhere."""
    if not code:
        return
    if not isinstance(code, str) or not is_country_code(code):
        raise BadScene("bad_metadata")
    away = country_distance_km(code, latitude, longitude)
    if away is not None and away > BORDER_KM:
        raise BadScene("bad_metadata")
