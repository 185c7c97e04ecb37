"""A tiny CLIP, tars of coloured pictures, and trainings on them."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.trainer.data import encoded, write_tar
from trainer.data import Batch, State
from trainer.training.model import Clip, make
from trainer.training.options import Config
from trainer.training.world import World

ALONE = World(0, 1, torch.device("cpu"))
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
COLOURS = {"forest": (20, 110, 30), "river": (40, 60, 200), "desert": (200, 170, 90), "snow": (235, 235, 240)}


def write_model(folder: Path, seed: int = 0, **changed: Any) -> Path:
    """An open_clip folder of a CLIP of `CONFIG`; `changed` goes over it."""
    from demo.models import new_open_clip, save_open_clip

    config = CONFIG | changed
    save_open_clip(new_open_clip(seed, config), folder, config)
    path = folder / "open_clip_config.json"
    described = json.loads(path.read_text())
    described["preprocess_cfg"]["size"] = [32, 32]
    path.write_text(json.dumps(described))
    return folder


def write_data(folder: Path, shards: int = 3, each: int = 8, first: int = 0) -> str:
    """webdataset tars of noisy pictures, each with its colour's name and its number; returns their pattern."""
    from PIL import Image

    for shard in range(shards):
        members = []
        for number in range(first + shard * each, first + (shard + 1) * each):
            name = list(COLOURS)[number % len(COLOURS)]
            noise = np.random.default_rng(number).integers(-20, 20, (40, 40, 3))
            pixels = np.clip(noise + np.array(COLOURS[name]), 0, 255).astype(np.uint8)
            members.append((f"{number:06d}.png", encoded(Image.fromarray(pixels))))
            members.append((f"{number:06d}.txt", f"a {name} seen from above, number {number}".encode()))
        write_tar(folder / f"part-{shard:02d}.tar", members)
    return str(folder / "*.tar")


def made(model: Path, **said: Any) -> Clip:
    """A model ready to train, on the processor."""
    return make(Config(model=str(model), **said), torch.device("cpu"))


def batch(clip: Clip, count: int, seed: int = 0, texts: list[str] | None = None) -> Batch:
    """Noise with texts of one to five words."""
    texts = texts or [" ".join([f"thing {at}", "and more of it"][: 1 + at % 2]) for at in range(count)]
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, clip.size, clip.size), np.uint8)
    return Batch(
        images=torch.from_numpy(images),
        texts=texts,
        tokens=clip.tokenizer(texts),
        keys=[f"k{at}" for at in range(count)],
        state=State(epoch=0, samples=count, seed=0, run=1, data=""),
        damaged={},
    )


def halved(whole: Batch, size: int) -> list[Batch]:
    """The batch in parts of so many samples."""
    cuts = [slice(at, at + size) for at in range(0, len(whole), size)]
    return [
        replace(whole, images=whole.images[cut], texts=whole.texts[cut], tokens=whole.tokens[cut], keys=whole.keys[cut])
        for cut in cuts
    ]


def started(work: Callable[..., object], *arguments: Any) -> BaseProcess:
    """A process of its own, forked from one that has only imported what a training needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.training.loop", "open_clip", "tensorboardX"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process
