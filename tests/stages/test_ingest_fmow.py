"""fMoW: facts of records, locations, and records that cannot be true."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.captioning.facts import slots
from stages.scenes.fmow import classes
from tests.stages.ingesting import by_url, fmow_chip, fmow_record, ingest, picture, polygon, reasons

REAL = os.environ.get("CURATION_REAL_DATA")


def fmow(folder: Path, **more: Any) -> dict[str, Any]:
    return {"name": "fmow", "path": str(folder), **more}


def test_the_classes_are_fmows() -> None:
    assert len(classes()) == 63
    assert classes()["false_detection"] is None
    assert classes()["nuclear_powerplant"] == "nuclear power plant"
    assert not [name for name in classes().values() if name and "_" in name]


def test_facts_of_a_record(tmp_path: Path) -> None:
    fmow_chip(tmp_path / "train", "dam_3_1_msrgb", 1, fmow_record())
    table, _ = ingest(tmp_path, fmow(tmp_path / "train"))
    [row] = table.to_pylist()
    assert row["reason"] is None
    assert row["url"] == "dam/dam_3/dam_3_1_msrgb.jpg"
    assert row["labels"] == ["dam"]
    assert row["objects"] == [{"label": "dam", "x": 10, "y": 20, "width": 30, "height": 40}]
    assert (row["platform"], row["sensor"], row["processing_level"]) == ("WorldView-2", "WORLDVIEW02", "multispectral")
    assert row["acquired_at"].isoformat() == "2015-07-01T00:12:13+00:00"
    assert (row["season"], row["month"], row["year"]) == ("winter", 7, 2015)
    assert (row["country"], row["country_code"], row["utm_zone"]) == ("Australia", "AUS", "55H")
    assert (row["latitude"], row["longitude"]) == (pytest.approx(-35.295), pytest.approx(149.105))
    assert row["gsd_m"] == 0.5
    assert row["pixel_x_m"] == pytest.approx(0.01 / 64 * 90_940, rel=0.002), "degrees are shorter east to west"
    assert row["pixel_y_m"] == pytest.approx(0.01 / 64 * 110_940, rel=0.002)
    assert row["acquisition"]["cloud_cover"] == 12
    assert row["acquisition"]["scan_direction"] == "forward"
    assert row["official_split"] == "train"


def test_renderings_and_overlapping_chips_share_a_location(tmp_path: Path) -> None:
    here, there = fmow_record(), fmow_record(raw_location=polygon(149.105, -35.305))
    far = fmow_record(raw_location=polygon(149.2, -35.30))
    touching = fmow_record(raw_location=polygon(149.21, -35.30))
    for number, (name, record) in enumerate(
        [
            ("dam_3_1_rgb", here),
            ("dam_3_1_msrgb", here),
            ("dam_3_2_rgb", here),
            ("zoo_1_0_rgb", there),
            ("dam_9_0_rgb", far),
            ("dam_10_0_rgb", touching),
        ]
    ):
        fmow_chip(tmp_path / "train", name, number, record)
    table, manifest = ingest(tmp_path, fmow(tmp_path / "train"))
    rows = {url.rpartition("/")[2][:-4]: row["location"] for url, row in by_url(table).items()}
    assert len({rows[name] for name in ("dam_3_1_rgb", "dam_3_1_msrgb", "dam_3_2_rgb", "zoo_1_0_rgb")}) == 1
    assert len(set(rows.values())) == 3, "footprints that only touch show different places"
    assert manifest.summary["locations"] == 3


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "bad_metadata"),
        ("{not json", "bad_metadata"),
        ("[]", "bad_metadata"),
        (fmow_record(bounding_boxes=[]), "bad_metadata"),
        (fmow_record(bounding_boxes=[{"category": "castle", "box": [1, 2, 3, 4]}]), "bad_metadata"),
        (fmow_record(raw_location=None), "bad_metadata"),
        (fmow_record(raw_location="POLYGON ((1 2, 3"), "bad_metadata"),
        (fmow_record(raw_location="POINT (1 2)"), "bad_metadata"),
        (fmow_record(raw_location=polygon(200.0, 10.0)), "bad_metadata"),
        (fmow_record(raw_location=polygon(10.0, 91.0)), "bad_metadata"),
        (fmow_record(raw_location="POLYGON ((0 0, 1 1, 0 1, 1 0, 0 0))"), "bad_metadata"),
        (fmow_record(raw_location="POLYGON ((0 0, 0 1, 0 2, 0 0))"), "bad_metadata"),
        (fmow_record(raw_location="POLYGON EMPTY"), "bad_metadata"),
        (fmow_record(raw_location="POLYGON ((9 nan, 9.1 47, 9.1 47.1, 9 nan))"), "bad_metadata"),
        (fmow_record(raw_location=7, country_code=None), "bad_metadata"),
        (fmow_record(raw_location="POLYGON ((5 40, 9 40, 9 44, 5 44, 5 40))", country_code=None), "bad_metadata"),
        (  # one chip of Fiji, which the date line makes as wide as the Earth
            fmow_record(raw_location="POLYGON ((179.99 -17, -179.99 -17, -179.99 -16.99, 179.99 -16.99, 179.99 -17))")
            | {"country_code": None},
            "bad_metadata",
        ),
        (fmow_record(country_code=36), "bad_metadata"),
        (fmow_record(category=None, bounding_boxes=[{"category": "", "box": [1, 2, 3, 4]}]), "bad_metadata"),
        (fmow_record(country_code="XYZ"), "bad_metadata"),
        (fmow_record(country_code="CHE"), "bad_metadata"),
        (fmow_record(timestamp="yesterday"), "bad_metadata"),
        (fmow_record(country_code=None), None),
        (fmow_record(timestamp=None), None),
        (fmow_record(bounding_boxes="none", category="dam"), None),
        (fmow_record(sensor_platform_name=3, gsd="x", cloud_cover=None), None),
    ],
)
def test_records_that_cannot_be_true(tmp_path: Path, record: Any, reason: str | None) -> None:
    fmow_chip(tmp_path / "train", "dam_3_1_rgb", 1, record)
    table, manifest = ingest(tmp_path, fmow(tmp_path / "train"))
    assert list(reasons(table).values()) == [reason]
    assert manifest.counts["fmow"]["in"] == 1


def test_each_rendering_has_the_gsd_of_its_own_pixels(tmp_path: Path) -> None:
    sensed = {"pan_resolution_dbl": 0.5, "multi_resolution_dbl": 2.0}
    for name, gsd in (("dam_3_1_rgb", 0.5), ("dam_3_1_msrgb", 2.0), ("dam_4_0_rgb", None), ("dam_4_0_msrgb", None)):
        fmow_chip(tmp_path / "train", name, len(name), fmow_record(gsd=gsd, **sensed))
    rows = by_url(ingest(tmp_path, fmow(tmp_path / "train"))[0])
    assert {url.rpartition("/")[2]: row["gsd_m"] for url, row in rows.items()} == {
        "dam_3_1_msrgb.jpg": 2.0,
        "dam_3_1_rgb.jpg": 0.5,
        "dam_4_0_msrgb.jpg": 2.0,
        "dam_4_0_rgb.jpg": 0.5,
    }


def test_a_record_without_its_image_is_counted(tmp_path: Path) -> None:
    fmow_chip(tmp_path / "train", "dam_3_1_rgb", 1, fmow_record())
    (tmp_path / "train/dam/dam_3/dam_3_1_rgb.jpg").unlink()
    (tmp_path / "train/dam/dam_3/notes.json").write_text("{}")
    table, _ = ingest(tmp_path, fmow(tmp_path / "train"))
    assert reasons(table) == {"dam/dam_3/dam_3_1_rgb.jpg": "bad_metadata"}


def test_official_test_images_are_dropped_unless_kept(tmp_path: Path) -> None:
    fmow_chip(tmp_path / "fmow/train", "dam_3_1_rgb", 1, fmow_record())
    fmow_chip(tmp_path / "fmow/val", "dam_4_1_rgb", 2, fmow_record())
    fmow_chip(tmp_path / "fmow/test", "dam_5_1_rgb", 3, fmow_record())
    source = fmow(tmp_path / "fmow")
    rows = by_url(ingest(tmp_path, source)[0])
    assert [row["reason"] for row in rows.values()] == ["official_test", None, None]
    kept = by_url(ingest(tmp_path, {**source, "options": {"keep": ["official_test"]}})[0])
    assert [row["official_split"] for row in kept.values()] == ["test", "train", "val"]


def test_boxes_follow_an_image_that_was_resized(tmp_path: Path) -> None:
    fmow_chip(tmp_path / "train", "dam_3_1_rgb", 1, fmow_record(img_width=128, img_height=64))
    [row] = ingest(tmp_path, fmow(tmp_path / "train"))[0].to_pylist()
    assert row["objects"] == [{"label": "dam", "x": 5, "y": 20, "width": 15, "height": 40}]
    assert row["pixel_x_m"] == pytest.approx(0.01 / 64 * 90_940, rel=0.002)


@pytest.mark.skipif(REAL is None, reason="CURATION_REAL_DATA is not set")
def test_the_real_record(tmp_path: Path) -> None:
    """By hand: Zürich airport's record; 4.49 mdeg at 47.449° N are 338.7 m, 3.05 mdeg are 338.7 m; EST of Kloten."""
    folder = tmp_path / "train/fountain/fountain_514"
    folder.mkdir(parents=True)
    record = Path(str(REAL)) / "rs/fmow/fountain_514_1_rgb.json"
    shutil.copy(record, folder)
    picture(folder / "fountain_514_1_rgb.png", 1)
    Image.new("RGB", (977, 663)).save(folder / "fountain_514_1_rgb.png")
    shutil.copy(Path(str(REAL)) / "rs/fmow/airport_0_0_msrgb.jpg", folder)
    rows = by_url(ingest(tmp_path, fmow(tmp_path / "train"))[0])
    assert rows["fountain/fountain_514/airport_0_0_msrgb.jpg"]["reason"] == "bad_metadata", "it has no record"
    row = rows["fountain/fountain_514/fountain_514_1_rgb.png"]
    assert row["reason"] is None
    assert (row["country"], row["place"], row["utm_zone"]) == ("Switzerland", "Kloten", "32T")
    assert row["utm_zone"] == json.loads(record.read_text())["utm"]
    assert (row["season"], row["month"], row["year"]) == ("spring", 4, 2012)
    assert row["platform"] == "GeoEye-1"
    assert row["gsd_m"] == pytest.approx(0.468, abs=0.001)
    assert row["pixel_x_m"] == pytest.approx(0.346, abs=0.001)
    assert row["pixel_y_m"] == pytest.approx(0.511, abs=0.001)
    assert row["pixel_x_m"] * 977 == pytest.approx(338, abs=1)
    assert row["pixel_y_m"] * 663 == pytest.approx(339, abs=1)


def test_tiles_of_a_chip_have_places_and_boxes_of_their_own(tmp_path: Path) -> None:
    boxes = [{"ID": 7, "category": "dam", "box": [0, 0, 16, 32]}]
    record = fmow_record(bounding_boxes=boxes, img_width=128, img_height=128)
    fmow_chip(tmp_path / "train", "dam_1_0_rgb", 1, record)
    source = {"name": "fmow", "path": str(tmp_path / "train"), "options": {"tile": {"size": 32}}}
    rows = list(by_url(ingest(tmp_path, source)[0]).values())
    assert [row["labels"] for row in rows] == [["dam"], None, None, None]
    assert rows[0]["objects"] == [{"label": "dam", "x": 0.0, "y": 0.0, "width": 8.0, "height": 16.0}]
    assert rows[1]["longitude"] - rows[0]["longitude"] == pytest.approx(0.005)
    assert rows[0]["pixel_x_m"] == pytest.approx(0.01 * 91_000 / 64, rel=0.01), "of the file's pixels"


ANYTHING: list[Any] = [
    *(None, True, -1, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "9" * 400),
    *([], {}, [[]], [None], [float("nan")] * 4, ["a", "b", "c", "d"], {"a": 1}),
    *("POLYGON ((", "MULTIPOLYGON (((0 0, 0 1, 1 1, 0 0)))", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00Z"),
]
"""What a damaged record may hold instead of a value."""


def test_no_value_of_a_record_stops_the_run_whatever_it_holds(tmp_path: Path) -> None:
    """Every key of a record in turn holds anything; the row is kept or has a reason, and what is kept has words."""
    names = [*fmow_record(), "sun_elevation_dbl", "pan_resolution_dbl"]
    cases = [(name, value) for name in names for value in ANYTHING]
    for number, (name, value) in enumerate(cases):
        record = json.dumps({**fmow_record(), name: value})
        fmow_chip(tmp_path / "train", f"dam_{number}_0_rgb", number % 7, record)
    rows = ingest(tmp_path, fmow(tmp_path / "train"))[0].to_pylist()
    assert len(rows) == len(cases)
    assert {row["reason"] for row in rows} == {None, "bad_metadata"}
    assert 50 < sum(row["reason"] is not None for row in rows) < len(rows) - 50
    for row in rows:
        if row["reason"] is None:
            assert slots(row)["country"] == "Australia"
