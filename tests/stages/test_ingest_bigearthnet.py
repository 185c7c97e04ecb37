"""BigEarthNet in its three layouts: labels, scaling, offsets, official lists, and the real patches."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.scenes.bigearthnet import forty_three, nineteen
from stages.shards import ShardsConfig, ShardsStage
from tests.harness import run_stage
from tests.stages.ingesting import by_url, geotiff, ingest, picture, reasons, stored

REAL = os.environ.get("CURATION_REAL_DATA")
V1 = "S2A_MSIL2A_20170613T101031_26_57"
V2 = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
UTM33 = "EPSG:32633"
BOUNDS = (300_000.0, 5_300_000.0, 301_200.0, 5_301_200.0)


def ben(folder: Path, **options: Any) -> dict[str, Any]:
    return {"name": "bigearthnet", "path": str(folder), **({"options": options} if options else {})}


def bands(level: int = 1000) -> dict[str, NDArray[np.uint16]]:
    """Values of B04, B03 and B02: a ramp of reflectance around a level, and one pixel beyond the range."""
    ramp = np.linspace(0, 2 * level, 120 * 120).reshape(120, 120).astype(np.uint16)
    ramp[0, 0] = 9000
    return {"B04": ramp, "B03": ramp // 2, "B02": np.ascontiguousarray(ramp.T)}


def patch(folder: Path, name: str = V1, record: Any = None, values: dict[str, Any] | None = None) -> Path:
    """A patch's folder; `record` None writes a sound one, False none."""
    place = folder / name
    for band, value in (values or bands()).items():
        geotiff(place / f"{name}_{band}.tif", value[None], crs=UTM33, bounds=BOUNDS)
    geotiff(place / f"{name}_B01.tif", np.zeros((1, 20, 20), np.uint16), crs=UTM33, bounds=BOUNDS)
    if record is not False:
        text = record if isinstance(record, str) else json.dumps(record or meta())
        (place / f"{name}_labels_metadata.json").write_text(text)
    return place


def meta(**changes: Any) -> dict[str, Any]:
    left, bottom, right, top = BOUNDS
    record = {
        "labels": ["Rice fields", "Non-irrigated arable land", "Port areas", "Sea and ocean"],
        "coordinates": {"ulx": left, "uly": top, "lrx": right, "lry": bottom},
        "projection": UTM33,
        "tile_source": "S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608.SAFE",
        "acquisition_date": "2017-06-13 10:10:31",
    }
    return {name: value for name, value in (record | changes).items() if value is not None}


def view(folder: Path, row: dict[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(stored(folder / "run", row))))


def test_the_nomenclatures() -> None:
    assert len(forty_three()) == 43
    assert len({name for name in nineteen().values() if name}) == 19


def test_a_patch_of_version_1(tmp_path: Path) -> None:
    patch(tmp_path / "ben")
    [row] = ingest(tmp_path, ben(tmp_path / "ben"))[0].to_pylist()
    assert (row["url"], row["reason"]) == (V1, None)
    assert row["labels"] == ["Arable land", "Marine waters"], "of 19; ports have none"
    assert (row["platform"], row["sensor"], row["processing_level"]) == ("Sentinel-2A", "MSI", "L2A")
    assert row["acquired_at"].isoformat() == "2017-06-13T10:10:31+00:00"
    assert (row["crs"], row["bounds"]["top"], row["gsd_m"]) == (UTM33, 5_301_200, 10.0)
    assert row["pixel_x_m"] == row["pixel_y_m"] == 10.0
    assert (row["utm_zone"], row["country"], row["season"]) == ("33T", "Germany", "summer")
    assert (row["bands"], row["stretch"]) == (["B04", "B03", "B02"], "range 0 to 2000")
    expected = np.stack([np.clip(value / 2000 * 255, 0, 255).astype(np.uint8) for value in bands().values()], axis=-1)
    assert np.array_equal(view(tmp_path, row), expected)


def test_43_classes_on_request(tmp_path: Path) -> None:
    patch(tmp_path / "ben")
    [row] = ingest(tmp_path, ben(tmp_path / "ben", classes=43))[0].to_pylist()
    assert row["labels"] == ["Rice fields", "Non-irrigated arable land", "Port areas", "Sea and ocean"]


def test_newer_baselines_carry_an_offset(tmp_path: Path) -> None:
    moved = {band: value + 1000 for band, value in bands().items()}
    patch(
        tmp_path / "ben", record=meta(tile_source="S2A_MSIL1C_20230613T101031_N0509_R022_T33UUP_x.SAFE"), values=moved
    )
    [row] = ingest(tmp_path, ben(tmp_path / "ben"))[0].to_pylist()
    assert row["stretch"] == "range 0 to 2000, offset -1000"
    expected = np.clip(bands()["B04"] / 2000 * 255, 0, 255).astype(np.uint8)
    assert np.array_equal(view(tmp_path, row)[..., 0], expected)


def test_an_unknown_baseline_is_an_error_that_an_option_settles(tmp_path: Path) -> None:
    patch(tmp_path / "ben", record=meta(tile_source="S2A_MSIL1C_20230613T101031_N0812_R022_T33UUP_x.SAFE"))
    with pytest.raises(RuntimeError, match=r"processing baseline 08\.12 is not known; options\.baseline"):
        ingest(tmp_path, ben(tmp_path / "ben"))
    [row] = ingest(tmp_path, ben(tmp_path / "ben", baseline="04.00"))[0].to_pylist()
    assert row["stretch"] == "range 0 to 2000, offset -1000"


def test_a_stretch_by_percentiles_is_written_down(tmp_path: Path) -> None:
    patch(tmp_path / "ben")
    [row] = ingest(tmp_path, ben(tmp_path / "ben", stretch={"percentiles": [2, 98]}))[0].to_pylist()
    assert row["stretch"].startswith("percentiles 2 to 98: ")
    assert view(tmp_path, row).max() == 255


def test_official_lists_beside_version_1(tmp_path: Path) -> None:
    names = [f"{V1}{number}" for number in range(4)]
    for name in names:
        patch(tmp_path / "ben", name)
    (tmp_path / "ben/patches_with_seasonal_snow.csv").write_text(f"{names[0]}\n")
    (tmp_path / "ben/patches_with_cloud_and_shadow.csv").write_text(f"{names[1]}\r\n")
    (tmp_path / "ben/splits").mkdir()
    (tmp_path / "ben/splits/test.csv").write_text(f"{names[2]}\n")
    table, manifest = ingest(tmp_path, ben(tmp_path / "ben"))
    assert reasons(table) == {names[0]: "snow", names[1]: "cloud", names[2]: "official_test", names[3]: None}
    assert manifest.counts["bigearthnet"]["dropped"] == {"cloud": 1, "official_test": 1, "snow": 1}


def test_version_2_and_its_parquet(tmp_path: Path) -> None:
    names = [V2, f"{V2[:-2]}58", f"{V2[:-2]}59", f"{V2[:-2]}60"]
    for name in names:
        patch(tmp_path / "ben/BigEarthNet-S2" / name.rsplit("_", 2)[0], name, record=False)
    rows = [
        {
            "patch_id": names[0],
            "labels": ["Arable land", "Urban fabric"],
            "split": "train",
            "contains_seasonal_snow": False,
        },
        {"patch_id": names[1], "labels": ["Arable land"], "split": "test", "contains_seasonal_snow": False},
        {"patch_id": names[2], "labels": ["Arable land"], "split": None, "contains_seasonal_snow": True},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ben/metadata.parquet")
    table, _ = ingest(tmp_path, ben(tmp_path / "ben", keep=["snow"]))
    assert reasons(table) == {names[0]: None, names[1]: "official_test", names[2]: None, names[3]: "bad_metadata"}
    row = by_url(table)[V2]
    assert (row["labels"], row["official_split"]) == (["Arable land", "Urban fabric"], "train")
    assert row["acquired_at"].isoformat() == "2017-06-13T10:10:31+00:00"
    assert (row["stretch"], row["utm_zone"], row["pixel_x_m"]) == ("range 0 to 2000", "33T", 10.0)


def test_version_2_without_its_parquet_is_told(tmp_path: Path) -> None:
    patch(tmp_path / "ben", V2, record=False)
    with pytest.raises(RuntimeError, match=r"patches of version 2 need metadata\.parquet"):
        ingest(tmp_path, ben(tmp_path / "ben"))


def test_jpegs_with_their_csv(tmp_path: Path) -> None:
    folder = tmp_path / "BigEarthNet-S2-v1.0-rgb"
    for number in (7, 8, 9):
        picture(folder / f"images/ben_{number}.jpg", number, side=120)
    left, bottom, right, top = BOUNDS
    (folder / "BENs2_info.csv").write_text(
        ",img_name,cls_label,ulx,uly,lrx,lly,projection,acquisition_time\n"
        f"0,7,\"['Vineyards', 'Pastures']\",{left},{top},{right},{bottom},{UTM33},2017-12-21 11:25:01\n"
        f"1,8,\"['Vineyards']\",{right},{top},{left},{bottom},{UTM33},2017-12-21 11:25:01\n"
    )
    table, _ = ingest(tmp_path, ben(folder))
    rows = by_url(table)
    assert [row["reason"] for row in rows.values()] == [None, "bad_metadata", "bad_metadata"]
    row = rows["images/ben_7.jpg"]
    assert (row["labels"], row["month"], row["season"]) == (["Permanent crops", "Pastures"], 12, "winter")
    assert (row["utm_zone"], row["pixel_x_m"]) == ("33T", 10.0)
    assert row["image"]["tar"].endswith("images/ben_7.jpg"), "a web image stays where it is"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{", "bad_metadata"),
        (False, "bad_metadata"),
        (meta(labels=[]), "bad_metadata"),
        (meta(labels=["Moon"]), "bad_metadata"),
        (meta(labels=["Port areas"]), "bad_metadata"),
        (meta(coordinates=None), "bad_metadata"),
        (meta(coordinates={"ulx": 9, "uly": 1, "lrx": 3, "lry": 5}), "bad_metadata"),
        (meta(projection="nonsense"), "bad_metadata"),
        (meta(tile_source=None), "bad_metadata"),
        (meta(acquisition_date="soon"), "bad_metadata"),
    ],
)
def test_records_that_cannot_be_true(tmp_path: Path, record: Any, reason: str) -> None:
    patch(tmp_path / "ben", record=record)
    assert reasons(ingest(tmp_path, ben(tmp_path / "ben"))[0]) == {V1: reason}


def test_bands_that_are_missing_or_damaged(tmp_path: Path) -> None:
    names = [f"{V1}{number}" for number in range(3)]
    places = [patch(tmp_path / "ben", name) for name in names]
    (places[0] / f"{names[0]}_B03.tif").unlink()
    damaged = places[1] / f"{names[1]}_B02.tif"
    damaged.write_bytes(damaged.read_bytes()[:-9000])
    (places[2] / f"{names[2]}_B04.tif").write_bytes(b"")
    assert reasons(ingest(tmp_path, ben(tmp_path / "ben"))[0]) == {
        names[0]: "corrupt",
        names[1]: "truncated",
        names[2]: "empty_body",
    }


def test_all_bands_can_stand_beside_the_view(tmp_path: Path) -> None:
    place = patch(tmp_path / "ben")
    ingest(tmp_path, ben(tmp_path / "ben"))
    shards = ShardsStage(ShardsConfig(count=1, val_fraction=0, native=True))
    run_stage(shards, tmp_path / "run", "ingest")
    with tarfile.open(tmp_path / "run/shards/train/test-train-0000.tar") as tar:
        endings = sorted(name.partition(".")[2] for name in tar.getnames())
        assert endings == ["B01.tif", "B02.tif", "B03.tif", "B04.tif", "json", "png", "txt"]
        [name] = [name for name in tar.getnames() if name.endswith(".B01.tif")]
        member = tar.extractfile(name)
        assert member is not None
        assert member.read() == (place / f"{V1}_B01.tif").read_bytes()
        passport = tar.extractfile(name.replace("B01.tif", "json"))
        assert passport is not None
        assert str(tmp_path) not in passport.read().decode(), "where the data lies is no part of the dataset"


@pytest.mark.skipif(REAL is None, reason="CURATION_REAL_DATA is not set")
def test_the_real_patches(tmp_path: Path) -> None:
    """Looked up on a map by hand: Wexford, Kilkenny, the Tejo, Kainuu, the Danube, South and North Karelia."""
    rows = by_url(ingest(tmp_path, ben(Path(str(REAL)) / "rs/bigearthnet"))[0])
    found = {url: (row["country"], row["utm_zone"], row["season"]) for url, row in rows.items()}
    assert found == {
        "S2A_MSIL2A_20170617T113321_36_85": ("Ireland", "29U", "summer"),
        "S2A_MSIL2A_20170617T113321_4_55": ("Ireland", "29U", "summer"),
        "S2A_MSIL2A_20171221T112501_56_35": ("Portugal", "29S", "winter"),
        "S2A_MSIL2A_20180510T94033_19_86": ("Finland", "35W", "spring"),
        "S2B_MSIL2A_20170914T093029_32_39": ("Serbia", "34T", "autumn"),
        "S2B_MSIL2A_20170924T093019_43_47": ("Finland", "35V", "autumn"),
        "S2B_MSIL2A_20170924T93021_41_29": ("Finland", "35V", "autumn"),
    }
    assert all(row["reason"] is None and row["gsd_m"] == 10 for row in rows.values())
    tejo = rows["S2A_MSIL2A_20171221T112501_56_35"]
    assert tejo["labels"][-1] == "Transitional woodland, shrub"
    assert tejo["latitude"] == pytest.approx(39.364, abs=0.001)
    assert view(tmp_path, tejo).shape == (120, 120, 3)


def test_lists_that_are_not_there_are_told(tmp_path: Path) -> None:
    patch(tmp_path / "ben")
    _, manifest = ingest(tmp_path, ben(tmp_path / "ben", keep=["snow"]))
    [warning] = manifest.summary["warnings"]
    assert warning == (
        "source 'bigearthnet': nothing was dropped for official_test, cloud, since test.csv, "
        "patches_with_cloud_and_shadow.csv are not in its folders; path: can name them"
    )
    for name in ("test.csv", "patches_with_cloud_and_shadow.csv"):
        (tmp_path / "ben" / name).write_text("other\n")
    _, manifest = ingest(tmp_path, ben(tmp_path / "ben", keep=["snow"]))
    assert manifest.summary["warnings"] == []


def test_the_csv_of_rs5ms_authors_in_its_ten_columns(tmp_path: Path) -> None:
    """Running numbers, labels as Python writes a list, the projection as WKT with commas, and `lly` for the bottom."""
    from rasterio.crs import CRS

    folder = tmp_path / "BigEarthNet-S2-v1.0-rgb"
    for number in (0, 258884):
        picture(folder / f"ben_{number}.jpg", number, side=120)
    left, bottom, right, top = BOUNDS
    wkt = CRS.from_epsg(32633).to_wkt().replace('"', '""')
    rows = [
        f"{index},{number},\"['Pastures', 'Land principally occupied by agriculture, with significant areas of natural "
        f'vegetation\']",0,{left},{top},{right},{bottom},x,"{wkt}",2018-02-25 11:35:19\n'
        for index, number in enumerate((0, 258884))
    ]
    head = ",img_name,class_label,cloud,ulx,uly,lrx,lly,tile,projection,acquisition_time\n"
    (folder / "BENs2_info.csv").write_text(head + "".join(rows))
    table, manifest = ingest(tmp_path, ben(folder))
    found = by_url(table)
    assert set(reasons(table).values()) == {None}
    row = found["ben_258884.jpg"]
    assert row["labels"][0] == "Pastures"
    assert row["labels"][1].startswith("Land principally occupied by agriculture, with")
    assert (row["country"], row["utm_zone"], row["month"], row["season"]) == ("Germany", "33T", 2, "winter")
    assert found["ben_0.jpg"]["labels"] == row["labels"]
    assert "nothing was dropped for official_test, snow, cloud" in manifest.summary["warnings"][0]
