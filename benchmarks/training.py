"""The trainer beside open_clip's: samples a second on the same model, tars, precision and machine.

Both run as their own commands, one process each with as many more that read and decode, and take turns. A run is
watched from the third step in its log to the last but one: samples a second by the clock, and core-milliseconds a
sample of all its processes, which other work on the machine changes less. Views are the same: a crop of 90–100 %.

    OMP_NUM_THREADS=1 python -m benchmarks.training --runs 3
    python -m benchmarks.training --caption long --precision bf16
    python -m benchmarks.training --model ViT-B-32 --batch 16 --steps 12
    python -m benchmarks.training --gpu --peak 989

`--gpu` trains ViT-B-32 and ViT-H-14 (or the `--model` given) in bf16 on long captions and tells model FLOP utilisation
too: the products of the model's forward and backward passes for a sample, as torch counts them, times samples a second,
over `--peak`.
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
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

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


def main() -> None:
    args = _arguments()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.precision}", flush=True)
    print(f"{args.caption} captions, medians of {args.runs}\n\n{HEADER}", flush=True)
    for model, batch in GPU if args.gpu and not args.model else ((args.model, args.batch),):
        with tempfile.TemporaryDirectory() as folder:
            _compare(Path(folder), model, batch, args)


def _arguments() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="an open_clip name; without it a small one is made")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, help="processes that read; default: 1, with --gpu the cores less two")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--images", type=Path, help="folder of images that are resized; drawn ones without it")
    parser.add_argument("--caption", choices=("short", "long"), default="short")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of the GPU in bf16, without sparsity")
    args = parser.parse_args()
    if args.gpu:
        args.precision, args.caption = "bf16", "long"
    args.workers = args.workers or (max(1, (os.cpu_count() or 1) - 2) if args.gpu else 1)
    return args


class Pace(NamedTuple):
    """How fast a run was."""

    rate: float
    """Samples a second."""
    core_ms: float
    """Of all its processes, a sample."""


class Ended(Exception):
    """The trainer ended before it was to."""


COLUMNS = (
    *("model", "batch", "ours, samples/s", "open_clip_train, samples/s", "ratio by the clock"),
    *("ours, core-ms", "open_clip_train, core-ms", "ratio by processor time", "MFU"),
)
HEADER = f"| {' | '.join(COLUMNS)} |\n" + "| --- " * len(COLUMNS) + "|"


def _compare(folder: Path, model: str | None, batch: int, args: Namespace) -> None:
    """Print a line of the table."""
    args.count = batch * args.steps
    make(folder, args, CAPTION if args.caption == "short" else LONG)
    name = model or f"local-dir:{_small(folder / 'small')}"
    contenders = {"ours": _ours, "theirs": _theirs}
    found: dict[str, list[Pace]] = {each: [] for each in contenders}
    for turn in range(args.runs):
        for each in list(contenders)[:: -1 if turn % 2 else 1]:
            found[each].append(contenders[each](folder, name, batch, args))
            print(each, found[each][-1], file=sys.stderr, flush=True)
    (rates, core), (their_rates, their_core) = (zip(*found[each], strict=True) for each in contenders)
    used = f"{_utilisation(name, statistics.median(rates), args.peak):.1%}" if args.gpu else ""
    clock = [rates, their_rates, [own / other for own, other in zip(rates, their_rates, strict=True)]]
    processor = [core, their_core, [other / own for own, other in zip(core, their_core, strict=True)]]
    cells = [model or "small", str(batch), *map(_spread, clock), *map(_spread, processor), used]
    print(f"| {' | '.join(cells)} |", flush=True)


def _small(folder: Path) -> Path:
    from demo.models import new_open_clip, save_open_clip

    save_open_clip(new_open_clip(0, SMALL), folder, SMALL)
    path = folder / "open_clip_config.json"
    described = json.loads(path.read_text())
    described["preprocess_cfg"]["size"] = [224, 224]
    path.write_text(json.dumps(described))
    return folder


def _ours(folder: Path, model: str, batch: int, args: Namespace) -> Pace:
    with tempfile.TemporaryDirectory() as out:
        options = {
            "data": f"{folder}/*.tar",
            "out": out,
            "model": model.removeprefix("local-dir:"),
            "precision": args.precision,
            "set": "augment={flip: 0, rotation: 0}",
        }
        log = Path(out) / "log.jsonl"
        return _watched("trainer.train", options, log, re.compile(r'"step"'), batch, args)


def _theirs(folder: Path, model: str, batch: int, args: Namespace) -> Pace:
    with tempfile.TemporaryDirectory() as out:
        options = {
            "train-data": f"{folder}/bench-{{0000..{SHARDS - 1:04d}}}.tar",
            "dataset-type": "webdataset",
            "model": model,
            "precision": {"fp32": "fp32", "bf16": "amp_bf16"}[args.precision],
            "log-every-n-steps": 1,
            "logs": out,
            "name": "run",
        }
        log = Path(out) / "run" / "out.log"
        return _watched("open_clip_train.main", options, log, re.compile(r"Train Epoch: "), batch, args)


def _watched(module: str, own: dict[str, Any], log: Path, step: re.Pattern[str], batch: int, args: Namespace) -> Pace:
    """Start a trainer, note clock and processor time when its log reaches two steps, and end it.

    Ours logs a step at the end of the next one, theirs at its own end: between two marks lie as many.
    """
    common = {"epochs": 1, "batch-size": batch, "lr": 5e-4, "warmup": 10, "workers": args.workers}
    options = common | {"device": "cuda" if args.gpu else "cpu"} | own
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen([sys.executable, "-m", module, *words], stdout=told, stderr=told)
        try:
            marks = [_mark(process, log, step, number) for number in (SETTLED, args.steps - 1)]
        except Ended:
            told.seek(0)
            raise SystemExit(f"{module} failed: {told.read()[-2000:]}") from None
        finally:
            process.terminate()
            process.wait()
    (began, spent_before), (ended, spent) = marks
    samples = batch * (args.steps - 1 - SETTLED)
    return Pace(samples / (ended - began), 1000 * (spent - spent_before) / samples)


def _mark(process: subprocess.Popen[bytes], log: Path, step: re.Pattern[str], number: int) -> tuple[float, float]:
    """(clock, processor seconds of it and its children) when so many steps are logged."""
    while not log.exists() or len(step.findall(log.read_text())) < number:
        if process.poll() is not None:
            raise Ended
        time.sleep(0.01)
    parent = psutil.Process(process.pid)
    times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
    return time.monotonic(), sum(each.user + each.system for each in times)


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


def _spread(values: Sequence[float]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})" if middle < 20 else f"{middle:.0f} ({low:.0f}–{high:.0f})"


if __name__ == "__main__":
    main()
