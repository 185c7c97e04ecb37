"""Tars of samples: webdataset's and RS5M's keys, passports taken over, images left where they are."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.tar import TarWriter
from tests.stages.ingesting import by_url, ingest, jpeg, pixels, reasons, stored, tar


def wds(path: str, **more: Any) -> dict[str, Any]:
    return {"name": "old", "format": "webdataset", "path": path, **more}


def test_samples_of_webdataset_keep_captions_and_passports(tmp_path: Path) -> None:
    said = {
        "url": "http://h/1.jpg",
        "labels": ["port"],
        "latitude": 53.54,
        "longitude": 9.99,
        "acquired_at": "2020-01-15T10:00:00+00:00",
        "location": "hamburg",
        "gsd_m": "ten",
        "width": 1,
        "captions": [
            {"text": "ships", "source": "cc3m", "origin": "alt_text"},
            {"text": "a port", "source": "cc3m", "origin": "generated"},
        ],
        "licence": "CC BY",
    }
    members = {
        "a.jpg": jpeg(1),
        "a.txt": b"ships",
        "a.json": json.dumps(said).encode(),
        "b.jpg": jpeg(2),
        "b.txt": "Hafen \u00fc".encode(),
        "c.txt": b"no image",
    }
    tar(tmp_path / "t/0.tar", members)
    rows = by_url(ingest(tmp_path, wds(str(tmp_path / "t/*.tar")))[0])
    row = rows["http://h/1.jpg"]
    assert (row["caption"], row["labels"], row["licence"], row["location"]) == ("ships", ["port"], "CC BY", "hamburg")
    assert row["captions"] == said["captions"]
    assert (row["country"], row["utm_zone"], row["season"], row["month"]) == ("Germany", "32U", "winter", 1)
    assert row["gsd_m"] is None, "no number, so not taken over"
    assert row["width"] == 64
    assert stored(tmp_path / "run", row) == members["a.jpg"]
    assert row["image"]["tar"] == str(tmp_path / "t/0.tar")
    assert rows["0.tar/b"]["caption"] == "Hafen \u00fc"
    assert len(rows) == 2


@pytest.mark.parametrize(
    "keys", [("img_content", "img_name", "caption"), ("input.image", "input.name", "input.caption")]
)
def test_rs5ms_keys(tmp_path: Path, keys: tuple[str, str, str]) -> None:
    image, name, caption = keys
    members: dict[str, bytes] = {}
    for number in range(2):
        members |= {
            f"{number}.{image}": jpeg(number),
            f"{number}.{name}": f"laion2b_0_{number}".encode(),
            f"{number}.{caption}": f"an aerial view {number}".encode(),
        }
    tar(tmp_path / "pub11-train-0000.tar", members)
    rows = by_url(ingest(tmp_path, wds(str(tmp_path / "pub11-train-0000.tar")))[0])
    assert {url: row["caption"] for url, row in rows.items()} == {
        "laion2b_0_0": "an aerial view 0",
        "laion2b_0_1": "an aerial view 1",
    }
    assert stored(tmp_path / "run", rows["laion2b_0_1"]) == members[f"1.{image}"]


def test_exact_repeats_across_tars_are_dropped_once(tmp_path: Path) -> None:
    for number in range(2):
        tar(tmp_path / f"{number}.tar", {"a.img_content": jpeg(1), "a.img_name": b"x", "a.caption": b"same"})
    table, manifest = ingest(tmp_path, wds(str(tmp_path / "*.tar")))
    assert [row["reason"] for row in table.to_pylist()] == [None, "duplicate_row"]
    assert manifest.counts["old"] == {"in": 2, "kept": 1, "dropped": {"duplicate_row": 1}}


def test_damage_inside_costs_a_row_and_broken_tars_fail_unless_dropped(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"a.jpg": jpeg(1)[:-100], "b.jpg": b"", "c.jpg": jpeg(3), "c.json": b"{broken"})
    assert reasons(ingest(tmp_path, wds(str(tmp_path / "0.tar")))[0]) == {
        "0.tar/a": "truncated",
        "0.tar/b": "empty_body",
        "0.tar/c": None,
    }
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2000])
    with pytest.raises(RuntimeError, match=r"cut\.tar is no whole, uncompressed tar"):
        ingest(tmp_path, wds(str(tmp_path / "cut.tar")))
    (tmp_path / "z.tar").write_bytes(os.urandom(2048))
    table, _ = ingest(tmp_path, wds([str(tmp_path / "0.tar"), str(tmp_path / "z.tar")], on_bad_file="drop"))  # type: ignore[arg-type]
    assert table.num_rows == 3


def test_our_own_shards_go_round(tmp_path: Path) -> None:
    with (tmp_path / "mine.tar").open("wb") as file:
        made = TarWriter(file)
        for number, source in enumerate(("fmow", "scenes")):
            said = {"key": f"k{number}", "source": source, "url": "train/1.jpg", "labels": ["dam"]}
            made.add(f"k{number}.jpg", jpeg(number))
            made.add(f"k{number}.txt", b"a dam")
            made.add(f"k{number}.json", json.dumps(said).encode())
        made.close()
    rows = by_url(ingest(tmp_path, wds(str(tmp_path / "mine.tar")))[0])
    assert {url: row["reason"] for url, row in rows.items()} == {"fmow/train/1.jpg": None, "scenes/train/1.jpg": None}
    assert {(row["source"], row["caption"], *row["labels"]) for row in rows.values()} == {("old", "a dam", "dam")}


def test_large_images_of_a_tar_are_cut_and_keep_what_holds_for_the_tile(tmp_path: Path) -> None:
    said = {
        "url": "http://h/scene.jpg",
        "labels": ["airport"],
        "crs": "EPSG:32632",
        "bounds": {"left": 500_000, "bottom": 5_000_000, "right": 501_000, "top": 5_001_000},
        "pixel_x_m": 10.0,
        "pixel_y_m": 10.0,
        "utm_zone": "1C",
        "latitude": 45.15,
        "longitude": 9.0,
        "objects": [{"label": "airport", "x": 40, "y": 0, "width": 20, "height": 20}],
    }
    png = io.BytesIO()
    Image.fromarray(pixels(1, 100)).save(png, "PNG")
    members = {"a.png": png.getvalue(), "a.txt": b"an airport", "a.json": json.dumps(said).encode(), "b.jpg": jpeg(2)}
    tar(tmp_path / "0.tar", members)
    table, _ = ingest(tmp_path, wds(str(tmp_path / "0.tar"), options={"tile": {"size": 50}}))
    rows = by_url(table)
    tiles = {url.partition("#xywh=")[2]: row for url, row in rows.items() if url.startswith("http")}
    assert sorted(tiles) == ["0,0,50,50", "0,50,50,50", "50,0,50,50", "50,50,50,50"]
    right = tiles["50,0,50,50"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored(tmp_path / "run", right)))), pixels(1, 100)[:50, 50:])
    assert right["objects"] == [{"label": "airport", "x": 0.0, "y": 0.0, "width": 10.0, "height": 20.0}]
    assert (right["labels"], right["utm_zone"], right["caption"]) == (["airport"], "32T", "an airport")
    assert right["bounds"] == {"left": 500_500, "bottom": 5_000_500, "right": 501_000, "top": 5_001_000}
    assert right["pixel_x_m"] == pytest.approx(10)
    assert tiles["50,50,50,50"]["labels"] is None, "the airport is not in it"
    assert {row["location"] for row in tiles.values()} == {"old/0.tar/a"}
    assert len(rows) == 8, "64 pixels are cut, too"


def test_tiles_of_a_tar_by_size_on_the_ground_and_by_the_stages_option(tmp_path: Path) -> None:
    place = {"crs": "EPSG:32632", "bounds": {"left": 0, "bottom": 0, "right": 640, "top": 640}}
    tar(tmp_path / "0.tar", {"a.jpg": jpeg(1, 128), "a.json": json.dumps(place).encode(), "b.jpg": jpeg(2, 128)})
    rows = by_url(ingest(tmp_path, wds(str(tmp_path / "0.tar")), tile={"size": 32, "target_gsd": 10.0})[0])
    assert rows.pop("0.tar/b")["reason"] == "bad_metadata", "its pixels have no size on the ground"
    assert list(rows) == [f"0.tar/a#xywh={x},{y},64,64" for y in (0, 64) for x in (0, 64)]
    assert {(row["width"], row["pixel_x_m"]) for row in rows.values()} == {(32, 10.0)}


PARTS = [
    {"text": "a runway beside fields.", "origin": "generated", "orientation_dependent": False},
    {"text": "It covers 640 m by 640 m.", "origin": "metadata", "fact": "extent", "orientation_dependent": False},
    {
        "text": "The airport lies in the centre.",
        "origin": "metadata",
        "fact": "position",
        "orientation_dependent": True,
    },
]
WHOLE = " ".join(str(part["text"]) for part in PARTS)
SAID = {
    "caption_parts": PARTS,
    "captions": [
        {"text": "a runway", "source": "fmow", "origin": "generated"},
        {"text": "An airport of 640 m by 640 m.", "source": "fmow", "origin": "metadata"},
    ],
}


def test_what_a_caption_is_made_of_goes_round(tmp_path: Path) -> None:
    said = json.dumps(SAID).encode()
    edited = {"b.jpg": jpeg(2), "b.txt": b"an airport, says who edited it", "b.json": said}
    tar(tmp_path / "0.tar", {"a.jpg": jpeg(1), "a.txt": WHOLE.encode(), "a.json": said, **edited})
    rows = by_url(ingest(tmp_path, wds(str(tmp_path / "0.tar")))[0])
    assert [part["orientation_dependent"] for part in rows["0.tar/a"]["caption_parts"]] == [False, False, True]
    assert rows["0.tar/a"]["captions"][0] == {"text": WHOLE, "source": "old", "origin": "generated"}
    assert rows["0.tar/b"]["caption_parts"] is None
    assert rows["0.tar/b"]["captions"][0]["origin"] == "user"


def test_tiles_do_not_tell_facts_of_the_whole(tmp_path: Path) -> None:
    said = json.dumps(SAID).encode()
    facts_first = json.dumps({"caption_parts": PARTS[1:]}).encode()
    members = {"a.jpg": jpeg(1, 100), "a.txt": WHOLE.encode(), "a.json": said}
    members |= {"b.jpg": jpeg(2, 100), "b.txt": WHOLE.partition(". ")[2].encode(), "b.json": facts_first}
    tar(tmp_path / "0.tar", members)
    rows = by_url(ingest(tmp_path, wds(str(tmp_path / "0.tar"), options={"tile": {"size": 50}}))[0])
    tile, untold = rows["0.tar/a#xywh=50,0,50,50"], rows["0.tar/b#xywh=50,0,50,50"]
    assert [entry["text"] for entry in tile["captions"]] == ["a runway beside fields.", "a runway"]
    assert tile["caption"] == "a runway beside fields."
    assert [part["text"] for part in tile["caption_parts"]] == ["a runway beside fields."]
    assert (untold["caption"], untold["captions"], untold["reason"]) == (None, [], None)


def test_of_a_large_image_that_ends_early_the_tiles_before_stay(tmp_path: Path) -> None:
    whole = jpeg(1, 200)
    tar(tmp_path / "0.tar", {"a.jpg": whole[:2000]})
    table, manifest = ingest(tmp_path, wds(str(tmp_path / "0.tar"), options={"tile": {"size": 64}}))
    assert manifest.counts["old"]["dropped"] == {"truncated": 1}
    kept = {url: row for url, row in by_url(table).items() if row["reason"] is None}
    assert 0 < len(kept) < 16
    expected = np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")).astype(int)
    for row in kept.values():
        tile = np.asarray(Image.open(io.BytesIO(stored(tmp_path / "run", row)))).astype(int)
        x, y = row["window"]["x"], row["window"]["y"]
        assert np.abs(tile - expected[y : y + 64, x : x + 64]).max() <= 20, "two decoders differ by less than a gap"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"pixel_x_m": 1.0}, {"pixel_x_m": None}),
        ({"pixel_x_m": float("nan"), "pixel_y_m": 1.0}, {"pixel_x_m": None, "pixel_y_m": None}),
        ({"objects": ["a"], "labels": ["port"]}, {"labels": ["port"]}),
        ({"objects": [{"label": "a", "x": 1}, None]}, {}),
        ({"bounds": {"left": 1}, "crs": "EPSG:4326"}, {"bounds": None}),
        ({"crs": "EPSG:32632", "bounds": {"left": 1e300, "bottom": 0, "right": 0, "top": 1}}, {}),
        (
            {"labels": "port", "country": 7, "month": 10**30, "acquired_at": "9999-12-31T23:59:59-14:00"},
            {"month": None},
        ),
        ({"location": "\ud800", "url": "\udfff"}, {"location": "?", "url": "?"}),
    ],
)
def test_a_passport_that_says_nonsense_says_nothing(tmp_path: Path, said: Any, kept: dict[str, Any]) -> None:
    members = {"a.jpg": jpeg(1, 100), "a.txt": b"\xff a dam", "a.json": json.dumps(said).encode()}
    tar(tmp_path / "0.tar", members)
    [row] = ingest(tmp_path, wds(str(tmp_path / "0.tar")))[0].to_pylist()
    assert {name: row[name] for name in kept} == kept
    assert row["reason"] is None
    cut = ingest(tmp_path, wds(str(tmp_path / "0.tar"), options={"tile": {"size": 64}}))[0]
    assert cut.num_rows in (1, 4)
    assert {row["reason"] for row in cut.to_pylist()} <= {None, "bad_metadata"}
