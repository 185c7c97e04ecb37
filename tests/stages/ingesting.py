"""Recipes that ingest small worlds of images, run in this process."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import rasterio
import yaml
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_bounds

from curation.manifest import Manifest
from curation.recipe import Recipe, load
from tests.harness import read_output, run_stage

Row = dict[str, Any]


def recipe(folder: Path, sources: Sequence[Mapping[str, Any]], **options: Any) -> Recipe:
    """A recipe of `ingest` alone, read from a file."""
    path = folder / "recipe.yaml"
    whole = {"name": "test", "sources": [dict(source) for source in sources], "stages": {"ingest": options}}
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return load(str(path))


def ingest(folder: Path, *sources: Mapping[str, Any], **options: Any) -> tuple[pa.Table, Manifest]:
    """The table that ingesting the sources gives, and its manifest; the run's root is `folder/run`, made anew."""
    made = recipe(folder, sources, **options)
    root = folder / "run"
    shutil.rmtree(root, ignore_errors=True)
    written = run_stage(made.stages[0], root, sources=[source.name for source in made.sources])
    return read_output(root, written), written


def by_url(table: pa.Table) -> dict[str, Row]:
    """The rows by their URLs, which must differ."""
    rows = {row["url"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return rows


def reasons(table: pa.Table) -> dict[str, str | None]:
    """Why each row was dropped, by URL."""
    return {url: row["reason"] for url, row in by_url(table).items()}


def pixels(seed: int, side: int = 64) -> NDArray[np.uint8]:
    """A picture with structure at many scales, so that it has a hash of its own."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))


def picture(path: Path, seed: int, side: int = 64) -> None:
    """A JPEG or PNG, by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, side)).save(path)


def geotiff(
    path: Path,
    values: NDArray[Any],
    *,
    crs: str | None = "EPSG:32632",
    bounds: tuple[float, float, float, float] = (500_000, 5_000_000, 501_200, 5_001_200),
    nodata: float | None = None,
    names: Sequence[str] = (),
) -> None:
    """A GeoTIFF of bands × height × width values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    place = {"crs": crs, "transform": from_bounds(*bounds, width, height)} if crs else {}
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, nodata=nodata, **place
    ) as dataset:
        dataset.write(values)
        for number, name in enumerate(names, 1):
            dataset.set_band_description(number, name)


def tar(path: Path, members: Mapping[str, bytes]) -> None:
    """A plain tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as made:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))


def jpeg(seed: int, side: int = 64) -> bytes:
    """An encoded picture."""
    out = io.BytesIO()
    Image.fromarray(pixels(seed, side)).save(out, "JPEG")
    return out.getvalue()


def stored(root: Path, row: Row) -> bytes:
    """The bytes that a row points at."""
    place = row["image"]
    data = (root / place["tar"]).read_bytes()
    return data[place["offset"] : place["offset"] + place["size"]]


def fmow_record(**changes: Any) -> dict[str, Any]:
    """A record like fMoW's, of a chip in Canberra; `None` leaves a key out."""
    record = {
        "bounding_boxes": [
            {"ID": -1, "category": "dam", "box": [10, 20, 30, 40]},
            {"ID": 7, "category": "dam", "box": [10, 20, 30, 40]},
        ],
        "country_code": "AUS",
        "raw_location": polygon(149.10, -35.30),
        "img_width": 64,
        "img_height": 64,
        "gsd": 0.5,
        "cloud_cover": 12,
        "off_nadir_angle_dbl": 20.5,
        "scan_direction": "Forward",
        "sensor_platform_name": "WORLDVIEW02",
        "timestamp": "2015-07-01T00:12:13Z",
    }
    return {name: value for name, value in (record | changes).items() if value is not None}


def polygon(west: float, south: float, side: float = 0.01) -> str:
    """A square in degrees, as WKT."""
    east, north = west + side, south + side
    return f"POLYGON (({west} {south}, {east} {south}, {east} {north}, {west} {north}, {west} {south}))"


def fmow_chip(folder: Path, name: str, seed: int, record: Mapping[str, Any] | str | None) -> None:
    """An image in the folders of fMoW, with its record beside it."""
    location = name.rsplit("_", 2)[0]
    at = folder / location.rsplit("_", 1)[0] / location / name
    picture(at.with_suffix(".jpg"), seed)
    if record is not None:
        at.with_suffix(".json").write_text(record if isinstance(record, str) else json.dumps(record))
