"""Folders and tables of images: what becomes of each, where its bytes lie, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from curation.plan import describe, steps
from curation.recipe import load, root_store
from stages.errors import UserError
from stages.ingest import ListPhase, ReadPhase
from stages.keys import make_key
from stages.schema import INGEST
from stages.storage import Store
from tests.conftest import S3
from tests.harness import read_output, run_phase, run_stage
from tests.stages.ingesting import by_url, geotiff, ingest, picture, pixels, reasons, recipe, stored


def scenes(folder: Path) -> dict[str, Any]:
    return {"name": "scenes", "format": "folder", "path": str(folder)}


def test_class_folders_are_labels_and_images_stay_in_place(tmp_path: Path) -> None:
    picture(tmp_path / "data/train/DenseResidential/a.jpg", 1)
    picture(tmp_path / "data/train/dry_field/b.png", 2)
    table, manifest = ingest(tmp_path, scenes(tmp_path / "data"))
    rows = by_url(table)
    row = rows["train/DenseResidential/a.jpg"]
    path = tmp_path / "data/train/DenseResidential/a.jpg"
    assert row["labels"] == ["dense residential"]
    assert row["official_split"] == "train"
    assert row["image"] == {"tar": str(path), "offset": 0, "size": path.stat().st_size}
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (row["width"], row["height"], row["format"], row["caption"]) == (64, 64, "jpeg", None)
    assert row["key"] == make_key("scenes", "train/DenseResidential/a.jpg", None)
    assert rows["train/dry_field/b.png"]["labels"] == ["dry field"]
    assert manifest.counts == {"scenes": {"in": 2, "kept": 2, "dropped": {}}}
    assert set(INGEST.names) <= set(table.column_names)


def test_a_tree_without_classes(tmp_path: Path) -> None:
    picture(tmp_path / "data/a.jpg", 1)
    picture(tmp_path / "data/x/b.jpg", 2)
    (tmp_path / "data/notes.txt").write_text("no image, and no row")
    (tmp_path / "data/.hidden.jpg").write_text("nor this")
    table, _ = ingest(tmp_path, {**scenes(tmp_path / "data"), "options": {"labels": "none"}})
    assert {url: row["labels"] for url, row in by_url(table).items()} == {"a.jpg": [], "x/b.jpg": []}


def test_millionaid_has_classes_in_training_and_none_in_test(tmp_path: Path) -> None:
    picture(tmp_path / "million/train/agriculture_land/grassland/meadow/P0000001.jpg", 1)
    picture(tmp_path / "million/test/P0000002.jpg", 2)
    rows = by_url(ingest(tmp_path, {"name": "millionaid", "path": str(tmp_path / "million")})[0])
    found = {url: (row["labels"], row["official_split"], row["modality"]) for url, row in rows.items()}
    assert found == {
        "train/agriculture_land/grassland/meadow/P0000001.jpg": (["meadow"], "train", "optical"),
        "test/P0000002.jpg": ([], "test", "optical"),
    }
    [row] = ingest(tmp_path, {"name": "millionaid", "path": str(tmp_path / "million/test")})[0].to_pylist()
    assert (row["url"], row["labels"], row["official_split"]) == ("P0000002.jpg", [], "test")
    every = {"name": "millionaid", "path": str(tmp_path / "million/train"), "options": {"labels": "folders"}}
    [row] = ingest(tmp_path, every)[0].to_pylist()
    assert row["labels"] == ["agriculture land", "grassland", "meadow"]


def test_damaged_files_cost_their_rows(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    picture(folder / "good.jpg", 1, side=128)
    (folder / "short.jpg").write_bytes((folder / "good.jpg").read_bytes()[:-200])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>")
    geotiff(folder / "good.tif", pixels(2).transpose(2, 0, 1))
    (folder / "short.tif").write_bytes((folder / "good.tif").read_bytes()[:-4000])
    (folder / "page.tif").write_text("<html>")
    (folder / "empty.tif").write_bytes(b"")
    table, manifest = ingest(tmp_path, scenes(folder))
    assert reasons(table) == {
        "good.jpg": None,
        "short.jpg": "truncated",
        "empty.png": "empty_body",
        "page.jpg": "not_an_image",
        "good.tif": None,
        "short.tif": "truncated",
        "page.tif": "not_an_image",
        "empty.tif": "empty_body",
    }
    assert manifest.counts["scenes"]["in"] == 8


def test_a_table_names_captions_labels_and_facts(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    picture(folder / "img/a.jpg", 1)
    picture(folder / "img/b.jpg", 2)
    picture(folder / "img/unlisted.jpg", 3)
    lines = [
        {"image": "a.jpg", "captions": ["one", "two", "one"], "label": "Airport", "split": "test"},
        {"image": "a.jpg", "captions": ["one"], "label": "Airport"},
        {"image": "b.jpg", "label": ""},
        {"image": "gone.jpg", "label": "x"},
        {"image": "b.jpg", "label": "x", "latitude": "95", "longitude": "0"},
    ]
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table, manifest = ingest(
        tmp_path, {**scenes(folder), "path": {"images": str(folder / "img"), "table": str(folder / "table.jsonl")}}
    )
    rows = table.to_pylist()
    assert [row["reason"] for row in rows] == [None, "duplicate_row", "bad_metadata", "bad_metadata", "bad_metadata"]
    assert rows[0]["caption"] == "one"
    assert [entry["text"] for entry in rows[0]["captions"]] == ["one", "two"]
    assert {entry["origin"] for entry in rows[0]["captions"]} == {"user"}
    assert (rows[0]["labels"], rows[0]["official_split"]) == (["airport"], "test")
    assert manifest.counts["scenes"]["dropped"] == {"bad_metadata": 3, "duplicate_row": 1}


def test_a_csv_with_columns_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    picture(folder / "a.jpg", 1)
    (folder / "t.csv").write_text(
        "datei,text_en,klasse,latitude,longitude,acquired_at,gsd_m\n"
        "a.jpg,a harbour,port;quay,-33.86,151.21,2020-01-15T01:00:00+01:00,0.3\n"
    )
    source = {
        **scenes(folder),
        "path": {"images": str(folder), "table": str(folder / "t.csv")},
        "columns": {"url": "datei", "caption": "text_en", "labels": "klasse"},
    }
    [row] = ingest(tmp_path, source)[0].to_pylist()
    assert (row["caption"], row["labels"], row["gsd_m"]) == ("a harbour", ["port", "quay"], 0.3)
    assert (row["country"], row["season"], row["utm_zone"]) == ("Australia", "summer", "56H")
    assert row["acquired_at"].isoformat() == "2020-01-15T00:00:00+00:00"


def test_several_folders_never_share_a_name(tmp_path: Path) -> None:
    picture(tmp_path / "one/a.jpg", 1)
    picture(tmp_path / "two/a.jpg", 2)
    table, _ = ingest(tmp_path, {**scenes(tmp_path), "path": [str(tmp_path / "one"), str(tmp_path / "two")]})
    assert reasons(table) == {"one/a.jpg": None, "two/a.jpg": None}


def test_lists_of_ids_and_blocklists(tmp_path: Path) -> None:
    for number, name in enumerate("abcd"):
        picture(tmp_path / f"data/{name}.jpg", number)
    (tmp_path / "only.txt").write_text("a\nb.jpg\nc\n")
    (tmp_path / "except.txt").write_text("c.jpg\n")
    digest = hashlib.sha256((tmp_path / "data/b.jpg").read_bytes()).hexdigest()
    (tmp_path / "blocked.txt").write_text(digest)
    source = {**scenes(tmp_path / "data"), "only": str(tmp_path / "only.txt"), "except": str(tmp_path / "except.txt")}
    table, _ = ingest(tmp_path, source, blocklist=[str(tmp_path / "blocked.txt")])
    assert reasons(table) == {"a.jpg": None, "b.jpg": "blocklisted", "c.jpg": "filtered", "d.jpg": "filtered"}


def test_pixels_are_capped_as_the_recipe_says(tmp_path: Path) -> None:
    picture(tmp_path / "data/small.jpg", 1, side=32)
    picture(tmp_path / "data/large.jpg", 2, side=64)
    geotiff(tmp_path / "data/large.tif", pixels(3).transpose(2, 0, 1))
    table, _ = ingest(tmp_path, scenes(tmp_path / "data"), max_pixels=2000)
    assert reasons(table) == {"small.jpg": None, "large.jpg": "too_many_pixels", "large.tif": "too_many_pixels"}


def test_the_same_input_gives_the_same_bytes_and_nothing_is_done_twice(tmp_path: Path) -> None:
    for number in range(5):
        geotiff(tmp_path / f"data/{number}.tif", pixels(number).transpose(2, 0, 1))
    first, one = ingest(tmp_path, scenes(tmp_path / "data"))
    views = {row["url"]: stored(tmp_path / "run", row) for row in first.to_pylist()}
    second, two = ingest(tmp_path, scenes(tmp_path / "data"))
    assert {row["url"]: stored(tmp_path / "run", row) for row in second.to_pylist()} == views
    without_place = [table.drop_columns(["image"]) for table in (first, second)]
    assert without_place[0].equals(without_place[1])
    assert [file.sha256 for file in one.outputs if file.kind == "images"] == [
        file.sha256 for file in two.outputs if file.kind == "images"
    ]


def test_units_know_their_content(tmp_path: Path) -> None:
    """Units of an unchanged source keep their digest when another source is added: the spine adopts them."""
    picture(tmp_path / "one/a.jpg", 1)
    picture(tmp_path / "two/b.jpg", 2)
    one, two = scenes(tmp_path / "one"), {**scenes(tmp_path / "two"), "name": "more"}

    def digests() -> dict[str, str | None]:
        made = recipe(tmp_path, [one, two])
        phase = ListPhase(made.sources)
        return {unit.id: unit.digest for unit in phase.cut(None)}  # type: ignore[arg-type]

    before = digests()
    picture(tmp_path / "two/c.jpg", 3)
    after = digests()
    assert before["scenes-00000"] == after["scenes-00000"]
    assert before["more-00000"] != after["more-00000"]


def test_plan_counts_images(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"data/{number}.jpg", number)
    made = recipe(tmp_path, [scenes(tmp_path / "data")])
    store = Store(str(tmp_path / "run"))
    assert describe(made, store, steps(made, store)) == "ingest     to run: not run yet; 0 rows to adopt, 3 to do"


def test_a_decoder_that_dies_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from curation import worker
    from curation.workspace import StageRun

    picture(tmp_path / "data/a.jpg", 1)
    picture(tmp_path / "data/kills.jpg", 2)
    made = recipe(tmp_path, [scenes(tmp_path / "data")])
    stage = made.stages[0]
    monkeypatch.setattr(worker, "_deaths", lambda *args: worker.DEATHS)
    monkeypatch.setattr("stages.ingest._rows_of", kill_at)
    run = StageRun(store=Store(str(tmp_path / "run")), stage="ingest", fingerprint="f", sources=("scenes",))
    for phase in stage.phases():
        run_phase(run, phase)
    read = run.records(ReadPhase.name)[0]
    rows = Store(str(tmp_path / "run")).full(next(file.path for file in read.files if file.kind == "side"))
    import pyarrow.parquet as pq

    assert reasons(pq.read_table(rows)) == {"a.jpg": None, "kills.jpg": "decoder_crash"}


def kill_at(maker: Any, entry: Any) -> Any:
    """What a decoder does that meets its end, in the child."""
    import os

    if entry.url.startswith("kills"):
        os._exit(9)
    return list(maker.rows([entry]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": "parquet", "columns": {"url": "u", "caption": "c"}},
            "is read by the stage keywords, not by ingest",
        ),
        ({"where": "a = 1"}, "where filters columns of metadata, which format folder has not"),
        ({"options": {"band": [1]}}, "unknown key 'band' (did you mean 'bands'?)"),
        ({"options": {"bands": [1, 2]}}, "a list of one or three band numbers"),
        ({"options": {"stretch": {"range": [5, 1]}}}, "accepted are auto, none, {range: [low, high]}"),
        ({"options": {"labels": "files"}}, "options.labels is 'files'; accepted are folders, deepest, none"),
        ({"options": {"tile": {"size": 4}}}, "tile.size is 4; a whole number from 16"),
        ({"options": {"tile": {"sise": 64}}}, "unknown key 'sise' (did you mean 'size'?)"),
        ({"options": {"facts": {"gsd_m": "far"}}}, "facts.gsd_m is 'far'; a number above 0 is needed"),
        ({"options": {"keep": ["rain"]}}, "a list of official_test, snow, cloud is needed"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    picture(tmp_path / "data/a.jpg", 1)
    with pytest.raises(UserError) as caught:
        recipe(tmp_path, [{**scenes(tmp_path / "data"), **change}])
    assert message in str(caught.value)


def test_keywords_refuses_images(tmp_path: Path) -> None:
    picture(tmp_path / "data/a.jpg", 1)
    made = recipe(tmp_path, [scenes(tmp_path / "data")])
    from stages.keywords import KeywordsConfig, KeywordsStage

    with pytest.raises(UserError, match="format folder is read by the stage ingest, not by keywords"):
        KeywordsStage(KeywordsConfig(), made.sources).check()


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="holds no file"):
        recipe(tmp_path, [scenes(tmp_path / "data")])


def test_palette_and_grey_images_are_web_images_too(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.fromarray(pixels(1)).convert("P").save(tmp_path / "data/p.gif")
    Image.fromarray(pixels(2)).convert("L").save(tmp_path / "data/l.webp")
    table, _ = ingest(tmp_path, scenes(tmp_path / "data"))
    assert {row["format"]: row["reason"] for row in table.to_pylist()} == {"gif": None, "webp": None}


def test_a_run_without_any_image_is_counted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/readme.txt").write_text("no image")
    made = recipe(tmp_path, [scenes(tmp_path / "data")])
    written = run_stage(made.stages[0], tmp_path / "run", sources=["scenes"])
    assert sum(file.rows for file in written.outputs if file.kind == "part") == 0


def test_images_on_an_object_store(tmp_path: Path, s3: S3) -> None:
    import s3fs

    picture(tmp_path / "data/port/a.jpg", 1)
    geotiff(tmp_path / "data/port/b.tif", pixels(2).transpose(2, 0, 1))
    bucket = s3fs.S3FileSystem(**s3.options)
    bucket.put(str(tmp_path / "data"), f"{s3.bucket}/data", recursive=True)
    whole = {
        "storage_options": {"s3": s3.options},
        "sources": [{**scenes(tmp_path), "path": s3.url("data")}],
        "stages": {"ingest": {}, "shards": {"count": 1, "val_fraction": 0}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole))
    made = load(str(tmp_path / "recipe.yaml"))
    store = root_store(str(tmp_path / "run"), made)
    ingested = run_stage(made.stages[0], store, sources=["scenes"])
    rows = by_url(read_output(tmp_path / "run", ingested))
    assert {url: (row["reason"], row["labels"]) for url, row in rows.items()} == {
        "port/a.jpg": (None, ["port"]),
        "port/b.tif": (None, ["port"]),
    }
    assert rows["port/a.jpg"]["image"]["tar"] == s3.url("data/port/a.jpg")
    assert rows["port/b.tif"]["country"] == "Italy"
    packed = run_stage(made.stages[1], store, "ingest")
    assert packed.summary["samples"] == {"train": 2, "val": 0}
