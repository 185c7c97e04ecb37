"""Captions: candidates belong to seed and image alone, are stored and adopted, ranked as CLIP does, and composed."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from demo.captioner import TEXTS, make_blip, make_blip2, make_encoder_decoder, make_git
from demo.models import make_open_clip
from stages.captioning import candidates, generator, ranking
from stages.captioning.ranker import PROMPT, RankConfig, Ranker, RerankConfig
from stages.captions import CaptionsConfig, CaptionsStage
from stages.errors import UserError
from stages.shards import ShardsConfig, ShardsStage
from tests.harness import run_stage
from tests.stages.captioning_world import (
    BROKEN,
    RECORD,
    config,
    give,
    make_llava,
    make_qwen2_vl,
    picture,
    run,
    texts,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_blip2(folder / "blip2")
    make_open_clip(folder / "clip")
    make_open_clip(folder / "clip2", seed=1)
    return folder


def test_every_row_gets_candidates_scores_a_pick_and_facts(models: Path, tmp_path: Path) -> None:
    keys = give(tmp_path, [picture(seed) for seed in range(7)])
    found, written = run(tmp_path, config(models))
    assert set(found) == set(keys)
    for row in found.values():
        assert len(row["candidates"]) == 6
        assert all(each["score"] is not None and each["rotation_variance"] >= 0 for each in row["candidates"])
        standing = [each for each in row["candidates"] if each["reason"] is None]
        assert 1 <= len(standing) <= 2
        assert row["top_caption"] == max(standing, key=lambda each: each["rerank"])["text"]
        first, *facts = row["caption_parts"]
        assert (first["origin"], first["fact"]) == ("generated", None)
        assert first["text"].rstrip(".") in (row["top_caption"], row["rotation_invariant_caption"])
        assert {part["origin"] for part in facts} == {"metadata"}
        assert row["caption"] == " ".join(part["text"] for part in row["caption_parts"])
        assert row["caption_tokens"] <= 77
        assert "airport" in row["caption"]
        origins = {entry["origin"] for entry in row["captions"]}
        assert origins == {"generated", "metadata"}
    assert written.counts["scenes"] == {"in": 7, "kept": 7, "dropped": {}}
    assert written.summary["generated"] == 7
    assert written.summary["sources"]["scenes"]["candidates"] == 42
    assert written.summary["sources"]["scenes"]["meta_captions"] == sum(
        bool(row["meta_caption"]) for row in found.values()
    )
    assert any("captions/candidates/" in file.path for file in written.outputs)


def test_draws_belong_to_seed_image_and_candidate_alone() -> None:
    from stages.captioning.sampling import uniforms

    few, many = uniforms(1, "a", 2, 5), uniforms(1, "a", 20, 50)
    assert (many[:2, :5] == few).all()
    assert ((few >= 0) & (few < 1)).all()
    assert len({float(row[0]) for row in (*many, *uniforms(2, "a", 2, 1), *uniforms(1, "b", 2, 1))}) == 24
    assert abs(many.mean() - 0.5) < 0.03


def test_a_draw_is_nucleus_sampling() -> None:
    import torch

    from stages.captioning.sampling import choose

    probabilities = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05])
    draws = (torch.arange(10_000) + 0.5) / 10_000
    logits = probabilities.log().expand(10_000, 5)
    for top_k, top_p, wanted in (
        (0, 1.0, [0.1, 0.5, 0.05, 0.3, 0.05]),
        (3, 1.0, [1 / 9, 5 / 9, 0, 3 / 9, 0]),
        (0, 0.8, [0, 5 / 8, 0, 3 / 8, 0]),
        (0, 0.4, [0, 1, 0, 0, 0]),
    ):
        tokens = choose(logits, draws, top_k=top_k, top_p=top_p, temperature=1.0)
        shares = torch.bincount(tokens, minlength=5) / 10_000
        assert shares.tolist() == pytest.approx(wanted, abs=2e-4)


def test_order_of_rows_units_and_parts_change_no_candidate(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [picture(seed) for seed in range(9)]
    give(tmp_path / "one", bodies, parts=1)
    one, _ = run(tmp_path / "one", config(models))
    monkeypatch.setattr(candidates, "UNIT_IMAGES", 4)
    give(tmp_path / "many", bodies[::-1], parts=4)
    many, written = run(tmp_path / "many", config(models))
    assert len([file for file in written.outputs if "candidates/" in file.path]) == 3
    assert {key: texts(row) for key, row in one.items()} == {key: texts(row) for key, row in many.items()}
    assert {key: row["caption"] for key, row in one.items()} == {key: row["caption"] for key, row in many.items()}


def test_a_stop_costs_the_unit_in_flight_and_changes_nothing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "UNIT_IMAGES", 4)
    bodies = [picture(seed) for seed in range(9)]
    give(tmp_path / "calm", bodies)
    calm, _ = run(tmp_path / "calm", config(models))
    give(tmp_path / "stopped", bodies)
    written: list[int] = []
    write = candidates.write_batches

    def stopping(state: Any, size: int, inputs: Any, ids: Any) -> list[list[str]]:
        if len(written) == 1:
            written.append(0)
            raise RuntimeError("stopped")
        written.append(len(ids))
        return write(state, size, inputs, ids)

    monkeypatch.setattr(candidates, "write_batches", stopping)
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path / "stopped", config(models), fingerprint="same")
    found, _ = run(tmp_path / "stopped", config(models), fingerprint="same")
    assert written == [4, 0, 4, 1]
    assert {key: texts(row) for key, row in calm.items()} == {key: texts(row) for key, row in found.items()}


def test_another_seed_writes_other_candidates(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(1)])
    [one] = run(tmp_path, config(models))[0].values()
    [two] = run(tmp_path, config(models), seed=7, fingerprint="other")[0].values()
    assert texts(one) != texts(two)


def test_the_image_is_encoded_once(models: Path) -> None:
    captioner = CaptionsStage(config(models)).captioner()
    model, _ = captioner.open("cpu", "fp32")
    seen: list[int] = []
    model.vision_model.register_forward_hook(lambda module, inputs, kwargs, out: seen.append(1), with_kwargs=True)
    inputs = captioner.processor(None)(Image.open(io.BytesIO(picture(1))))
    tensors = generator._batch([inputs], "cpu", model.dtype)
    draws = np.random.default_rng(0).random((20, 8))
    rows = generator._generate(model, tensors, draws, "cpu", generator.Options(max_tokens=8))
    assert seen == [1]
    assert len(rows) == 20


def test_ranking_again_generates_nothing_and_reranks_only_what_changed(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(tmp_path, [picture(seed) for seed in range(5)])
    first, _ = run(tmp_path, config(models))
    monkeypatch.setattr(candidates.Generate, "setup", None)
    other = RankConfig(model=str(models / "clip2"), keep=3, batch_size=4)
    second, written = run(tmp_path, config(models, rank=other, pick="top"))
    assert written.summary["generated"] == 0
    assert {key: texts(row) for key, row in first.items()} == {key: texts(row) for key, row in second.items()}
    assert all((tmp_path / file.path).is_file() for file in written.outputs)


def test_a_new_image_is_all_that_is_captioned(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(seed) for seed in range(4)])
    before, _ = run(tmp_path, config(models))
    give(tmp_path, [picture(seed) for seed in (0, 1, 8)])
    after, written = run(tmp_path, config(models))
    assert written.summary["generated"] == 1
    shared = set(before) & set(after)
    assert len(shared) == 2
    assert all(texts(before[key]) == texts(after[key]) for key in shared)


def test_equal_ranks_are_not_computed_again(models: Path, tmp_path: Path) -> None:
    from curation.workspace import StageRun, UnitWorkspace
    from stages.base import Unit
    from stages.storage import Store

    give(tmp_path, [picture(seed) for seed in range(3)])
    run(tmp_path, config(models), fingerprint="one")
    run(tmp_path, config(models, compose="paper"), fingerprint="two")
    digests = []
    for name in ("one", "two"):
        execution = StageRun(store=Store(str(tmp_path)), stage="captions", fingerprint=name, input_stage="dedup")
        [rank, *_] = [phase for phase in CaptionsStage(config(models)).phases() if isinstance(phase, ranking.Rank)]
        digests.append([unit.digest for unit in rank.cut(UnitWorkspace(execution, "rank", Unit(id="cut")))])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 1


def test_a_ranker_that_runs_out_of_memory_ranks_in_smaller_batches(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("roomy", "cramped"):
        give(tmp_path / name, [picture(seed) for seed in range(5)])
    roomy, _ = run(tmp_path / "roomy", config(models))
    load = Ranker.load

    def cramped(self: Ranker, preprocess: Any) -> Any:
        inner = load(self, preprocess)

        def small(images: Any, *rest: Any) -> Any:
            if self.name == "rank" and len(images) > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
            return inner(images, *rest)

        return small

    monkeypatch.setattr(Ranker, "load", cramped)
    found, written = run(tmp_path / "cramped", config(models))
    [warning] = written.summary["warnings"]
    assert warning.startswith("stages.captions.rank: batches of 4 images did not fit into memory")
    assert warning.endswith("set batch_size: 2")
    for key, row in roomy.items():
        scores = [each["score"] for each in row["candidates"]]
        assert [each["score"] for each in found[key]["candidates"]] == pytest.approx(scores, abs=1e-5)


def test_scores_and_classes_are_what_open_clip_computes_alone(models: Path, tmp_path: Path) -> None:
    import open_clip
    import torch

    bodies = [picture(seed) for seed in range(3)]
    labels = [["airport"], ["place_of_worship"], ["lake"]]
    records = [RECORD | {"labels": names} for names in labels]
    keys = give(tmp_path, bodies, records)
    found, _ = run(tmp_path, config(models))
    clip, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{models / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{models / 'clip'}")
    classes = ["airport", "lake", "place_of_worship"]
    with torch.inference_mode():
        named = clip.eval().encode_text(
            tokenizer([PROMPT.format(name.replace("_", " ")) for name in classes]), normalize=True
        )
        for key, body in zip(keys, bodies, strict=True):
            feature = clip.encode_image(prepare(Image.open(io.BytesIO(body)))[None], normalize=True)[0]
            features = clip.encode_text(tokenizer(texts(found[key])), normalize=True)
            scores = [each["score"] for each in found[key]["candidates"]]
            assert scores == pytest.approx((features @ feature).tolist(), abs=1e-5)
            assert found[key]["image_class"] == classes[int((named @ feature).argmax())]


def test_turned_views_have_no_black_corner_and_turn_as_pillow_does(models: Path) -> None:
    from stages import vision
    from stages.captioning.ranker import ANGLES, disc, turns

    preprocess = vision.preprocess_of(CaptionsStage(config(models)).rankers()[0].ref)
    options = preprocess.options
    mean, std = (np.array(options[name])[:, None, None] for name in ("mean", "std"))
    white = disc(Image.new("RGB", (90, 61), "white"), preprocess)
    views = [np.asarray(view[0]) * std + mean for view in turns([white], preprocess, "cpu")]
    assert len(views) == ANGLES
    assert all(view.min() > 0.999 for view in views)
    ramp = np.tile(np.linspace(0, 255, 200, dtype=np.uint8)[None, :, None], (200, 1, 3))
    (
        straight,
        *_,
    ) = views = [np.asarray(view[0]) for view in turns([disc(Image.fromarray(ramp), preprocess)], preprocess, "cpu")]
    assert straight[0, 32, 40] > straight[0, 32, 20]
    assert np.abs(views[6] - straight[:, ::-1, ::-1]).max() < 0.05
    quarter = views[3][0]
    assert abs(quarter[20, 32] - quarter[40, 32]) > 0.5
    assert abs(quarter[32, 20] - quarter[32, 40]) < 0.05


def test_an_image_that_cannot_be_decoded_keeps_its_facts_and_no_candidates(models: Path, tmp_path: Path) -> None:
    keys = give(tmp_path, [picture(1), BROKEN, picture(2)], [RECORD, RECORD, {}])
    found, written = run(tmp_path, config(models))
    assert found[keys[1]]["candidates"] == []
    assert {part["origin"] for part in found[keys[1]]["caption_parts"]} == {"metadata"}
    assert written.counts["scenes"]["kept"] == 3


def test_a_row_without_any_caption_is_dropped_with_its_reason(models: Path, tmp_path: Path) -> None:
    keys = give(tmp_path, [BROKEN, picture(2)], [{}, {}])
    found, written = run(tmp_path, config(models))
    assert (found[keys[0]]["status"], found[keys[0]]["reason"]) == ("dropped", "no_caption_left")
    assert written.counts["scenes"] == {"in": 2, "kept": 1, "dropped": {"no_caption_left": 1}}


def test_a_caption_of_ones_own_stands_in_when_it_says_nothing_unsupported(models: Path, tmp_path: Path) -> None:
    keys = give(tmp_path, [BROKEN, BROKEN + b"x"], [{"caption": "a long pier"}, {"caption": "a pier in france"}])
    found, _ = run(tmp_path, config(models))
    assert found[keys[0]]["caption"] == "a long pier."
    assert found[keys[1]]["reason"] == "no_caption_left"


def test_paper_order_puts_the_meta_caption_first(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(1)])
    [row] = run(tmp_path, config(models, compose="paper", pick="top"))[0].values()
    assert row["caption"] == f"{row['meta_caption']} {row['top_caption']}"
    assert [part["origin"] for part in row["caption_parts"]] == ["metadata", "generated"]
    assert all(each["rotation_mean"] is None for each in row["candidates"])


def test_without_rankers_the_first_candidate_that_stands_is_taken(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(1)])
    [row] = run(tmp_path, config(models, rank=None, rerank=None, pick="top"))[0].values()
    assert row["top_caption"] == next(each["text"] for each in row["candidates"] if each["reason"] is None)


def test_an_adapter_changes_what_is_written_and_the_digest(models: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(models / "blip2")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["self_attn.qkv"], init_lora_weights=False))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora" in name:
                weight.mul_(20)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    give(tmp_path, [picture(seed) for seed in range(3)])
    plain, _ = run(tmp_path, config(models))
    tuned, written = run(tmp_path, config(models, adapter=str(tmp_path / "adapter")))
    assert written.summary["generated"] == 3
    assert [texts(row) for row in plain.values()] != [texts(row) for row in tuned.values()]


@pytest.mark.parametrize("make", [make_blip, make_git, make_encoder_decoder])
def test_any_image_to_text_model_works_by_naming_it(make: Callable[[Path], Path], models: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    give(tmp_path, [picture(seed) for seed in range(3)])
    found, _ = run(tmp_path, config(models, model=str(folder), rank=None, rerank=None, pick="top", candidates=3))
    again, _ = run(tmp_path, config(models, model=str(folder), rank=None, rerank=None, pick="top", candidates=4))
    for key, row in found.items():
        assert len(set(texts(row))) == 3
        assert all(set(text.split()) <= set(" ".join(TEXTS).split()) for text in texts(row))
        assert texts(again[key])[:3] == texts(row)


QWEN = "<|vision_start|><|image_pad|><|vision_end|> an aerial view of"


@pytest.mark.parametrize(("make", "prompt"), [(make_llava, "<image> an aerial view of"), (make_qwen2_vl, QWEN)])
def test_models_that_are_spoken_to_and_see_images_of_any_shape(
    make: Callable[[Path], Path], prompt: str, tmp_path: Path
) -> None:
    """Of Qwen2-VL, images of other sizes are of other numbers of pieces, and no batch holds two of them."""
    folder = make(tmp_path / "model")
    bodies = [picture(seed) for seed in (0, 45, 1, 46, 2)]
    settings = config(tmp_path, model=str(folder), rank=None, rerank=None, pick="top", candidates=3, batch_size=2)
    give(tmp_path, bodies)
    found, _ = run(tmp_path, replace(settings, prompt=prompt))
    assert all(len(set(texts(row))) == 3 for row in found.values())
    assert len({text for row in found.values() for text in texts(row)}) == 15, "each image has captions of its own"
    give(tmp_path / "one", bodies[3:4])
    [alone] = run(tmp_path / "one", replace(settings, prompt=prompt))[0].values()
    assert texts(alone) == texts(found[alone["key"]])
    with pytest.raises(
        RuntimeError, match=r"cannot write \(.*\); models that are spoken to need stages\.captions\.prompt"
    ):
        run(tmp_path, settings)


def test_a_prompt_is_asked_and_left_out_of_the_answer(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(1)])
    [plain] = run(tmp_path, config(models))[0].values()
    [asked] = run(tmp_path, config(models, prompt="an aerial view of"))[0].values()
    assert texts(asked) != texts(plain)
    assert not any(text.startswith("an aerial view of") for text in texts(asked))


def test_the_same_input_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        give(tmp_path / name, [picture(seed) for seed in range(4)])
        _, written = run(tmp_path / name, config(models))
        digests.append(sorted(file.sha256 for file in written.outputs))
    assert digests[0] == digests[1]


def test_shards_carry_the_parts_and_their_origins(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(seed) for seed in range(3)])
    run(tmp_path, config(models))
    written = run_stage(ShardsStage(ShardsConfig(count=1, val_fraction=0.0)), tmp_path, "captions", sources=["scenes"])
    import json
    import tarfile

    [tar] = [file.path for file in written.outputs if file.kind == "tar"]
    with tarfile.open(tmp_path / tar) as archive:
        passports = [json.load(archive.extractfile(name)) for name in archive.getnames() if name.endswith(".json")]  # type: ignore[arg-type]
    assert len(passports) == 3
    assert all(passport["caption_parts"][0]["origin"] == "generated" for passport in passports)
    assert all(len(passport["candidates"]) == 6 for passport in passports)


def test_openais_weights_are_read_as_they_were_trained(models: Path) -> None:
    settings = config(models, rerank=RerankConfig(model="RN50x64", pretrained="openai"))
    assert CaptionsStage(settings).rankers()[1].ref.model == "RN50x64-quickgelu"


def test_no_rows_at_all(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [], parts=1)
    assert run(tmp_path, config(models))[0] == {}


def test_preview_counts_rows_to_adopt_and_to_do(models: Path, tmp_path: Path) -> None:
    from curation.workspace import StageRun, UnitWorkspace
    from stages.base import Unit
    from stages.storage import Store

    give(tmp_path, [picture(seed) for seed in range(3)])
    run(tmp_path, config(models))
    give(tmp_path, [picture(seed) for seed in range(5)])
    coming = StageRun(store=Store(str(tmp_path)), stage="captions", fingerprint="next", input_stage="dedup", seed=2023)
    ws = UnitWorkspace(coming, "preview", Unit(id="preview"))
    assert CaptionsStage(config(models)).preview(ws) == (3, 2)


def test_candidates_are_parquet_of_image_and_texts(models: Path, tmp_path: Path) -> None:
    give(tmp_path, [picture(1), BROKEN])
    _, written = run(tmp_path, config(models))
    [path] = [file.path for file in written.outputs if "candidates/" in file.path]
    table = pq.read_table(tmp_path / path)
    assert table.schema.names == ["id", "texts"]
    assert sorted(len(entry or []) for entry in table["texts"].to_pylist()) == [0, 6]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "/no/such/folder"}, "there is no folder"),
        ({"model": "{models}/clip"}, "has no config.json"),
        ({"adapter": "{models}/clip"}, "no folder with adapter_config.json"),
        ({"candidates": 0}, "captions.candidates is 0"),
        ({"top_p": 1.5}, "above 0 and at most 1"),
        ({"top_k": -1}, "from 0 on"),
        ({"temperature": 0.0}, "above 0"),
        ({"tokens": 3}, "from 8 on"),
        ({"gate": "none"}, "cannot be read"),
        ({"templates": {"scenes": "none"}}, "cannot be read"),
        ({"rank": None, "pick": "rotation_invariant"}, "needs stages.captions.rank"),
    ],
)
def test_mistakes_are_sentences(models: Path, changes: dict[str, Any], sentence: str) -> None:
    filled: dict[str, Any] = {name: v.format(models=models) if isinstance(v, str) else v for name, v in changes.items()}
    settings: CaptionsConfig = replace(config(models), **filled)
    with pytest.raises(UserError, match=sentence):
        CaptionsStage(settings).check()
