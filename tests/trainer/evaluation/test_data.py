from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.evaluation.conftest import write_picture
from trainer.errors import UserError
from trainer.evaluation import data


def put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_the_papers_prompts_and_classes() -> None:
    known = data.definitions()
    assert {name: len(one.classes) for name, one in known.items()} == {"aid": 30, "resisc45": 45, "eurosat": 10}
    templates = known["aid"].templates
    assert len(set(templates)) == len(templates) == 105
    assert {"a remote sensing image of many {c}.", "an aerial image of the hard to see {c}."} <= set(templates)
    assert {"a jpeg corrupted satellite image of a {c}.", "a close-up aerial image of the {c}."} <= set(templates)


@pytest.mark.parametrize(
    ("benchmark", "folder", "name"),
    [
        ("aid", "BaseballField", "baseball field"),
        ("aid", "Baseball Field", "baseball field"),
        ("resisc45", "thermal_power_station", "thermal power station"),
        ("eurosat", "HerbaceousVegetation", "brushland or shrubland"),
        ("eurosat", "brushland or shrubland", "brushland or shrubland"),
        ("eurosat", "SeaLake", "lake or sea"),
    ],
)
def test_folders_of_every_style_find_their_class(benchmark: str, folder: str, name: str) -> None:
    definition = data.definitions()[benchmark]
    label = definition.label_of(folder)
    assert label is not None
    assert list(definition.classes)[label] == name


def test_eurosat_is_read_through_its_wrapper(eurosat: Path) -> None:
    read = data.read_classification("EuroSAT", eurosat, data.definitions())
    assert len(read.images) == 13
    assert {read.classes[label] for label in read.labels} == {"forest", "river", "lake or sea"}
    assert read.prompts()[8][0] == "a remote sensing image of many river."
    with pytest.raises(UserError, match="'SeaLake' is no class of aid; accepted: airport,"):
        data.read_classification("aid", eurosat, data.definitions())


def test_own_benchmarks_take_folders_or_a_file(tmp_path: Path) -> None:
    write_picture(tmp_path / "set" / "Wind_Turbine" / "a.png", 0)
    write_picture(tmp_path / "set" / "roof" / "b.png", 1)
    read = data.read_classification("mine", tmp_path / "set", data.definitions())
    assert (list(read.classes), read.labels.tolist()) == (["wind turbine", "roof"], [0, 1])
    own = tmp_path / "own.yaml"
    own.write_text(
        "templates: {one: [{form: '{a} photo of {c}', a: [a, the]}]}\n"
        "benchmarks: {mine: {templates: one, classes: {windmill: [Wind Turbine], roof: []}}}"
    )
    read = data.read_classification("mine", tmp_path / "set", data.definitions(own))
    assert read.prompts() == [
        ["a photo of windmill", "the photo of windmill"],
        ["a photo of roof", "the photo of roof"],
    ]
    own.write_text("benchmarks: {mine: {templates: none, classes: []}}")
    with pytest.raises(UserError, match=r"--benchmarks .*own\.yaml"):
        data.definitions(own)


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_captions_of_a_csv(tmp_path: Path, encoding: str) -> None:
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / "images" / name, 0)
    rows = "filename,title\na.png,two planes（大）\na.png,an airport\nb.png,a port\n"
    (tmp_path / "test.csv").write_bytes(rows.encode(encoding))
    read = data.read_retrieval("x", tmp_path / "test.csv", tmp_path / "images")
    assert read.texts == ["two planes（大）", "an airport", "a port"]
    assert read.text_image.tolist() == [0, 0, 1]
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images are missing, the first is .*b\.png"):
        data.read_retrieval("x", tmp_path / "test.csv", tmp_path / "images")


def test_captions_of_karpathys_json(rsicd: tuple[Path, Path]) -> None:
    read = data.read_retrieval("rsicd", *rsicd)
    assert (len(read.images), len(read.texts)) == (12, 36)
    assert read.texts[0] == "picture number 0 ."
    with pytest.raises(UserError, match="no image of the split 'val'; there are test"):
        data.read_retrieval("rsicd", *rsicd, split="val")
    with pytest.raises(UserError, match="after a comma"):
        data.read_retrieval("rsicd", rsicd[0], None)


def test_clip_benchmarks_tars(tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "a.png", 0).read_bytes()
    (tmp_path / "wds" / "test").mkdir(parents=True)
    with tarfile.open(tmp_path / "wds" / "test" / "0.tar", "w") as tar:
        for number in range(3):
            put(tar, f"s{number:04d}.png", picture)
            put(tar, f"s{number:04d}.cls", str(number % 2).encode())
            put(tar, f"s{number:04d}.txt", b"a road\na wide road\n")
    texts = data.read_retrieval("x", tmp_path / "wds", None)
    assert (len(texts.images), texts.texts[:2], texts.text_image.tolist()) == (
        3,
        ["a road", "a wide road"],
        [0, 0, 1, 1, 2, 2],
    )
    (tmp_path / "wds" / "classnames.txt").write_text("road\nhouse\n")
    (tmp_path / "wds" / "zeroshot_classification_templates.txt").write_text("a photo of {c}.\n")
    read = data.read_classification("x", tmp_path / "wds", data.definitions())
    assert (read.labels.tolist(), read.prompts()) == ([0, 1, 0], [["a photo of road."], ["a photo of house."]])
    assert read.images[2].read() == picture
    (tmp_path / "wds" / "classnames.txt").write_text("road\n")
    with pytest.raises(UserError, match="'s0001' is of class '1' of 1"):
        data.read_classification("x", tmp_path / "wds", data.definitions())


def test_scenes(air_slt: Path, tmp_path: Path) -> None:
    first, second = data.read_scenes(air_slt)
    assert (first.caption, len(first.regions), len(second.regions)) == ("a green field", 1, 2)
    assert np.array_equal(second.regions[1], [[500, 300], [700, 300], [700, 500]])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "anno.json").write_text(json.dumps([{"caption": "x"}]))
    with pytest.raises(UserError, match=r"anno\.json with caption"):
        data.read_scenes(tmp_path)


def test_real_aid_has_all_thirty_classes_in_its_own_folders(real_data: Path) -> None:
    read = data.read_classification("AID", real_data / "rs" / "aid", data.definitions())
    assert len(read.images) == 3900
    assert np.bincount(read.labels, minlength=30).tolist() == [130] * 30
