"""One training and its judgement, through the trainer's own commands, in a process that does many."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "test_resnet",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {
        "size": [32, 32],
        "mode": "RGB",
        "mean": [0.4, 0.4, 0.4],
        "std": [0.2, 0.2, 0.2],
        "interpolation": "bicubic",
        "resize_mode": "squash",
        "fill_color": 0,
    },
}
"""A CLIP of 0.4 M parameters for images, 0.1 M for texts and 3.2 M for words; it learns in ten seconds on a core."""

SETTINGS = ("--batch-size", "64", "--lr", "4e-3", "--weight-decay", "0.1", "--warmup", "20", "--workers", "0")
AUGMENT = "augment={scale: [0.5, 1.0], flip: 0.5, rotation: 0}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training, and what it is called in the results."""

    experiment: str
    arm: str
    seed: int
    data: str
    """Pattern of tars."""
    judge: str
    """Folder of `write_judge`."""
    samples: int
    level: float = 0.0
    size: int = 0
    """Pairs in the arm."""
    options: tuple[str, ...] = ()
    """Further arguments of `trainer.train`."""
    model: str = ""
    facts: dict[str, float] = field(default_factory=dict)
    """What is known of the arm's pairs."""

    @property
    def name(self) -> str:
        """Of its file of results."""
        return f"{self.experiment}-{round(self.level * 100):02d}-{self.arm}-{self.seed}".replace(" ", "_")


def model_folder(out: Path, config: dict[str, Any] = CONFIG, name: str = "model") -> Path:
    """An open_clip folder without weights."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def train_and_judge(run: Run, out: Path) -> dict[str, Any]:
    """Figures of a run, in percent; kept in `out/results`, where a finished one is found again.

    Raises:
        RuntimeError: the trainer or the evaluation refused.
    """
    path = out / "results" / f"{run.name}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    folder = out / "trainings" / run.name
    shutil.rmtree(folder, ignore_errors=True)
    fit(run.data, folder, run.model or str(out / "model"), run.seed, run.samples, run.options)
    row = {**asdict(run), **judge(folder / "model", Path(run.judge), folder / "judged.json")}
    row["loss"] = _last_loss(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=1) + "\n")
    shutil.rmtree(folder)
    return row


def fit(data: str, folder: Path, model: str, seed: int, samples: int, options: Sequence[str] = ()) -> None:
    """`python -m trainer.train` with the experiment's settings; `options` come last and win."""
    from trainer.training.command import main

    said = ["--data", data, "--out", str(folder), "--model", model, "--seed", str(seed), "--samples", str(samples)]
    if main([*said, *SETTINGS, "--set", AUGMENT, *options]):
        raise RuntimeError(f"{folder.name}: the training failed")


def judge(model: Path, images: Path, out: Path) -> dict[str, float]:
    """`python -m trainer.evaluate` on a folder of `write_judge`; top-1 and mR in percent."""
    from trainer.evaluation.command import main

    said = ["--model", str(model), "--zero-shot", f"aid={images / 'images'}"]
    said += ["--retrieval", f"aid={images / 'captions.json'},{images / 'images'}", "--out", str(out)]
    if main([*said, "--benchmarks", str(Path(__file__).with_name("benchmarks.yaml"))]):
        raise RuntimeError(f"{model}: the evaluation failed")
    found = json.loads(out.read_text())
    return {
        "top1": found["zero_shot"]["aid"]["top1"],
        "mR": found["retrieval"]["aid"]["mR"],
        "mR_same_text": found["retrieval"]["aid"]["duplicate_aware"]["mR"],
    }


def _last_loss(folder: Path) -> float:
    """Mean over the last twenty steps."""
    lines = (folder / "log.jsonl").read_text().splitlines()[-20:]
    return sum(json.loads(line)["loss"] for line in lines) / len(lines)


def train_all(runs: Sequence[Run], out: Path, processes: int) -> list[dict[str, Any]]:
    """All runs, so many at a time, each on one thread; rows in the runs' order."""
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
        waiting = {pool.submit(train_and_judge, run, out): run for run in runs}
        for number, done in enumerate(as_completed(waiting), 1):
            row = done.result()
            print(
                f"{number} of {len(runs)}: {waiting[done].name}: top-1 {row['top1']:.2f}, mR {row['mR']:.2f}",
                flush=True,
            )
    return [train_and_judge(run, out) for run in runs]


def _one_thread() -> None:
    """And tokens are kept: every run reads the same texts."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from open_clip import SimpleTokenizer

    torch.set_num_threads(1)
    SimpleTokenizer.encode = cache(SimpleTokenizer.encode)
