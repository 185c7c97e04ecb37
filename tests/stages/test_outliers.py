"""Outliers: scores equal what the libraries compute alone, are stored and adopted, and quantiles are exact."""

from __future__ import annotations

import hashlib
import io
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.manifest import Manifest
from demo.models import make_detector, make_open_clip
from stages import scoring
from stages.errors import UnitError, UserError
from stages.outliers import OutliersConfig, OutliersStage
from stages.schema import COMMON, DEDUP, DOWNLOAD, extend
from stages.scorers import DetectorConfig, VlmConfig
from stages.selection import Keep
from tests.harness import give_input, read_output, run_stage

SCHEMA = extend(COMMON, DOWNLOAD, DEDUP)
BROKEN = b"\xff\xd8\xff\xe0 this is no JPEG"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_open_clip(folder / "clip")
    make_detector(folder / "detector")
    return folder


def picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((80 + seed % 50, 90), Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
    return out.getvalue()


def give(root: Path, bodies: list[bytes], captions: list[str | None] | None = None, parts: int = 3) -> list[str]:
    """Images in one file with rows pointing at them, as the output of dedup; returns the keys."""
    (root / "download").mkdir(parents=True, exist_ok=True)
    (root / "download" / "images-0.tar").write_bytes(b"".join(bodies))
    rows: list[dict[str, Any]] = []
    offset = 0
    for number, body in enumerate(bodies):
        rows.append(
            {
                "key": hashlib.md5(body).hexdigest(),
                "source": "web",
                "url": f"http://a.org/{number}",
                "caption": captions[number] if captions else f"aerial view number {number}",
                "status": "kept",
                "sha256": hashlib.sha256(body).hexdigest(),
                "image": {"tar": "download/images-0.tar", "offset": offset, "size": len(body)},
            }
        )
        offset += len(body)
    give_input(root, "dedup", [pa.Table.from_pylist(rows[part::parts], schema=SCHEMA) for part in range(parts)])
    return [row["key"] for row in rows]


def config(models: Path, keep: Keep | None = None, **changes: Any) -> OutliersConfig:
    options: dict[str, Any] = {
        "vlm": VlmConfig(model=str(models / "clip"), batch_size=8),
        "detector": DetectorConfig(model=str(models / "detector"), batch_size=8),
        "keep": keep or Keep(),
    }
    return OutliersConfig(**options | changes)


def run(root: Path, settings: OutliersConfig) -> tuple[dict[str, dict[str, Any]], Manifest]:
    stage = OutliersStage(settings)
    stage.check()
    written = run_stage(stage, root, "dedup", sources=["web"])
    return {row["key"]: row for row in read_output(root, written).to_pylist()}, written


def test_scores_are_what_the_libraries_compute_alone(models: Path, tmp_path: Path) -> None:
    import open_clip
    import timm
    import torch
    import yaml
    from timm.data import create_transform, resolve_model_data_config

    bodies = [picture(seed) for seed in range(11)]
    keys = give(tmp_path, bodies)
    found, _ = run(tmp_path, config(models))
    prompts = yaml.safe_load(Path("manifests/prompts/rs5m.yaml").read_text())["prompts"]
    assert len(prompts) == 33
    clip, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{models / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{models / 'clip'}")
    detector = timm.create_model(f"local-dir:{models / 'detector'}", pretrained=True).eval()
    look = create_transform(**resolve_model_data_config(detector))
    with torch.inference_mode():
        mean = clip.eval().encode_text(tokenizer(prompts), normalize=True).mean(dim=0)
        for number, (key, body) in enumerate(zip(keys, bodies, strict=True)):
            image = Image.open(io.BytesIO(body))
            feature = clip.encode_image(prepare(image)[None], normalize=True)[0]
            text = clip.encode_text(tokenizer([f"aerial view number {number}"]), normalize=True)[0]
            outputs = detector(look(image)[None])[0]
            row = found[key]
            assert row["vlm_score"] == pytest.approx(float(feature @ mean / mean.norm()), abs=1e-5)
            assert row["caption_similarity"] == pytest.approx(float(feature @ text), abs=1e-5)
            assert row["detector_score"] == pytest.approx(float(outputs.softmax(0)[1]), abs=1e-5)
            assert row["detector_logit"] == pytest.approx(float(outputs[1] - outputs[0]), abs=1e-4)


def test_the_papers_rule_both_quantiles_over_all_rows(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(seed) for seed in range(40)])
    found, written = run(tmp_path, config(models))
    rows = list(found.values())
    by_vlm = {r["key"] for r in sorted(rows, key=lambda r: (-r["vlm_score"], r["key"]))[: ceil(0.9 * 40)]}
    by_detector = {r["key"] for r in sorted(rows, key=lambda r: (-r["detector_logit"], r["key"]))[: ceil(0.8 * 40)]}
    for row in rows:
        low = None if row["key"] in by_detector else "low_detector_score"
        assert row["reason"] == (low if row["key"] in by_vlm else "low_vlm_score")
    assert written.counts["web"]["in"] == 40
    threshold = written.summary["thresholds"]["vlm"]["threshold"]
    assert threshold == min(r["vlm_score"] for r in rows if r["key"] in by_vlm)
    assert written.summary["scored"] == {"score-vlm": 40, "score-detector": 40}


def test_one_model_alone(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(seed) for seed in range(10)])
    found, _ = run(tmp_path, config(models, vlm=None))
    assert sum(row["reason"] == "low_detector_score" for row in found.values()) == 2
    assert all(row["vlm_score"] is None and row["caption_similarity"] is None for row in found.values())


def test_another_threshold_reruns_no_model(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(tmp_path, [picture(seed) for seed in range(20)])
    first, _ = run(tmp_path, config(models))
    monkeypatch.setattr(scoring.Score, "setup", None)
    second, written = run(tmp_path, config(models, Keep(vlm=0.5, detector=None, similarity=0.5)))
    assert written.summary["scored"] == {"score-vlm": 0, "score-detector": 0}
    scores = ("vlm_score", "detector_score", "detector_logit", "caption_similarity")
    assert {k: [r[s] for s in scores] for k, r in first.items()} == {
        k: [r[s] for s in scores] for k, r in second.items()
    }
    assert sum(row["reason"] == "low_vlm_score" for row in second.values()) == 10
    assert all((tmp_path / file.path).is_file() for file in written.outputs)


def test_a_new_source_scores_only_what_is_new(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(seed) for seed in range(12)])
    before, _ = run(tmp_path, config(models))
    give(tmp_path, [picture(seed) for seed in range(5)] + [picture(seed) for seed in range(50, 57)])
    after, written = run(tmp_path, config(models))
    assert written.summary["scored"] == {"score-vlm": 7, "score-detector": 7}
    shared = set(before) & set(after)
    assert len(shared) == 5
    assert all(before[key]["vlm_score"] == after[key]["vlm_score"] for key in shared)


def test_other_weights_or_prompts_score_again(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(seed) for seed in range(4)])
    run(tmp_path, config(models, detector=None))
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("prompts: [a satellite image.]\n")
    other = VlmConfig(model=str(models / "clip"), prompts=str(prompts))
    assert run(tmp_path, config(models, vlm=other, detector=None))[1].summary["scored"] == {"score-vlm": 4}
    make_open_clip(tmp_path / "other", seed=1)
    weights = VlmConfig(model=str(tmp_path / "other"))
    assert run(tmp_path, config(models, vlm=weights, detector=None))[1].summary["scored"] == {"score-vlm": 4}


def test_the_same_folder_elsewhere_is_the_same_model(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(seed) for seed in range(4)])
    run(tmp_path, config(models, detector=None))
    make_open_clip(tmp_path / "copy")
    moved = VlmConfig(model=str(tmp_path / "copy"), batch_size=3)
    assert run(tmp_path, config(models, vlm=moved, detector=None))[1].summary["scored"] == {"score-vlm": 0}


def test_what_cannot_be_decoded_is_unscorable(models: Path, tmp_path: Path) -> None:
    keys = give(tmp_path, [picture(1), BROKEN, picture(2)])
    found, written = run(tmp_path, config(models, Keep(vlm=None, detector=None)))
    assert found[keys[1]]["reason"] == "unscorable"
    assert written.counts["web"] == {"in": 3, "kept": 2, "dropped": {"unscorable": 1}}


def test_one_image_with_several_captions_has_one_score_and_several_similarities(models: Path, tmp_path: Path) -> None:
    body = picture(3)
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "images-0.tar").write_bytes(body)
    rows = [
        {
            "key": f"{n:032x}",
            "source": "web",
            "url": "http://a.org/1",
            "caption": caption,
            "status": "kept",
            "sha256": hashlib.sha256(body).hexdigest(),
            "image": {"tar": "download/images-0.tar", "offset": 0, "size": len(body)},
        }
        for n, caption in enumerate(["a harbour", "a forest seen from above", None])
    ]
    give_input(tmp_path, "dedup", [pa.Table.from_pylist(rows, schema=SCHEMA)])
    found, written = run(tmp_path, config(models, Keep(vlm=1.0, detector=1.0, similarity=1.0)))
    a, b, none = found.values()
    assert a["vlm_score"] == pytest.approx(b["vlm_score"], abs=1e-6)
    assert a["caption_similarity"] != b["caption_similarity"]
    assert (none["caption_similarity"], none["status"]) == (None, "kept")
    assert written.summary["scored"] == {"score-vlm": 3, "score-detector": 1}


def test_units_and_batches_change_no_score_beyond_rounding(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [picture(seed) for seed in range(13)]
    give(tmp_path / "one", bodies)
    one, _ = run(tmp_path / "one", config(models))
    monkeypatch.setattr(scoring, "UNIT_IMAGES", (4, 4))
    monkeypatch.setattr("stages.outliers.ROWS_PER_UNIT", 3)
    give(tmp_path / "many", bodies, parts=5)
    small = VlmConfig(model=str(models / "clip"), batch_size=4)
    many, written = run(tmp_path / "many", config(models, vlm=small))
    assert len([file for file in written.outputs if "scores/vlm" in file.path]) == 4
    assert {k: r["reason"] for k, r in one.items()} == {k: r["reason"] for k, r in many.items()}
    for key, row in one.items():
        assert row["vlm_score"] == pytest.approx(many[key]["vlm_score"], abs=1e-6)


def test_the_same_input_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        give(tmp_path / name, [picture(seed) for seed in range(6)])
        _, written = run(tmp_path / name, config(models))
        digests.append(sorted(file.sha256 for file in written.outputs))
    assert digests[0] == digests[1]


def test_no_rows_at_all(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [], parts=1)
    assert run(tmp_path, config(models))[0] == {}


def test_preview_counts_rows_to_adopt_and_to_do(models: Path, tmp_path: Path) -> None:
    from curation.workspace import StageRun, UnitWorkspace
    from stages.base import Unit
    from stages.storage import Store

    give(tmp_path, [picture(seed) for seed in range(5)])
    run(tmp_path, config(models))
    give(tmp_path, [picture(seed) for seed in range(7)])
    coming = StageRun(store=Store(str(tmp_path)), stage="outliers", fingerprint="next", input_stage="dedup")
    ws = UnitWorkspace(coming, "preview", Unit(id="preview"))
    assert OutliersStage(config(models)).preview(ws) == (5, 2)


def test_a_model_that_gives_nan_is_accused(models: Path, tmp_path: Path) -> None:
    import torch

    from demo.models import new_detector, save_detector

    broken = new_detector()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    save_detector(broken, tmp_path / "nan")
    give(tmp_path, [picture(seed) for seed in range(9)])
    settings = config(models, vlm=None, detector=DetectorConfig(model=str(tmp_path / "nan")))
    with pytest.raises(RuntimeError, match="no finite score for any of 9 images"):
        run(tmp_path, settings)


def test_weights_of_another_architecture_are_a_sentence(models: Path, tmp_path: Path) -> None:
    folder = make_detector(tmp_path / "mixed")
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("test_resnet", "test_vit"))
    give(tmp_path, [picture(1)])
    with pytest.raises((RuntimeError, UnitError), match="cannot be loaded"):
        run(tmp_path, config(models, vlm=None, detector=DetectorConfig(model=str(folder))))


def test_class_order_comes_from_the_names(tmp_path: Path) -> None:
    give(tmp_path, [picture(seed) for seed in range(3)])
    scores = []
    for name, labels in (("one", ("other", "rs")), ("two", ("rs", "other"))):
        folder = make_detector(tmp_path / name, labels=labels)
        found, _ = run(tmp_path, OutliersConfig(detector=DetectorConfig(model=str(folder)), keep=Keep(detector=None)))
        scores.append([row["detector_score"] for row in found.values()])
    assert scores[0] == pytest.approx([1 - score for score in scores[1]], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (OutliersConfig(), "name a vlm, a detector or both"),
        (OutliersConfig(detector=DetectorConfig(model="built-in")), "'built-in' is no model"),
        (OutliersConfig(detector=DetectorConfig(model="/no/such/folder")), "there is no folder"),
        (
            OutliersConfig(detector=DetectorConfig(model="{models}/detector"), keep=Keep(similarity=0.5)),
            "needs a vlm",
        ),
        (OutliersConfig(detector=DetectorConfig(model="{models}/detector", positive_label="sea")), "'other', 'rs'"),
        (OutliersConfig(vlm=VlmConfig(model="{models}/clip", prompts="none")), "cannot be read"),
        (OutliersConfig(vlm=VlmConfig(model="{models}/clip", batch_size=0)), "from 1 on"),
    ],
)
def test_mistakes_are_sentences(models: Path, settings: OutliersConfig, sentence: str) -> None:
    from dataclasses import replace

    for name in ("vlm", "detector"):
        part = getattr(settings, name)
        if part:
            settings = replace(settings, **{name: replace(part, model=part.model.format(models=models))})
    with pytest.raises(UserError, match=sentence):
        OutliersStage(settings).check()


def test_scores_are_parquet_of_ids_and_columns(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(seed) for seed in range(3)])
    run(tmp_path, config(models))
    [stored] = (tmp_path / "outliers" / "scores").glob("detector-*.parquet")
    assert pq.read_schema(stored).names == ["id", "detector_score", "detector_logit"]
