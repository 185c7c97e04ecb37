from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.evaluation.conftest import write_picture
from trainer.errors import UserError
from trainer.evaluation.command import main
from trainer.evaluation.ret2 import prepare


def benchmark(root: Path, name: str, suffix: str, first: int) -> tuple[Path, Path]:
    """Four train images and two test images; captions are of their own."""
    described = []
    for index in range(6):
        file = f"{name}_{index}{suffix}"
        write_picture(root / name / file, first + index, side=96)
        sentences = [{"raw": f"{name} {index}"}, {"raw": f"{name} {index} again"}]
        described.append({"filename": file, "split": "train" if index < 4 else "test", "sentences": sentences})
    (root / f"{name}.json").write_text(json.dumps({"images": described}))
    return root / f"{name}.json", root / name


def test_twins_of_either_test_set_are_left_out_of_all_train_sets(tmp_path: Path) -> None:
    sets = {
        "rsicd": benchmark(tmp_path, "rsicd", ".png", 0),
        "rsitmd": benchmark(tmp_path, "rsitmd", ".tif", 100),
    }
    (tmp_path / "rsicd" / "rsicd_0.png").write_bytes((tmp_path / "rsicd" / "rsicd_5.png").read_bytes())
    Image.open(tmp_path / "rsitmd" / "rsitmd_4.tif").save(tmp_path / "rsicd" / "rsicd_1.png")
    (tmp_path / "rsitmd" / "rsitmd_0.tif").write_bytes(b"broken")
    counts = prepare(sets, tmp_path / "out", shards=2)
    assert counts == {"rsicd": (2, 2), "rsitmd": (3, 1), "ret2": (5, 3)}
    with (tmp_path / "out" / "left_out.csv").open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ("rsicd", "rsicd_0.png", "bytes", "0", "rsicd", "rsicd_5.png"),
        ("rsicd", "rsicd_1.png", "phash", "0", "rsitmd", "rsitmd_4.tif"),
        ("rsitmd", "rsitmd_0.tif", "unreadable", "", "", ""),
    ]
    assert json.loads((tmp_path / "out" / "ret2" / "sizes.json").read_text()) == {
        "ret2-train-0000.tar": 2,
        "ret2-train-0001.tar": 3,
    }
    with tarfile.open(tmp_path / "out" / "ret2" / "ret2-train-0000.tar") as tar:
        names = tar.getnames()
    assert [name.rpartition(".")[2] for name in names] == ["png", "txt", "json"] * 2
    prepare(sets, tmp_path / "again", shards=2)
    for path in sorted((tmp_path / "out").rglob("*.tar")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes()


def test_mistakes_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--radius 40"):
        prepare({}, tmp_path, radius=40)
    assert main(["prepare-ret2", "--rsicd", "a.json", "--rsitmd", "b.json,b", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "--rsicd a.json: JSON,IMAGES is wanted\n"
