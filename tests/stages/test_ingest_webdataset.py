"""Tars of samples: webdataset's and RS5M's keys, passports taken over, images left where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stages.tar import TarWriter
from tests.stages.ingesting import by_url, ingest, jpeg, reasons, stored, tar


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
