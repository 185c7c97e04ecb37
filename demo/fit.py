"""Fits the demo's tiny CLIP, in seconds on a CPU, on scenes that are not in the corpus.

It learns which texts go with which scenes. The demo's detector is the shipped one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo import captions, models, scenes

SEED = 71
SIDE: int = models.CLIP_CONFIG["vision_cfg"]["image_size"]
VERSION = 3
"""Raised when what is fitted changes, so that a cached model is fitted anew."""

FORMS = (
    "{}",
    "low resolution {}",
    "bad {}",
    "cropped {}",
    "bright {}",
    "dark {}",
    "close-up {}",
    "blurry {}",
    "good {}",
)
ABOVE = ("remote sensing image", "aerial image", "satellite image", "aerial view", "satellite picture")
BELOW = ("photo of a thing", "portrait", "product photo", "holiday picture", "street photo")


@dataclass(frozen=True)
class Examples:
    """Scenes to learn from."""

    pixels: np.ndarray
    """uint8, (n, SIDE, SIDE, 3)."""
    kinds: list[str]

    @property
    def overhead(self) -> np.ndarray:
        """Whether each is seen from above."""
        return np.array([kind in scenes.OVERHEAD for kind in self.kinds])


def draw(count: int, seed: int) -> Examples:
    """`count` scenes, about three of five from above, cut square and made small as the models' preprocessing does."""
    rng = np.random.default_rng([SEED, seed])
    above, below = list(scenes.OVERHEAD), list(scenes.GROUND)
    kinds = [str(rng.choice(above if number % 5 < 3 else below)) for number in range(count)]
    return Examples(np.stack([_small(kind, rng) for kind in kinds]), kinds)


def _small(kind: str, rng: np.random.Generator) -> np.ndarray:
    size = (int(rng.integers(200, 560)), int(rng.integers(180, 480)))
    paint = scenes.overhead if kind in scenes.OVERHEAD else scenes.ground
    image = paint(kind, rng, size)
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def ensure(folder: Path) -> None:
    """Fit the CLIP into `folder/clip` unless it is there already.

    The demo's quantiles drop a fifth of the rows by the detector, all of them ground-level; and a tenth by the CLIP,
    half of the ground-level ones.

    Raises:
        RuntimeError: the fitted model does not tell enough unseen ground-level scenes from overhead ones.
    """
    note = folder / "fitted.json"
    wanted = {"version": VERSION, "seed": SEED, "clip": models.CLIP_CONFIG}
    if note.exists() and json.loads(note.read_text()) == json.loads(json.dumps(wanted)):
        return
    shutil.rmtree(folder, ignore_errors=True)
    learn, check = draw(420, 1), draw(80, 2)
    with _one_thread():
        clip = fit_clip(learn)
    scores = clip_scores(clip, check)
    share = float(np.mean(scores[~check.overhead] < scores[check.overhead].min()))
    if share < 0.75:
        raise RuntimeError(f"the demo's CLIP puts only {share:.0%} of ground-level scenes below all overhead ones")
    models.save_open_clip(clip, folder / "clip")
    note.write_text(json.dumps(wanted))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Batches this small gain nothing from threads, and lose much to them where the cores are busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tensor(pixels: np.ndarray, mean: list[float], std: list[float]) -> Any:
    import torch

    scaled = (pixels.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32))


def _varied(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flipped, brighter or darker, and now and then grey."""
    varied = pixels[:, :, ::-1] if rng.random() < 0.5 else pixels
    gain = rng.uniform(0.75, 1.2, (len(pixels), 1, 1, 1))
    varied = np.clip(varied * gain, 0, 255)
    grey = rng.random(len(pixels)) < 0.15
    varied[grey] = varied[grey].mean(axis=-1, keepdims=True)
    return varied.astype(np.uint8)


def _batches(examples: Examples, steps: int, size: int, seed: int) -> Any:
    rng = np.random.default_rng([SEED, seed])
    for _ in range(steps):
        chosen = rng.choice(len(examples.kinds), size, replace=False)
        yield chosen, _varied(examples.pixels[chosen], rng), rng


def _text_for(kind: str, rng: np.random.Generator) -> tuple[str, str]:
    """A text, and what it is true of: one kind of scene, or everything `above` or `below`."""
    is_above = kind in scenes.OVERHEAD
    if rng.random() < 0.6:
        words = str(rng.choice(ABOVE if is_above else BELOW))
        form = str(rng.choice(FORMS)).format(words)
        return f"a {form}.", "above" if is_above else "below"
    if is_above:
        return captions.describe(captions.OVERHEAD, rng, kind), kind
    return f"a photo of {captions.THINGS[kind]}", kind


def _fits(truth: str, kind: str) -> bool:
    return truth in (kind, "above" if kind in scenes.OVERHEAD else "below")


def fit_clip(examples: Examples, steps: int = 200) -> Any:
    """A CLIP by its symmetric contrastive loss, where every text that fits an image counts as its own."""
    import open_clip
    import torch

    model = models.new_open_clip(SEED).train()
    mean, std = models.CLIP_PREPROCESS["mean"], models.CLIP_PREPROCESS["std"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for chosen, pixels, rng in _batches(examples, steps, 48, 4):
        kinds = [examples.kinds[index] for index in chosen]
        texts, truths = zip(*(_text_for(kind, rng) for kind in kinds), strict=True)
        fits = torch.tensor([[float(_fits(truth, kind)) for truth in truths] for kind in kinds])
        seen = model.encode_image(_tensor(pixels, mean, std), normalize=True)
        read = model.encode_text(open_clip.tokenize(list(texts)), normalize=True)
        logits = seen @ read.T * 10
        loss = _soft_cross_entropy(logits, fits) + _soft_cross_entropy(logits.T, fits.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _soft_cross_entropy(logits: Any, weights: Any) -> Any:
    targets = weights / weights.sum(dim=1, keepdim=True)
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def clip_scores(model: Any, examples: Examples) -> np.ndarray:
    """Cosine of each example with the mean of a few overhead prompts."""
    import open_clip
    import torch

    mean, std = models.CLIP_PREPROCESS["mean"], models.CLIP_PREPROCESS["std"]
    with torch.inference_mode():
        seen = model.encode_image(_tensor(examples.pixels, mean, std), normalize=True)
        prompts = [f"a {form}.".format(words) for words in ABOVE[:3] for form in FORMS]
        read = model.encode_text(open_clip.tokenize(prompts), normalize=True).mean(dim=0)
        return (seen @ (read / read.norm())).numpy()
