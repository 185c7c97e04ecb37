from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from demo import formats
from demo.corpus import SOURCES, Row

ROWS = [
    Row(case="a", source="x", url="http://a.example/1.jpg", caption="aerial view, 50 % cloud & sun"),
    Row(case="b", source="x", url="http://a.example/2.jpg", caption="satellite image"),
]


@pytest.mark.parametrize("source", SOURCES)
def test_files_do_not_depend_on_when_they_are_written(source: str, tmp_path: Path) -> None:
    formats.write(source, ROWS, tmp_path / "one")
    formats.write(source, ROWS, tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_cc3m_and_cc12m_have_opposite_columns(tmp_path: Path) -> None:
    formats.write("cc3m", ROWS[:1], tmp_path)
    formats.write("cc12m", ROWS[:1], tmp_path)
    caption, url = "aerial view, 50 % cloud & sun", "http://a.example/1.jpg"
    assert (tmp_path / "Train_GCC-training.tsv").read_text() == f"{caption}\t{url}\n"
    assert (tmp_path / "cc12m.tsv").read_text() == f"{url}\t{caption}\n"


def test_wit_has_seventeen_columns_and_a_header(tmp_path: Path) -> None:
    formats.write("wit", ROWS, tmp_path)
    for path in tmp_path.iterdir():
        header, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        assert header.split("\t")[2] == "image_url"
        assert {line.count("\t") for line in (header, *lines)} == {16}


def test_yfcc_texts_are_percent_encoded_in_23_columns(tmp_path: Path) -> None:
    formats.write("yfcc15m", ROWS[:1], tmp_path)
    listed = {line.split("\t")[1] for line in (tmp_path / "yfcc100m_subset_data.tsv").read_text().splitlines()}
    photos = [line.split("\t") for line in (tmp_path / "yfcc100m_dataset.tsv").read_text().splitlines()]
    assert {len(photo) for photo in photos} == {23}
    wanted = [photo for photo in photos if photo[0] in listed]
    assert [photo[6] for photo in wanted] == ["aerial+view%2C+50+%25+cloud+%26+sun"]
    assert len(photos) > len(wanted)


def test_visual_genome_is_a_pair(tmp_path: Path) -> None:
    formats.write("vg", ROWS, tmp_path)
    images = json.loads((tmp_path / "image_data.json").read_text())
    regions = json.loads((tmp_path / "region_descriptions.json").read_text())
    assert {image["image_id"] for image in images} == {entry["id"] for entry in regions}
    assert all(region["image_id"] == entry["id"] for entry in regions for region in entry["regions"])


def test_laion_tables_have_their_published_columns(tmp_path: Path) -> None:
    for source in ("laion2b", "laion400m", "laioncoco", "coyo700m"):
        formats.write(source, ROWS, tmp_path / source)
    columns = {path.parent.name: set(pq.read_schema(path).names) for path in tmp_path.rglob("*.parquet")}
    assert columns["laion2b"] >= {"URL", "TEXT", "punsafe", "pwatermark"}
    assert columns["laion400m"] >= {"SAMPLE_ID", "URL", "TEXT", "NSFW", "LICENSE"}
    assert columns["laioncoco"] >= {"top_caption", "all_captions", "all_similarities"}
    assert len(columns["coyo700m"]) == 17
