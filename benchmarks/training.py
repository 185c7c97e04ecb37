"""The trainer beside open_clip's: samples a second on the same model, tars, precision and machine.

Both run as their own commands, one process each with one more that reads and decodes, and take turns. A run's rate is
that of its steps from the fourth on, as each of the two logs it. Views are the same on both sides: a crop of 90–100 %.

    python -m benchmarks.training --runs 3
    python -m benchmarks.training --caption long --precision bf16
    python -m benchmarks.training --model ViT-B-32 --batch 16 --steps 12
    python -m benchmarks.training --gpu --peak 989

`--gpu` trains ViT-B-32 and ViT-H-14 in bf16 on long captions and tells model FLOP utilisation too: the products of the
model's forward and backward passes for a sample, as torch counts them, times samples a second, over `--peak`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.loader import CAPTION, SHARDS, make

SETTLED = 3
"""Steps at the beginning that do not count."""
LONG = " ".join(f"{CAPTION[:-1]}, and behind it number {number}," for number in range(9))
"""More than CLIP's 77 tokens."""
SMALL: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 224, "layers": 6, "width": 256, "head_width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 6},
}
"""A CLIP that two cores train in minutes: 23 M parameters."""
GPU = (("ViT-B-32", 1024), ("ViT-H-14", 96))
"""Models and batches of `--gpu`."""
THEIR_RATE = re.compile(r"Batch \(t\): [0-9.]+, ([0-9.]+)/s,")


def main() -> None:
    args = _arguments()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.precision}", flush=True)
    print(f"{args.caption} captions, medians of {args.runs}\n\n{HEADER}", flush=True)
    for model, batch in GPU if args.gpu else ((args.model, args.batch),):
        with tempfile.TemporaryDirectory() as folder:
            _compare(Path(folder), model, batch, args)


def _arguments() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="an open_clip name; without it a small one is made")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--images", type=Path, help="folder of images that are resized; drawn ones without it")
    parser.add_argument("--caption", choices=("short", "long"), default="short")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of the GPU in bf16, without sparsity")
    args = parser.parse_args()
    if args.gpu:
        args.precision, args.caption = "bf16", "long"
    return args


HEADER = "| model | batch | ours, samples/s | open_clip_train, samples/s | ratio | MFU |\n" + "| --- " * 6 + "|"


def _compare(folder: Path, model: str | None, batch: int, args: Namespace) -> None:
    """Print a line of the table."""
    args.count = batch * args.steps
    make(folder, args, CAPTION if args.caption == "short" else LONG)
    name = model or f"local-dir:{_small(folder / 'small')}"
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    contenders: dict[str, Callable[[], float]] = {
        "ours": lambda: _ours(folder, name, batch, args),
        "theirs": lambda: _theirs(folder, name, batch, args),
    }
    for turn in range(args.runs):
        for each in list(contenders)[:: -1 if turn % 2 else 1]:
            rates[each].append(contenders[each]())
            print(each, rates[each][-1], file=sys.stderr, flush=True)
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["theirs"], strict=True)]
    used = f"{_utilisation(name, statistics.median(rates['ours']), args.peak):.1%}" if args.gpu else ""
    cells = [model or "small", str(batch), *map(_spread, (rates["ours"], rates["theirs"], ratios)), used]
    print(f"| {' | '.join(cells)} |", flush=True)


def _small(folder: Path) -> Path:
    from demo.models import new_open_clip, save_open_clip

    save_open_clip(new_open_clip(0, SMALL), folder, SMALL)
    path = folder / "open_clip_config.json"
    described = json.loads(path.read_text())
    described["preprocess_cfg"]["size"] = [224, 224]
    path.write_text(json.dumps(described))
    return folder


def _ours(folder: Path, model: str, batch: int, args: Namespace) -> float:
    with tempfile.TemporaryDirectory() as out:
        _run(
            "trainer.train",
            {
                "data": f"{folder}/*.tar",
                "out": out,
                "model": model.removeprefix("local-dir:"),
                "epochs": 1,
                "batch-size": batch,
                "lr": 5e-4,
                "warmup": 10,
                "workers": args.workers,
                "precision": args.precision,
                "device": "cuda" if args.gpu else "cpu",
                "set": "augment={flip: 0, rotation: 0}",
            },
            Path(out),
        )
        rows = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return _rate([row["samples_per_second"] for row in rows])


def _theirs(folder: Path, model: str, batch: int, args: Namespace) -> float:
    with tempfile.TemporaryDirectory() as out:
        _run(
            "open_clip_train.main",
            {
                "train-data": f"{folder}/bench-{{0000..{SHARDS - 1:04d}}}.tar",
                "dataset-type": "webdataset",
                "model": model,
                "epochs": 1,
                "batch-size": batch,
                "lr": 5e-4,
                "warmup": 10,
                "workers": args.workers,
                "precision": {"fp32": "fp32", "bf16": "amp_bf16"}[args.precision],
                "device": "cuda" if args.gpu else "cpu",
                "log-every-n-steps": 1,
                "logs": out,
                "name": "run",
            },
            Path(out),
        )
        log = (Path(out) / "run" / "out.log").read_text()
    return _rate([float(found) for found in THEIR_RATE.findall(log)])


def _run(module: str, options: dict[str, Any], folder: Path) -> None:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    here = {"PYTHONPATH": os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=os.environ | here,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{module} failed: {done.stderr[-2000:]}")


def _rate(steps: list[float]) -> float:
    """Samples a second over all steps that count."""
    return statistics.harmonic_mean(steps[SETTLED:])


def _utilisation(name: str, rate: float, peak: float) -> float:
    """The share of the GPU's products a second that the model needs."""
    import open_clip
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = open_clip.create_model(name, device="cuda")
    size, length = open_clip.get_model_config(name)["vision_cfg"]["image_size"], model.context_length
    images, tokens = (
        torch.zeros(1, 3, size, size, device="cuda"),
        torch.ones(1, length, dtype=torch.long, device="cuda"),
    )
    counter = FlopCounterMode(display=False)
    with counter:
        (model.encode_image(images).sum() + model.encode_text(tokens).sum()).backward()
    return counter.get_total_flops() * rate / (peak * 1e12)


def _spread(values: list[float]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})" if middle < 20 else f"{middle:.0f} ({low:.0f}–{high:.0f})"


if __name__ == "__main__":
    main()
