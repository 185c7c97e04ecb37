from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from demo.captioner import TEXTS, make_blip
from stages.captioning.generator import Captioner, Options, adapter_ref
from stages.models import ModelRef
from tests.trainer.captioner.conftest import KINDS, picture, shard
from trainer.captioner import training
from trainer.captioner.__main__ import main
from trainer.evaluation.files import open_rgb

ALL = ["qkv", "projection", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "dense", "query", "key", "value"]
"""A language model of random weights must learn to speak, too."""
FEW = ["--batch-size", "8", "--warmup", "3", "--workers", "0", "--max-tokens", "16", "--device", "cpu"]


def run(blip2: Path, data: Path | str, out: Path, *more: str) -> int:
    return main(["--model", str(blip2), "--data", str(data), "--out", str(out), *FEW, "--lr", "1e-2", *more])


def lines(out: Path) -> list[dict[str, Any]]:
    """The log, less what depends on the clock."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "samples_per_second"} for row in rows]


def written(blip2: Path, adapter: Path | None, count: int) -> list[list[str]]:
    """What the stage's generator writes of new images of each kind."""
    ref = ModelRef(library="transformers", where="stages.captions", model=str(blip2))
    captioner = Captioner(
        ref=ref, adapter=adapter_ref("adapter", str(adapter) if adapter else None), device="cpu", threads=1
    )
    captioner.check()
    process = captioner.processor(None)
    inputs = [process(open_rgb(picture(1000 + number))) for number in range(KINDS)]
    write = captioner.load(Options(candidates=count, max_tokens=16, precision="fp32", temperature=0.05))
    return write(inputs, [f"{number:064x}" for number in range(KINDS)])


def test_it_learns_and_the_stage_writes_with_its_adapter(blip2: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(blip2, folder, out, "--epochs", "14", "--held-out", "0.3", "--targets", *ALL) == 0
    losses = [row["loss"] for row in lines(out)]
    assert sum(losses[-5:]) / 5 < losses[0] / 3
    result = json.loads((out / "meteor.json").read_text())
    metric = result["metric"]
    assert metric in ("meteor", "meteor_exact_stem")
    assert result["before"][metric] < 0.2
    assert result["after"][metric] > 0.5
    assert result["after"]["step"] > 0
    without, with_it = written(blip2, None, 2), written(blip2, out / "adapter", 2)
    assert all(a != b for a, b in zip(without, with_it, strict=True))
    right = sum(text == TEXTS[kind] for kind, texts in enumerate(with_it) for text in texts)
    assert right >= KINDS  # of two candidates an image
    assert not any(text in TEXTS for texts in without for text in texts)


def test_the_papers_adapter_is_in_the_image_encoders_attention_alone(blip2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(blip2, shard(tmp_path / "a.tar"), out, "--epochs", "2", "--lr", "5e-2") == 0
    config = json.loads((out / "adapter/adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["self_attn.projection", "self_attn.qkv"]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["bias"]) == (16, 16.0, 0.05, "none")
    from safetensors.torch import load_file

    names = load_file(out / "adapter/adapter_model.safetensors")
    assert len(names) == 2 * 2 * 2  # A and B of two modules in two layers
    assert all(
        re.search(r"vision_model\.encoder\.layers\.\d\.self_attn\.(qkv|projection)\.lora_", name) for name in names
    )
    assert any(weight.abs().max() > 0 for name, weight in names.items() if "lora_B" in name)
    assert lines(out)[-1]["loss"] < lines(out)[0]["loss"]
    assert written(blip2, out / "adapter", 1) != written(blip2, None, 1)


def test_a_killed_training_goes_on_as_if_nothing_had_been(
    blip2: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    often = ("--epochs", "2", "--held-out", "0.3", "--checkpoint-every", "1", "--seed", "5")
    assert run(blip2, folder, whole, *often) == 0
    step = training.Training._step

    def killed(self: Any, *given: Any) -> None:
        if self.progress.step == 5:
            raise KeyboardInterrupt
        step(self, *given)

    monkeypatch.setattr(training.Training, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(blip2, folder, broken, *often)
    monkeypatch.undo()
    assert len(lines(broken)) == 5
    assert run(blip2, folder, broken, *often) == 2
    assert run(blip2, folder, broken, *often, "--resume", "--workers", "1") == 0
    assert lines(broken) == lines(whole)
    assert (broken / "meteor.json").read_text() == (whole / "meteor.json").read_text()
    first, second = (torch.load(max(out.glob("checkpoints/*.pt"))) for out in (whole, broken))
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


@pytest.mark.parametrize("table", ["metadata.csv", "captions.jsonl"])
def test_tables(blip2: Path, folder: Path, tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").unlink()
    if table.endswith("csv"):
        text = "filename,title,split\n" + "".join(
            f"{row['file_name']},{row['text']},{'train' if number < 30 else 'test'}\n"
            for number, row in enumerate(rows)
            for _ in range(2)
        )
    else:
        text = "".join(
            json.dumps({"image": row["file_name"], "captions": [row["text"]] * 5, "split": ["train", "val"][n >= 30]})
            + "\n"
            for n, row in enumerate(rows)
        )
    (folder / table).write_text(text)
    assert run(blip2, folder, tmp_path / "out", "--epochs", "1") == 0
    assert "30 images to train on, METEOR on 10" in capsys.readouterr().err


def test_val_data_and_several_places(blip2: Path, folder: Path, tmp_path: Path) -> None:
    more = ("--data", str(shard(tmp_path / "b.tar", 8, 100)), "--val-data", str(shard(tmp_path / "c.tar", 6, 200)))
    assert run(blip2, folder, tmp_path / "out", *more, "--epochs", "1") == 0
    assert len(lines(tmp_path / "out")) == 6
    assert json.loads((tmp_path / "out/meteor.json").read_text())["after"]["images"] == 6


def test_damaged_images_are_named_and_left_out(
    blip2: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "003.jpg").write_bytes(picture(3)[:300])
    (folder / "004.jpg").unlink()
    assert run(blip2, folder, tmp_path / "out", "--epochs", "1") == 0
    told = capsys.readouterr().err
    assert "damaged image 003.jpg: its image cannot be decoded" in told
    assert "damaged image 004.jpg: cannot be read (No such file or directory)" in told
    for number in range(20):
        (folder / f"{number:03d}.jpg").write_bytes(b"no image")
    assert run(blip2, folder, tmp_path / "other", "--epochs", "1") == 2
    assert "11 images cannot be used, and 10 may; the first: " in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_and_says_where(
    blip2: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(blip2, folder, tmp_path / "out", "--lr", "1e30", "--epochs", "3") == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"step \d+: the loss is no finite number on \d+\.jpg.*; (the last good|there is no) checkpoint", told
    )


def test_mistakes_are_one_sentence(
    blip2: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blip = make_blip(tmp_path / "blip")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metadata.jsonl").write_text('{"file_name": "a.jpg"}\n')
    bare = tmp_path / "bare"
    bare.mkdir()
    for given, said in (
        ((blip2, tmp_path / "none/*.tar"), "no shard matches"),
        ((blip2, bare), "has no metadata.jsonl, captions.jsonl, metadata.csv or captions.csv"),
        ((blip2, empty), "every row needs one of file_name, filename, image, image_path and one of"),
        ((tmp_path / "nowhere", folder), "--model .*nowhere: it cannot be loaded"),
        ((blip, folder), "it is a blip of another kind; accepted: BLIP2"),
        ((blip2, folder, "--targets", "wqkv"), "--targets wqkv: no such linear modules in .* which has .*qkv"),
        ((blip2, folder, "--held-out", "0"), "40 are left to train on and 0 to measure METEOR on"),
        ((blip2, folder, "--rank", "0"), "--rank 0: at least 1 is wanted"),
        ((blip2, folder, "--lr", "nan"), "--lr nan: a finite number above 0"),
        ((blip2, folder, "--device", "cuda"), "--device cuda: there is no GPU here"),
    ):
        if "cuda" in given and torch.cuda.is_available():
            continue
        assert run(given[0], given[1], tmp_path / "out", *given[2:]) == 2, said  # type: ignore[arg-type]
        told = capsys.readouterr().err.strip().splitlines()
        assert re.search(said, told[-1]), told
        assert not any("Traceback" in line for line in told)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_training_is_refused(
    blip2: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(blip2, folder, out, "--epochs", "1") == 0
    assert run(blip2, folder, out, "--epochs", "1", "--resume", "--rank", "4") == 2
    assert "rank was 16, now 4" in capsys.readouterr().err
    shutil.rmtree(out / "adapter")
    (out / "checkpoints").joinpath("step-00000009.pt").write_bytes(b"half")
    assert run(blip2, folder, out, "--epochs", "1", "--resume") == 2
    assert "step-00000009.pt cannot be read" in capsys.readouterr().err


def test_a_full_disk_ends_it_with_a_sentence(
    blip2: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints/step-00000002.pt.part").symlink_to("/dev/full")
    assert run(blip2, folder, out, "--epochs", "1", "--checkpoint-every", "1") == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "the checkpoint of step 2 cannot be written (No space left on device)" in told
    assert told.endswith("the last good checkpoint is " + str(out / "checkpoints/step-00000001.pt"))
    assert run(blip2, folder, out, "--epochs", "1", "--resume") == 0


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    for part in ("adapter: runs/captioner/adapter", "(default 5e-05)", "--held-out", "meteor.json"):
        assert part in told
