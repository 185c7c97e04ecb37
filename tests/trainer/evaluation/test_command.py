from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from trainer.evaluation.command import main
from trainer.evaluation.data import definitions, read_classification, read_retrieval
from trainer.evaluation.files import Stored


class Plain:
    """A straightforward evaluator: open_clip's own calls, one input at a time, float64, no blocks."""

    def __init__(self, folder: Path) -> None:
        self.model, _, self.prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    @torch.no_grad()
    def image(self, stored: Stored) -> np.ndarray:
        pixels = self.prepare(Image.open(stored.path).convert("RGB"))[None]
        return self.model.encode_image(pixels)[0].double().numpy()

    @torch.no_grad()
    def text(self, text: str) -> np.ndarray:
        return self.model.encode_text(self.tokenizer([text]))[0].double().numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def plain_top1(plain: Plain, folder: Path, few: Path, paper: bool) -> float:
    read = read_classification("eurosat", folder, definitions(few))
    vectors = []
    for prompts in read.prompts():
        features = [plain.text(prompt) for prompt in prompts]
        vectors.append(unit(np.mean([one if paper else unit(one) for one in features], axis=0)))
    hits = [
        np.argmax([vector @ unit(plain.image(image)) for vector in vectors]) == label
        for image, label in zip(read.images, read.labels, strict=True)
        if image.path.stat().st_size > 100
    ]
    return float(100 * np.mean(hits))


def plain_recall(scores: np.ndarray, right: np.ndarray, k: int) -> float:
    """Mean expected hit by counting subsets; scores that agree to five digits count as equal."""
    found = []
    for row, good in zip(np.round(scores, 5), right, strict=True):
        best = row[good].max()
        slots = max(0, k - int((row > best).sum()))
        tied, mine = int((row == best).sum()), int((row[good] == best).sum())
        found.append(1 - math.comb(tied - mine, slots) / math.comb(tied, min(slots, tied)))
    return float(100 * np.mean(found))


def test_the_whole_table_agrees_with_a_straightforward_evaluation(
    clip: Path, eurosat: Path, few: Path, rsicd: tuple[Path, Path], air_slt: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results" / "one.json"
    said = ["--zero-shot", f"EuroSAT={eurosat}", "--retrieval", f"RSICD={rsicd[0]},{rsicd[1]}", "--selo", str(air_slt)]
    assert main(["--model", str(clip), *said, "--out", str(out), "--batch-size", "5", "--benchmarks", str(few)]) == 0
    found, plain = json.loads(out.read_text()), Plain(clip)
    check_zero_shot(found["zero_shot"]["EuroSAT"], plain, eurosat, few)
    check_retrieval(found["retrieval"]["RSICD"], plain, rsicd)
    check_selo(found["selo"]["AIR-SLT"])
    text = out.with_suffix(".md").read_text()
    assert "| GeoRSCLIP ViT-B/32 (released) | 61.40 | 26.06 | 0.7556 |" in text
    assert "eurosat top-1 over 12 images, published over 27,000; rsicd mR over 12 images" in text
    assert "Images that were trained on: not checked." in text
    assert Image.open(out.with_suffix(".png")).width > 600
    assert Image.open(out.parent / "one-heatmaps" / "AIR-SLT" / "001.png").size == (820, 600)
    check_compare(out)


def check_zero_shot(found: dict[str, Any], plain: Plain, folder: Path, few: Path) -> None:
    assert found["top1"] == pytest.approx(plain_top1(plain, folder, few, paper=False), abs=1e-6)
    assert found["top1_paper"] == pytest.approx(plain_top1(plain, folder, few, paper=True), abs=1e-6)
    assert (found["n"], found["classes"], found["classes_with_images"]) == (12, 3, 3)
    assert [Path(name).name for name in found["unreadable"]] == ["River_9.png"]
    low, high = found["ci95"]["top1"]
    assert low <= found["top1"] <= high


def check_retrieval(found: dict[str, Any], plain: Plain, files: tuple[Path, Path]) -> None:
    read = read_retrieval("rsicd", *files)
    images = np.stack([unit(plain.image(image)) for image in read.images])
    texts = np.stack([unit(plain.text(text)) for text in read.texts])
    scores, right = images @ texts.T, read.text_image[None, :] == np.arange(12)[:, None]
    for k in (1, 5, 10):
        assert found["i2t"][f"R@{k}"] == pytest.approx(plain_recall(scores, right, k), abs=1e-6)
        assert found["t2i"][f"R@{k}"] == pytest.approx(plain_recall(scores.T, right.T, k), abs=1e-6)
        assert found["worst"]["i2t"][f"R@{k}"] <= found["i2t"][f"R@{k}"] <= found["best"]["i2t"][f"R@{k}"]
        for way in ("i2t", "t2i"):
            assert found[way][f"R@{k}"] <= found["ceiling"][way][f"R@{k}"] + 1e-9
            assert found[way][f"R@{k}"] <= found["duplicate_aware"][way][f"R@{k}"] + 1e-9
    assert (found["n_images"], found["n_texts"], found["distinct_texts"]) == (12, 36, 12 + 1 + 3)
    assert found["mR"] == pytest.approx(np.mean([found[way][f"R@{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]))
    assert found["ceiling"]["t2i"]["R@1"] == pytest.approx(100 * (12 + 1 + 3) / 36)


def check_selo(found: dict[str, Any]) -> None:
    assert found["Rmi"] == pytest.approx(0.4 * found["Rsu"] + 0.35 * (1 - found["Ras"]) + 0.25 * found["Rda"])
    assert (found["n_images"], [query["caption"] for query in found["queries"]]) == (1, ["a green field", "noise"])
    assert set(found["ci95"]) == {"Rsu", "Ras", "Rda", "Rmi"}


def check_compare(out: Path) -> None:
    assert main(["compare", str(out), str(out), "--out", str(out.with_name("same.json"))]) == 0
    found = json.loads(out.with_name("same.json").read_text())
    assert found["retrieval/RSICD"]["mR"]["difference"] == 0
    assert found["zero_shot/EuroSAT"]["top1"]["images"] == 12


def test_benchmarks_that_were_trained_on_are_refused(
    clip: Path, eurosat: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = eurosat / "2750" / "Forest" / "Forest_0.png"
    (tmp_path / "train").mkdir()
    tar = tmp_path / "train" / "a-train-0000.tar"
    with tarfile.open(tar, "w") as file:
        member = tarfile.TarInfo("k.img_content")
        member.size = picture.stat().st_size
        file.addfile(member, io.BytesIO(picture.read_bytes()))
    digest = Stored(picture).digest()
    pq.write_table(
        pa.table({"tar": ["shards/train/x.tar", "shards/val/y.tar"], "sha256": [digest, "0"]}),
        tmp_path / "index.parquet",
    )
    words = ["--model", str(clip), "--zero-shot", f"eurosat={eurosat}", "--benchmarks", str(few)]
    words += ["--out", str(tmp_path / "r.json")]
    for pattern in (f"{tmp_path}/train/*.tar", f"{tmp_path}/index.parquet"):
        assert main([*words, "--train-data", pattern]) == 2
        assert "--zero-shot eurosat: 1 of 13 images are in --train-data" in capsys.readouterr().err
    assert main([*words, "--train-data", str(tar), "--allow-overlap"]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["overlap"] == {"zero_shot/eurosat": 1}


def test_mistakes_are_one_sentence(
    clip: Path, eurosat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--model", str(clip), "--out", str(tmp_path / "r.json")]
    for words, sentence in (
        ([*base], "nothing to judge on"),
        ([*base, "--zero-shot", "eurosat"], "--zero-shot eurosat: NAME=… is wanted"),
        ([*base, "--zero-shot", f"a={eurosat}/none"], "the folder was not found"),
        ([*base, "--zero-shot", f"eurosat={eurosat}", "--zero-shot", f"eurosat={eurosat}"], "the name is given twice"),
        ([*base, "--zero-shot", f"eurosat={eurosat}", "--train-data", f"{tmp_path}/*.tar"], "no file matches"),
        (["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")], "a.npz: the file that evaluate wrote"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert sentence in err
        assert err.count("\n") == 1
