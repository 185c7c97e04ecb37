"""Rasters of a folder: bands, stretches, places on Earth, and scenes cut into tiles."""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from stages.shards import ShardsConfig, ShardsStage
from tests.harness import run_stage
from tests.stages.ingesting import by_url, geotiff, ingest, picture, pixels, reasons, stored


def scenes(folder: Path, **options: Any) -> dict[str, Any]:
    return {"name": "scenes", "format": "folder", "path": str(folder), "options": options}


def view(folder: Path, row: dict[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(stored(folder / "run", row))))


def bands(count: int = 3, side: int = 64) -> NDArray[np.uint8]:
    return np.stack([pixels(number, side)[..., 0] for number in range(count)])


def test_eight_bits_stay_as_they_are(tmp_path: Path) -> None:
    values = bands()
    geotiff(tmp_path / "data/a.tif", values)
    [row] = ingest(tmp_path, scenes(tmp_path / "data"))[0].to_pylist()
    assert np.array_equal(view(tmp_path, row), values.transpose(1, 2, 0))
    assert (row["stretch"], row["bands"], row["format"]) == ("none", ["1", "2", "3"], "png")
    assert (row["crs"], row["utm_zone"], row["country"]) == ("EPSG:32632", "32T", "Italy")
    assert row["pixel_x_m"] == pytest.approx(1200 / 64)
    assert row["location"] == "scenes/a.tif"
    assert row["gsd_m"] is None, "what a pixel covers is not what a sensor resolves"


def test_sixteen_bits_and_many_bands(tmp_path: Path) -> None:
    values = bands(8).astype(np.uint16) * 40 + 500
    geotiff(tmp_path / "data/a.tif", values, names=[f"B{number:02d}" for number in range(1, 9)])
    options = {"bands": ["B04", 3, "B02"], "stretch": {"range": [500, 10_700]}, "facts": {"sensor": "MSI", "gsd_m": 10}}
    [row] = ingest(tmp_path, scenes(tmp_path / "data", **options))[0].to_pylist()
    assert (row["bands"], row["stretch"]) == (["B04", "B03", "B02"], "range 500 to 10700")
    assert (row["sensor"], row["gsd_m"]) == ("MSI", 10.0)
    assert np.abs(view(tmp_path, row).astype(int) - bands(8)[[3, 2, 1]].transpose(1, 2, 0)).max() <= 1


def test_automatic_stretch_uses_percentiles_and_leaves_out_nodata(tmp_path: Path) -> None:
    values = (bands().astype(np.uint16) + 1) * 10
    values[:, :8] = 65_535
    geotiff(tmp_path / "data/a.tif", values, nodata=65_535)
    [row] = ingest(tmp_path, scenes(tmp_path / "data"))[0].to_pylist()
    assert row["stretch"].startswith("percentiles 2 to 98: ")
    assert "65535" not in row["stretch"]
    assert view(tmp_path, row)[:8].max() == 0
    assert view(tmp_path, row).max() == 255


def test_one_band_is_grey_and_floats_work(tmp_path: Path) -> None:
    geotiff(tmp_path / "data/a.tif", bands(1).astype(np.float32) / 255)
    [row] = ingest(tmp_path, scenes(tmp_path / "data", stretch={"range": [0, 1]}))[0].to_pylist()
    made = view(tmp_path, row)
    assert np.array_equal(made[..., 0], made[..., 2])
    assert np.abs(made[..., 0].astype(int) - bands(1)[0]).max() <= 1


def test_a_band_that_is_not_there(tmp_path: Path) -> None:
    geotiff(tmp_path / "data/a.tif", bands())
    assert reasons(ingest(tmp_path, scenes(tmp_path / "data", bands=[5, 4, 3]))[0]) == {"a.tif": "bad_metadata"}


def test_without_georeference_nothing_is_claimed(tmp_path: Path) -> None:
    geotiff(tmp_path / "data/a.tif", bands(), crs=None)
    [row] = ingest(tmp_path, scenes(tmp_path / "data"))[0].to_pylist()
    assert row["reason"] is None
    assert {row[name] for name in ("crs", "country", "latitude", "pixel_x_m", "location", "utm_zone")} == {None}


def test_scenes_that_cover_each_other_share_a_location_and_neighbours_do_not(tmp_path: Path) -> None:
    for name, left in (("a", 500_000), ("b", 500_100), ("c", 501_100)):
        bounds = (left, 5_000_000, left + 1200, 5_001_200)
        geotiff(tmp_path / f"data/{name}.tif", bands(), bounds=bounds)
    rows = by_url(ingest(tmp_path, scenes(tmp_path / "data"))[0])
    assert {url: row["location"] for url, row in rows.items()} == {
        "a.tif": "scenes/a.tif",
        "b.tif": "scenes/a.tif",
        "c.tif": "scenes/c.tif",
    }


def test_tiles_cover_a_scene_and_know_their_place(tmp_path: Path) -> None:
    values = bands(side=100)
    geotiff(tmp_path / "data/a.tif", values, bounds=(500_000, 5_000_000, 501_000, 5_001_000))
    table, _ = ingest(tmp_path, scenes(tmp_path / "data", tile={"size": 64}))
    rows = by_url(table)
    assert list(rows) == [f"a.tif#xywh={x},{y},64,64" for y in (0, 36) for x in (0, 36)]
    row = rows["a.tif#xywh=36,0,64,64"]
    assert np.array_equal(view(tmp_path, row), values[:, :64, 36:].transpose(1, 2, 0))
    assert row["window"] == {"x": 36, "y": 0, "width": 64, "height": 64}
    assert row["bounds"] == {"left": 500_360, "bottom": 5_000_360, "right": 501_000, "top": 5_001_000}
    assert (row["pixel_x_m"], row["pixel_y_m"]) == (pytest.approx(10), pytest.approx(10))
    assert {row["location"] for row in rows.values()} == {"scenes/a.tif"}
    assert {row["path"] for row in rows.values()} == {str(tmp_path / "data/a.tif")}


def test_tiles_without_data_are_dropped(tmp_path: Path) -> None:
    values = np.maximum(bands(side=128), 1)
    values[:, :, 64:] = 0
    values[:, :20, :64] = 0
    geotiff(tmp_path / "data/a.tif", values)
    table, manifest = ingest(tmp_path, scenes(tmp_path / "data", tile={"size": 64, "max_nodata": 0.2}))
    assert list(reasons(table).values()) == ["nodata", "nodata", None, "nodata"]
    assert manifest.counts["scenes"]["dropped"] == {"nodata": 3}


def test_tiles_of_a_ground_size(tmp_path: Path) -> None:
    geotiff(tmp_path / "data/a.tif", bands(side=128), bounds=(500_000, 5_000_000, 500_640, 5_000_640))
    geotiff(tmp_path / "data/b.tif", bands(side=128), crs=None)
    table, _ = ingest(tmp_path, scenes(tmp_path / "data", tile={"size": 32, "target_gsd": 10.0, "overlap": 4}))
    rows = by_url(table)
    assert rows.pop("b.tif")["reason"] == "bad_metadata", "its pixels have no size on the ground"
    assert list(rows) == [f"a.tif#xywh={x},{y},64,64" for y in (0, 56, 64) for x in (0, 56, 64)]
    first = rows["a.tif#xywh=0,0,64,64"]
    assert (first["width"], first["height"]) == (32, 32)
    assert (first["pixel_x_m"], first["pixel_y_m"]) == (pytest.approx(10), pytest.approx(10))


def test_large_web_images_are_cut_and_small_ones_stay(tmp_path: Path) -> None:
    picture(tmp_path / "data/large.png", 1, side=100)
    picture(tmp_path / "data/small.png", 2, side=50)
    rows = by_url(ingest(tmp_path, scenes(tmp_path / "data"), tile={"size": 64})[0])
    assert len(rows) == 5
    assert rows["small.png"]["image"]["tar"] == str(tmp_path / "data/small.png")
    tile = rows["large.png#xywh=36,36,64,64"]
    assert np.array_equal(view(tmp_path, tile), pixels(1, 100)[36:, 36:])
    assert tile["location"] == "scenes/large.png"


def test_a_scene_beyond_the_cap_can_still_be_cut(tmp_path: Path) -> None:
    geotiff(tmp_path / "data/a.tif", bands(side=100))
    options = {"max_pixels": 5000}
    assert reasons(ingest(tmp_path, scenes(tmp_path / "data"), **options)[0]) == {"a.tif": "too_many_pixels"}
    table, _ = ingest(tmp_path, scenes(tmp_path / "data", tile={"size": 64}), **options)
    assert set(reasons(table).values()) == {None}


def test_scenes_across_the_date_line_are_where_they_are_and_touch_no_others(tmp_path: Path) -> None:
    """Zone 60 south ends in Taveuni, at 180 degrees; the other scene lies as far south, in Mozambique."""
    for name, crs, bounds in (
        ("fiji", "EPSG:32760", (818_000, 8_140_000, 824_000, 8_146_000)),
        ("same", "EPSG:32760", (818_100, 8_140_000, 824_100, 8_146_000)),
        ("africa", "EPSG:32737", (200_000, 8_140_000, 206_000, 8_146_000)),
    ):
        geotiff(tmp_path / f"data/{name}.tif", bands(), crs=crs, bounds=bounds)
    rows = by_url(ingest(tmp_path, scenes(tmp_path / "data"))[0])
    assert {url: row["location"] for url, row in rows.items()} == {
        "africa.tif": "scenes/africa.tif",
        "fiji.tif": "scenes/fiji.tif",
        "same.tif": "scenes/fiji.tif",
    }
    assert abs(abs(rows["fiji.tif"]["longitude"]) - 180) < 0.1
    assert (rows["fiji.tif"]["country"], rows["africa.tif"]["country"]) == ("Fiji", "Mozambique")


def test_a_scene_stays_on_one_side_of_the_split_though_its_tiles_lie_in_many_blocks(tmp_path: Path) -> None:
    """Scenes of 80 km by 80 km, 40 km a tile: of 10 km blocks, each tile lies in another."""
    for number in range(8):
        left = 200_000 + number * 80_000
        bounds = (left, 5_000_000, left + 80_000, 5_080_000)
        geotiff(tmp_path / f"data/{number}.tif", bands(side=64) + np.uint8(number), bounds=bounds)
    ingest(tmp_path, scenes(tmp_path / "data", tile={"size": 32}))
    run_stage(ShardsStage(ShardsConfig(count=1, val_fraction=0.5)), tmp_path / "run", "ingest")
    sides: dict[str, list[str]] = {}
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"run/shards/{split}/test-{split}-0000.tar") as tar:
            for name in tar.getnames():
                if name.endswith(".json"):
                    member = tar.extractfile(name)
                    assert member is not None
                    passport = json.load(member)
                    sides.setdefault(passport["location"], []).append(split)
                    assert passport["window"]["width"] == 32
    assert {len(found) for found in sides.values()} == {4}
    assert {len(set(found)) for found in sides.values()} == {1}
    assert {found[0] for found in sides.values()} == {"train", "val"}


def test_a_16_bit_geotiff_of_twelve_real_bands(real_data: Path, tmp_path: Path) -> None:
    """The bands of a Sentinel-2 patch in one file, as many archives have them; the view is of B04 from 0 to 2,000."""
    place = real_data / "rs/bigearthnet/S2A_MSIL2A_20171221T112501_56_35"
    files = sorted(place.glob("*.tif"))
    values = []
    for file in files:
        with rasterio.open(file) as data:
            values.append(data.read(1, out_shape=(120, 120)))
            bounds, crs = tuple(data.bounds), data.crs.to_string()
    names = [file.stem.rpartition("_")[2] for file in files]
    geotiff(tmp_path / "data/pasture/a.tif", np.stack(values), crs=crs, bounds=bounds, names=names)
    options = {"bands": ["B04", "B03", "B02"], "stretch": {"range": [0, 2000]}, "facts": {"gsd_m": 10}}
    [row] = ingest(tmp_path, scenes(tmp_path / "data", **options))[0].to_pylist()
    assert (row["bands"], row["stretch"], row["labels"]) == (["B04", "B03", "B02"], "range 0 to 2000", ["pasture"])
    assert (row["country"], row["utm_zone"], row["pixel_x_m"]) == ("Portugal", "29S", 10.0)
    red = values[names.index("B04")].astype(float)
    expected = np.clip(red / 2000 * 255, 0, 255).astype(np.uint8)
    assert np.array_equal(view(tmp_path, row)[..., 0], expected)
    with rasterio.open(row["native"][0]["path"]) as untouched:
        assert (untouched.count, untouched.dtypes[0]) == (12, "uint16")


@pytest.mark.parametrize(
    ("crs", "place", "wanted"),
    [
        # (degrees of the middle, metres of a pixel across and down), by the projections' own formulas
        ("EPSG:3857", (1_000_000, 8_000_000, 10, -10), (58.15, 8.99, 10 * math.cos(math.radians(58.15)), None)),
        ("EPSG:2263", (1_000_000, 500_000, 30, -30), (41.54, -73.94, 9.144, 9.144)),
        ("EPSG:4326", (190.0, 60.0, 0.0001, -0.0001), (60.0, -170.0, 5.58, 11.14)),
        ("EPSG:3031", (100_000, 0, 10, -10), (-89.05, 90.0, 10.0, 10.0)),
    ],
)
def test_spacing_is_that_of_the_ground_in_any_projection(
    tmp_path: Path, crs: str, place: tuple[float, float, float, float], wanted: tuple[float, ...]
) -> None:
    left, top, across, down = place
    geotiff(tmp_path / "data/a.tif", bands(), crs=crs, bounds=(left, top + 64 * down, left + 64 * across, top))
    [row] = ingest(tmp_path, scenes(tmp_path / "data"))[0].to_pylist()
    latitude, longitude, spacing_x, spacing_y = wanted
    assert (row["latitude"], row["longitude"]) == (pytest.approx(latitude, abs=0.1), pytest.approx(longitude, abs=0.5))
    assert row["pixel_x_m"] == pytest.approx(spacing_x, rel=0.03)
    assert row["pixel_y_m"] == pytest.approx(spacing_y or spacing_x, rel=0.03)


def test_rasters_that_are_turned_or_of_no_place(tmp_path: Path) -> None:
    turned = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(10, -20)
    upside_down = Affine.translation(500_000, 4_999_000) @ Affine.scale(10, 10)
    for name, crs, transform in (
        ("turned", "EPSG:32632", turned),
        ("upside_down", "EPSG:32632", upside_down),
        ("local", 'LOCAL_CS["site",UNIT["metre",1]]', Affine.translation(0, 9) @ Affine.scale(1, -1)),
    ):
        geotiff(tmp_path / f"data/{name}.tif", bands())
        with rasterio.open(tmp_path / f"data/{name}.tif", "r+") as dataset:
            dataset.crs, dataset.transform = crs, transform
    rows = by_url(ingest(tmp_path, scenes(tmp_path / "data"))[0])
    found = rows["turned.tif"]
    assert (found["pixel_x_m"], found["pixel_y_m"]) == (pytest.approx(10), pytest.approx(20))
    middle = turned @ (32, 32)
    assert found["bounds"]["left"] < middle[0] < found["bounds"]["right"]
    assert found["bounds"]["right"] - found["bounds"]["left"] == pytest.approx(640 * math.cos(math.pi / 6) + 1280 / 2)
    assert rows["upside_down.tif"]["bounds"]["bottom"] == 4_999_000
    assert rows["upside_down.tif"]["pixel_y_m"] == pytest.approx(10)
    assert (rows["local.tif"]["reason"], rows["local.tif"]["latitude"], rows["local.tif"]["pixel_x_m"]) == (None,) * 3


def test_bytes_that_flip_cost_a_row_at_most(tmp_path: Path) -> None:
    """Sixty GeoTIFFs with up to twenty wrong bytes, most of them in the header and its tags."""
    rng = np.random.default_rng(4)
    for number in range(60):
        path = tmp_path / f"data/{number}.tif"
        geotiff(path, bands(4).astype(np.uint16) * 50)
        data = bytearray(path.read_bytes())
        for _ in range(rng.integers(1, 20)):
            data[rng.integers(500 if rng.random() < 0.6 else len(data))] = int(rng.integers(256))
        path.write_bytes(bytes(data))
    rows = ingest(tmp_path, scenes(tmp_path / "data", tile={"size": 64}))[0].to_pylist()
    found = {row["reason"] for row in rows}
    assert {None, "corrupt"} <= found <= {None, "corrupt", "truncated", "not_an_image", "nodata", "bad_metadata"}
    assert len({row["url"].partition("#")[0] for row in rows}) == 60
