from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from curation.cli import main
from curation.export import export
from stages.storage import Store
from stages.tar import TarWriter
from tests.interop.conftest import packed
from tests.stages.test_shards import picture, sample

KINDS = ("jpeg", "png", "webp", "gif", "bmp", "tiff")


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        tar = TarWriter(file)
        for name, data in members.items():
            tar.add(name, data)
        tar.close()
    return path


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout", ["webdataset", "rs5m"])
def test_a_run_becomes_an_image_folder_that_datasets_loads(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import load_dataset

    rows = [sample(n, format=KINDS[n % 6], licence="CC BY") for n in range(18)]
    shards = packed(tmp_path / "run", rows, layout)
    for split in ("train", "val"):
        assert main(["export", str(shards / split / "*.tar"), "--out", str(tmp_path / "out" / split)]) == 0
    assert "samples in" in capsys.readouterr().out
    written = lines(tmp_path / "out" / "train") + lines(tmp_path / "out" / "val")
    assert {line["key"]: line["text"] for line in written} == {row["key"]: row["caption"] for row in rows}
    assert list(written[0])[:2] == ["file_name", "text"], "diffusers takes the second column for the caption"
    loaded = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation"}
    by_key = {row["key"]: row for row in rows}
    for split in loaded.values():
        for item in split:
            row = by_key[item["key"]]
            assert item["text"] == row["caption"]
            assert item["image"].size == (16, 12)
            if layout == "webdataset":
                assert (item["source"], item["url"], item["licence"]) == (row["source"], row["url"], "CC BY")


def test_bytes_are_copied_and_other_formats_become_png(tmp_path: Path) -> None:
    members = {
        f"a/{number}.{kind}": picture(number, kind.upper())
        for number, kind in enumerate(("png", "gif", "jpeg", "webp"))
    }
    write_tar(tmp_path / "t.tar", members)
    assert export([str(tmp_path / "t.tar")], Store(str(tmp_path / "out"))).samples == 4
    names = [line["file_name"] for line in lines(tmp_path / "out")]
    assert names == ["t/000000.png", "t/000001.png", "t/000002.jpg", "t/000003.webp"]
    assert (tmp_path / "out" / names[2]).read_bytes() == members["a/2.jpeg"]
    with Image.open(tmp_path / "out" / names[1]) as image, Image.open(tmp_path / "out" / names[1]) as again:
        assert (image.format, image.size) == ("PNG", again.size)


def test_what_cannot_be_used_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = picture(1)
    write_tar(
        tmp_path / "a.tar",
        {"1.jpg": good, "1.txt": b"one", "2.jpg": good[:300], "2.txt": b"two", "3.txt": b"three", "../../4.jpg": good},
    )
    whole = write_tar(tmp_path / "b.tar", {"5.jpg": good, "5.json": b'{"caption": "five"}', "6.jpg": good})
    whole.write_bytes(whole.read_bytes()[:3200])
    assert main(["export", str(tmp_path / "{a,b}.tar"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "left out: damaged_tar 1, no_image 1, truncated 1" in said.out
    assert "a/2: truncated" in said.err
    assert [(line["file_name"], line["text"], line["key"]) for line in lines(tmp_path / "out")] == [
        ("a/000000.jpg", "one", "1"),
        ("a/000001.jpg", "", "../../4"),
        ("b/000000.jpg", "five", "5"),
    ]
    assert not list(tmp_path.parent.glob("4*"))


def test_compressed_tars_and_a_store(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"1.img_content": picture(1), "1.img_name": b"laion2b_0_1", "1.caption": b"a port"})
    with tarfile.open(tmp_path / "y.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x.tar", "ignored")
    (tmp_path / "z.tar.gz").write_bytes(__import__("gzip").compress((tmp_path / "x.tar").read_bytes()))
    done = export([f"file://{tmp_path}/z.*"], Store(f"file://{tmp_path}/out"))
    assert done.samples == 1
    assert [(line["key"], line["text"]) for line in lines(tmp_path / "out")] == [("laion2b_0_1", "a port")]


def test_users_mistakes_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_tar(tmp_path / "one" / "t.tar", {"1.jpg": picture(1)})
    two = write_tar(tmp_path / "two" / "t.tar", {"1.txt": b"no image"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "metadata.jsonl").write_text("")
    for words, sentence in (
        ([str(tmp_path / "none-*.tar")], "no tar matches"),
        ([str(tmp_path / "none.tar")], "no tar matches"),
        ([str(one), str(two)], "have one name"),
        ([str(two)], "none of 1 tars holds an image"),
        ([str(one), "--workers", "0"], "--workers is 0; accepted: 1 or more"),
        ([str(one), "--out", str(tmp_path / "full")], "holds a metadata.jsonl already"),
    ):
        assert main(["export", "--out", str(tmp_path / "out"), *words]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out" / "metadata.jsonl").exists()
