from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.trainer.data import write_tar
from tests.trainer.training import CONFIG, started, write_data, write_model
from trainer.evaluation.model import Choice, load
from trainer.training.command import main

FIGURES = ("step", "epoch", "loss", "lr", "gradient_norm", "logit_scale", "same_text")
BASE = ["--device", "cpu", "--lr", "1e-3", "--warmup", "2", "--batch-size", "4", "--seed", "3"]


def arguments(model: Path, data: str, out: Path, *more: str, workers: int = 0) -> list[str]:
    place = ["--model", str(model), "--data", data, "--out", str(out), "--workers", str(workers)]
    return [*place, *BASE, *more]


def log(out: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def figures(out: Path) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in FIGURES) for row in log(out)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(out / "best.pt", weights_only=True)
    return found


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip()


def command(words: list[str]) -> None:
    torch.set_num_threads(1)
    sys.exit(main(words))


def test_a_training_learns_and_leaves_what_is_promised(
    tiny: Path, data: str, val_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(tiny, data, out, "--val-data", val_data, "--epochs", "6", "--set", "keep=1")) == 0
    rows = log(out)
    assert [row["step"] for row in rows] == list(range(1, 37))
    assert set(rows[0]) == {*FIGURES, "samples_per_second"}
    assert rows[-1]["epoch"] == 6
    assert np.mean([row["loss"] for row in rows[-6:]]) < 0.8 * np.mean([row["loss"] for row in rows[:6]])
    judged = log(out, "validation.jsonl")
    assert [row["step"] for row in judged] == [6, 12, 18, 24, 30, 36]
    assert {"loss", "mR", "i2t/R@1", "t2i/R@10", "best"} <= set(judged[0])
    assert judged[0]["best"] is True
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000036.pt"]
    assert yaml.safe_load((out / "config.yaml").read_text())["lr"] == 1e-3
    assert list((out / "tensorboard").iterdir())
    model = load(Choice(model=str(out / "model"), device="cpu")).model.state_dict()
    assert all(torch.equal(model[name], tensor) for name, tensor in weights(out).items())
    told = said(capsys)
    assert "24 samples" in told
    assert "(its own weights) with GELU, fp32, 1 cpu process" in told
    assert "peft none: trains" in told
    assert "step 36 of 36" in told
    assert "samples/s" in told


def test_the_best_weights_are_kept_not_the_last(tiny: Path, data: str, val_data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--val-data", val_data, "--epochs", "3", "--set", "select=loss"]
    assert main(arguments(tiny, data, out, *options, "--lr", "0.3")) == 0
    losses = [row["loss"] for row in log(out, "validation.jsonl")]
    best = int(np.argmin(losses))
    assert [row["best"] for row in log(out, "validation.jsonl")] == [
        loss == min(losses[: at + 1]) for at, loss in enumerate(losses)
    ]
    last = torch.load(out / "checkpoints" / "step-00000018.pt", weights_only=True)["weights"]
    same = all(torch.equal(last[name], tensor) for name, tensor in weights(out).items())
    assert same is (best == 2)


def test_a_killed_training_goes_on_as_if_nothing_had_been(data: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", vision_cfg=CONFIG["vision_cfg"] | {"patch_dropout": 0.5})
    more = ["--epochs", "12", "--ema", "0.9", "--set", "checkpoint_every=5"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = started(command, arguments(model, data, killed, *more, workers=1))
    while process.is_alive() and not ((killed / "log.jsonl").exists() and len(log_lines(killed)) > 7):
        time.sleep(0.005)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = len(log_lines(killed))
    assert 7 < before < 72
    assert main(arguments(model, data, killed, *more, "--resume")) == 0
    assert main(arguments(model, data, whole, *more)) == 0
    assert figures(killed) == figures(whole)
    assert len(figures(whole)) == 72
    wanted = weights(whole)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(killed).items())


def log_lines(out: Path) -> list[str]:
    return (out / "log.jsonl").read_text().splitlines()


def test_chunks_and_workers_change_no_loss_and_samples_end_a_training(tiny: Path, data: str, tmp_path: Path) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    more = ["--samples", "30", "--set", "same_text=positive"]
    assert main(arguments(tiny, data, plain, *more)) == 0
    assert main(arguments(tiny, data, other, *more, "--chunk", "2", workers=1)) == 0
    assert len(log(plain)) == 8
    losses = [[row["loss"] for row in log(out)] for out in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("kind", ["lora", "unipelt"])
def test_parts_are_trained_saved_resumed_and_judged(tiny: Path, data: str, tmp_path: Path, kind: str) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    more = ["--epochs", "2", "--peft", kind, "--set", "checkpoint_every=4"]
    assert main(arguments(tiny, data, out, *more)) == 0
    for late in sorted((out / "checkpoints").iterdir())[1:]:
        late.unlink()
    assert main(arguments(tiny, data, out, *more, "--resume")) == 0
    assert main(arguments(tiny, data, whole, *more)) == 0
    assert figures(out) == figures(whole)
    assert load(Choice(model=str(out / "model"), device="cpu")).texts(["a river"]).shape == (1, 16)
    merged = set(weights(out)) == set(load(Choice(model=str(tiny), device="cpu")).model.state_dict())
    assert merged is (kind == "lora")


def test_two_processes_of_torchrun_train_as_one_does(tiny: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", shards=1, each=12)  # fewer shards than ranks
    alone, out = tmp_path / "alone", tmp_path / "out"
    more = ["--epochs", "2", "--val-data", data]
    assert main(arguments(tiny, data, alone, *more)) == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainer.train"]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments(tiny, data, out, *more)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 cpu processes" in done.stderr
    for name in ("log.jsonl", "validation.jsonl"):
        losses = [[row["loss"] for row in log(each, name)] for each in (alone, out)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    wanted = weights(alone)
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-2, atol=1e-3)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_ray_trains_as_one_process_does(processes: int, tiny: Path, data: str, tmp_path: Path) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert main(arguments(tiny, data, alone, "--epochs", "1")) == 0
    assert main(arguments(tiny, data, out, "--epochs", "1", "--ray", str(processes))) == 0
    losses = [[row["loss"] for row in log(each)] for each in (alone, out)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert not (out / ".ray").exists()


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.usefixtures("ray_cluster")
def test_a_mistake_that_a_process_of_ray_finds_is_one_sentence(
    tiny: Path, data: str, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tiny, data, finished, "--epochs", "1", "--ray", "2")) == 2
    told = capfd.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"--out {finished}: it has step-00000006.pt of a training; say --resume")


def test_a_cluster_that_is_too_small_is_named(
    tiny: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    assert main(arguments(tiny, data, tmp_path / "out", "--ray", "900")) == 2
    assert said(capsys).startswith("--ray 900: the cluster has ")


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_batch(
    tiny: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(tiny, data, out, "--lr", "1e30", "--warmup", "0", "--set", "checkpoint_every=1")) == 1
    found = json.loads((out / "stopped.json").read_text())
    assert found["step"] == len(log(out)) + 1
    assert len(found["keys"]) == 4
    last = out / "checkpoints" / f"step-{found['step'] - 1:08d}.pt"
    assert said(capsys).splitlines()[-1] == (
        f"step {found['step']}: the loss is no finite number; its 4 samples, {', '.join(found['keys'][:3])}…, are"
        f" listed in {out / 'stopped.json'}; the last good checkpoint is {last}"
    )
    assert max((out / "checkpoints").iterdir()) == last


def test_a_full_disk_ends_the_run_with_a_sentence_and_the_last_checkpoint(
    tiny: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "step-00000002.pt.part").symlink_to("/dev/full")
    more = ["--epochs", "1", "--set", "checkpoint_every=1"]
    assert main(arguments(tiny, data, out, *more)) == 1
    last = out / "checkpoints" / "step-00000001.pt"
    assert said(capsys).splitlines()[-1] == (
        f"--out {out}: the checkpoint of step 2 cannot be written (No space left on device);"
        f" the last good checkpoint is {last}"
    )
    assert main(arguments(tiny, data, out, *more, "--resume")) == 0
    assert [row["step"] for row in log(out)] == [1, 2, 3, 4, 5, 6]


def test_a_folder_that_cannot_be_made_is_named(
    tiny: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert main(arguments(tiny, data, out)) == 1
    assert said(capsys) == f"--out {out}: the config cannot be written (Not a directory); there is no checkpoint yet"


def test_samples_without_caption_or_whole_image_are_named_and_replaced(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", shards=1)
    write_tar(
        tmp_path / "data" / "odd.tar", [("mute.png", b"\x89PNG"), ("cut.png", b"\x89PNG"), ("cut.txt", b"a lake")]
    )
    assert main(arguments(tiny, data, tmp_path / "out", "--epochs", "1")) == 0
    told = said(capsys)
    assert "mute: has no caption" in told
    assert "cut: its image cannot be decoded" in told
    assert sum(1 for _ in log(tmp_path / "out")) == 3


@pytest.fixture(scope="module")
def finished(tiny: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    assert main(arguments(tiny, data, out, "--epochs", "1")) == 0
    return out


def test_what_is_there_is_not_overwritten(
    tiny: Path, data: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tiny, data, finished, "--epochs", "1")) == 2
    assert (
        said(capsys)
        == f"--out {finished}: it has step-00000006.pt of a training; say --resume to go on, or another --out"
    )


def test_resuming_what_is_done_changes_nothing(tiny: Path, data: str, finished: Path) -> None:
    before = figures(finished), (finished / "best.pt").read_bytes()
    assert main(arguments(tiny, data, finished, "--epochs", "1", "--resume")) == 0
    assert (figures(finished), (finished / "best.pt").read_bytes()) == before


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--epochs", "2"], "is of another training: epochs was 1, now 2; say the same or give another --out"),
        (["--epochs", "1", "--lr", "2e-3"], "is of another training: lr was 0.001, now 0.002"),
        (["--epochs", "1", "--peft", "lora"], "is of another training: peft was {'kind': 'none'"),
    ],
)
def test_another_training_is_not_resumed(
    tiny: Path, data: str, finished: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert main([*arguments(tiny, data, finished), *more, "--resume"]) == 2
    assert says in said(capsys)


def test_a_model_or_data_that_changed_in_place_are_not_resumed(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = write_model(tmp_path / "model"), tmp_path / "out"
    assert main(arguments(model, data, out, "--epochs", "1")) == 0
    capsys.readouterr()
    other = write_data(tmp_path / "other", shards=1)
    assert main(arguments(model, other, out, "--epochs", "1", "--resume")) == 2
    assert said(capsys).endswith("is of other samples than --data has now; give the same or another --out")
    write_model(tmp_path / "model", embed_dim=24)
    assert main(arguments(model, data, out, "--epochs", "1", "--resume")) == 2
    assert f"is of another model than '{model}' is now" in said(capsys)
    (out / "checkpoints" / "step-00000006.pt").write_bytes(b"no checkpoint")
    assert main(arguments(model, data, out, "--epochs", "1", "--resume")) == 2
    assert "step-00000006.pt cannot be read" in said(capsys)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--data", "/nowhere/*.tar"], "/nowhere/*.tar"),
        (["--model", "ViT-B-33"], "--model ViT-B-33: no open_clip name, no hub id (org/name) and no folder"),
        (["--batch-size", "6", "--chunk", "4"], "chunk is 4; a divisor of the 6 samples that a rank has in a step"),
        (["--workers", "-1"], "--workers -1: at least 0 is wanted"),
        (["--ray", "0"], "--ray 0: at least 1 is wanted"),
        (["--checkpoint", "/nowhere.pt"], "--checkpoint /nowhere.pt: the file was not found"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_two(
    tiny: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert main([*arguments(tiny, data, tmp_path / "out"), *more]) == 2
    told = said(capsys)
    assert says in told
    assert "\n" not in told
    assert not (tmp_path / "out").exists()
