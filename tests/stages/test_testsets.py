"""No sample comes from a test set: the same bytes, a near hash in any orientation, or a verbatim caption."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from stages import testsets
from stages.dedup import DedupConfig, DedupStage
from stages.errors import UnitError, UserError
from stages.images import inspect
from stages.testsets import read_items
from tests.e2e.world import jpeg, picture
from tests.harness import give_input, read_output, run_stage
from tests.stages.test_dedup import SCHEMA, SOURCES, row


def sample(number: int, data: bytes, caption: str = "a caption of its own", source: str = "first") -> dict[str, Any]:
    """A row of an image's bytes, as download writes it."""
    verdict = inspect(data)
    seen = {name: getattr(verdict, name) for name in ("width", "height", "sha256", "phash", "thumbnail")}
    return row(source, f"http://a.org/{number}", caption, **seen)


def run(rows: list[dict[str, Any]], root: Path, against: list[str], **config: Any) -> list[dict[str, Any]]:
    """Output rows in the order of `rows`, then the manifest's summary."""
    give_input(root, "download", [pa.Table.from_pylist(rows[part::2], schema=SCHEMA) for part in range(2)])
    stage = DedupStage(DedupConfig(against=against, **config))
    stage.check()
    written = run_stage(stage, root, "download", sources=SOURCES)
    found = {each["key"]: each for each in read_output(root, written).to_pylist()}
    return [*(found[each["key"]] for each in rows), dict(written.summary["tests"])]


def verdicts(found: list[dict[str, Any]]) -> list[tuple[str | None, str | None]]:
    """(reason, kind of match) of each row."""
    return [(each["reason"], each["test_match"]) for each in found[:-1]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three test images, one of them with captions beside it."""
    path = tmp_path / "set"
    (path / "harbour").mkdir(parents=True)
    for number in range(3):
        (path / "harbour" / f"{number}.jpg").write_bytes(jpeg(picture(number, 200)))
    (path / "harbour" / "1.txt").write_text("Many boats lie  in a harbour .\n\nA second one of it\n")
    (path / "harbour" / "2.json").write_text(
        json.dumps({"caption": "Two boats", "sentences": [{"raw": "three big boats"}]})
    )
    return path


def test_copies_of_test_images_are_dropped_and_say_of_what(folder: Path, tmp_path: Path) -> None:
    image = picture(0, 200)
    smaller = jpeg(image.resize((120, 120)))
    turned = jpeg(image.rotate(90).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    rows = [sample(n, data) for n, data in enumerate([jpeg(image), smaller, turned, jpeg(picture(9, 200))])]
    found = run(rows, tmp_path / "root", [str(folder)])
    dropped = "test_set_image"
    assert verdicts(found) == [(dropped, "bytes"), (dropped, "image"), (dropped, "image"), (None, None)]
    assert {each["test_item"] for each in found[:3]} == {str(folder / "harbour" / "0.jpg")}
    assert [each["status"] for each in found[:-1]] == ["dropped"] * 3 + ["kept"]
    assert found[-1] == {"images": 3, "captions": 3, "unreadable": 0, "matched": {"bytes": 1, "image": 2}}


def test_verbatim_captions_whatever_their_case_and_spaces(folder: Path, tmp_path: Path) -> None:
    own = jpeg(picture(9, 200))
    said = ["many boats  lie in a\tHARBOUR . ", "Three big boats", "two boats", "many boats lie in harbours ."]
    rows = [sample(n, jpeg(picture(20 + n, 200)), text) for n, text in enumerate(said)]
    entry = sample(9, own)
    entry["captions"] = [*entry["captions"], {"text": "a second one of it", "source": "first", "origin": "alt_text"}]
    found = run([*rows, entry], tmp_path / "root", [str(folder)])
    assert [each["test_match"] for each in found[:-1]] == ["caption", "caption", None, None, "caption"]
    assert found[0]["test_item"].endswith("1.jpg")


def test_flagged_rows_stay_and_say_what_they_match(folder: Path, tmp_path: Path) -> None:
    rows = [sample(0, jpeg(picture(0, 200))), sample(1, jpeg(picture(9, 200)))]
    found = run(rows, tmp_path / "root", [str(folder)], against_action="flag")
    assert verdicts(found) == [(None, "bytes"), (None, None)]
    assert found[0]["status"] == "kept"


def test_a_test_image_stands_for_nobody(folder: Path, tmp_path: Path) -> None:
    image = picture(0, 200)
    best = sample(0, jpeg(image), "many boats lie in a harbour .")
    twin = sample(1, jpeg(picture(9, 200)), source="second")
    best.update({name: twin[name] for name in ("sha256", "phash", "thumbnail")})
    found = run([best, twin], tmp_path / "root", [str(folder)])
    assert verdicts(found) == [("test_set_image", "caption"), (None, None)]
    assert found[1]["cluster"] == twin["key"]


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_tar_with_captions_and_a_broken_image(tmp_path: Path) -> None:
    data = jpeg(picture(0, 200))
    members = {
        "a/1.jpg": data,
        "a/2.jpg": b"no image",
        "a/1.txt": b"one long caption",
        "3.json": b'{"caption": "of none at all"}',
    }
    path = tar_of(tmp_path / "set.tar", members)
    rows = [sample(0, data), sample(1, jpeg(picture(9, 200)), "Of none at ALL")]
    found = run(rows, tmp_path / "root", [str(path)])
    assert [(each["test_item"], each["test_match"]) for each in found[:-1]] == [
        (f"{path}#a/1.jpg", "bytes"),
        (f"{path}#3", "caption"),
    ]
    assert found[-1] == {"images": 1, "captions": 2, "unreadable": 1, "matched": {"bytes": 1, "caption": 1}}


LISTS = {
    "list.csv": "filepath,title\n0.jpg,the first of all\n,only some words\n",
    "list.tsv": "filepath\ttitle\n0.jpg\tthe first of all\n\tonly some words\n",
    "list.jsonl": '{"image": "0.jpg", "captions": ["the first of all"]}\n{"caption": "only some words"}\n'
    '{"caption": "words to learn from", "split": "train"}\n',
    "dataset.json": json.dumps(
        {
            "images": [
                {"filename": "0.jpg", "split": "test", "sentences": [{"raw": "the first of all"}]},
                {"filename": "gone.jpg", "split": "val", "sentences": [{"raw": "only some words"}]},
                {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "words to learn from"}]},
            ]
        }
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_name_images_and_captions(name: str, tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(picture(0, 64)))
    (tmp_path / name).write_text(LISTS[name])
    items = list(read_items({"path": str(tmp_path / name)}))
    assert [(item.data is not None, item.captions) for item in items] == [
        (True, ["the first of all"]),
        (False, ["only some words"]),
    ]


def test_what_cannot_be_a_test_set_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, sentence in ((tmp_path / "gone", "does not exist"), (tmp_path / "empty", "holds no images")):
        with pytest.raises(UserError, match=sentence):
            testsets.check([str(path)])


@pytest.mark.parametrize(
    ("name", "content"), [("set.tar", b"no tar" * 200), ("set.json", b"{"), ("set.jsonl", b"[1]\n")]
)
def test_a_broken_test_set_names_its_file(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnitError, match=name):
        list(read_items({"path": str(tmp_path / name)}))


def test_a_changed_test_set_changes_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    files = DedupStage(DedupConfig(against=[str(folder), str(tmp_path / "set.tar")])).named_files()
    assert files == [
        *(str(folder / "harbour" / name) for name in ("0.jpg", "1.jpg", "1.txt", "2.jpg", "2.json")),
        str(tmp_path / "set.tar"),
    ]


@pytest.mark.skipif("CURATION_REAL_DATA" not in os.environ, reason="CURATION_REAL_DATA is not set")
def test_real_test_sets_are_found_in_every_disguise(tmp_path: Path) -> None:
    aid = Path(os.environ["CURATION_REAL_DATA"]) / "rs" / "aid"
    paths = sorted(aid.rglob("*.jpg"))
    tests, others = paths[::40], paths[7::40]
    (tmp_path / "aid").mkdir()
    for path in tests:
        (tmp_path / "aid" / path.name).write_bytes(path.read_bytes())
    rows = []
    for number, path in enumerate(tests):
        image = Image.open(path).convert("RGB")
        disguises = [path.read_bytes(), jpeg(image.resize((100, 100))), jpeg(image.rotate(90)), jpeg(image.rotate(180))]
        rows.append(sample(number, disguises[number % 4]))
    rows += [sample(1000 + number, path.read_bytes()) for number, path in enumerate(others)]
    found = run(rows, tmp_path / "root", [str(tmp_path / "aid")])
    caught = [each["test_match"] for each in found[: len(tests)]]
    assert caught[::4] == ["bytes"] * len(caught[::4])
    assert caught.count(None) <= 0.02 * len(tests)
    right = [
        Path(each["test_item"]).name == path.name for each, path in zip(found, tests, strict=False) if each["test_item"]
    ]
    assert all(right)
    assert [each["test_match"] for each in found[len(tests) : -1]].count("image") == 0


@pytest.mark.skipif("CURATION_REAL_DATA" not in os.environ, reason="CURATION_REAL_DATA is not set")
def test_real_captions_and_images_as_rsicd_is_published(tmp_path: Path) -> None:
    """Its file of captions beside its images: what is not for training counts, by image and word for word."""
    data = Path(os.environ["CURATION_REAL_DATA"])
    entries = [json.loads(line) for line in (data / "rs/aid/captions.jsonl").read_text().splitlines()]
    tests = [entry for entry in entries if entry["split"] != "train"][:60]
    learned = [entry for entry in entries if entry["split"] == "train"][:300:2]
    published = [
        {"filename": entry["image"], "split": split, "sentences": [{"raw": text} for text in entry["captions"]]}
        for group, split in ((tests, "test"), (learned, "train"))
        for entry in group
    ]
    for entry in tests:
        (tmp_path / entry["image"]).parent.mkdir(exist_ok=True)
        (tmp_path / entry["image"]).write_bytes((data / "rs/aid" / entry["image"]).read_bytes())
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps({"images": published}))
    photographs = sorted((data / "photo/flickr8k").rglob("*.jpg"))[: len(tests)]
    shrunk = [jpeg(Image.open(data / "rs/aid" / entry["image"]).convert("RGB").resize((120, 120))) for entry in tests]
    rows = [sample(n, body) for n, body in enumerate(shrunk)]
    rows += [sample(1000 + n, path.read_bytes(), tests[n]["captions"][0]) for n, path in enumerate(photographs)]
    rows += [
        sample(2000 + n, (data / "rs/aid" / entry["image"]).read_bytes(), entry["captions"][0])
        for n, entry in enumerate(learned)
    ]
    found = run(rows, tmp_path / "root", [str(tmp_path / "dataset_rsicd.json")])
    matches = [each["test_match"] for each in found[:-1]]
    assert matches[: len(tests)].count("image") >= 0.98 * len(tests)
    said = {" ".join(text.lower().split()) for entry in tests for text in entry["captions"]}
    for entry, match in zip([*tests, *learned], matches[len(tests) :], strict=True):
        text = " ".join(entry["captions"][0].lower().split())
        assert match == ("caption" if text in said and text.count(" ") > 1 else None), text
