"""The optimisation: resumable at every checkpoint to the same weights, for the same seed, threads and device."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np

from trainer.detector import metrics
from trainer.detector.batches import Batches
from trainer.detector.config import Config
from trainer.detector.images import Picture
from trainer.detector.model import build, normalised, score, transform_for
from trainer.errors import UserError

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where to train: what may change speed; of these `device` and `threads` change roundings, `workers` nothing."""

    device: str = "cpu"
    threads: int = 1
    workers: int = 1

    @classmethod
    def found(cls, device: str, threads: int, workers: int | None) -> Machine:
        """A GPU where there is one and `auto` asks; as many workers as cores are left.

        Raises:
            UserError: `cuda` was asked for and is not there.
        """
        import torch

        there = torch.cuda.is_available()
        if device == "cuda" and not there:
            raise UserError("--device 'cuda': torch sees no CUDA device here; accepted: auto, cpu")
        chosen = "cuda" if device != "cpu" and there else "cpu"
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = True
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(device=chosen, threads=threads, workers=max(1, cores - threads) if workers is None else workers)


@dataclass
class State:
    """A training between two steps."""

    model: Any
    average: Any
    optimizer: Any
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path, digest: str) -> None:
        """Write the checkpoint beside its place, then move it there."""
        import torch

        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        beside = path.with_suffix(".part")
        torch.save(parts | {"step": self.step, "history": self.history, "digest": digest}, beside)
        os.replace(beside, path)

    def restore(self, path: Path, digest: str) -> None:
        """Take up a checkpoint.

        Raises:
            UserError: it was made with another config, seed, set of pictures, device or number of threads.
        """
        import torch

        found = torch.load(path, map_location="cpu", weights_only=True)
        if found["digest"] != digest:
            raise UserError(
                f"{path}: the checkpoint is of another training (config, seed, pictures, device or threads differ); "
                "remove it or give another --out"
            )
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(found[name])
        self.step, self.history = found["step"], found["history"]


def train(
    pool: Sequence[Picture],
    validation: Sequence[Picture],
    config: Config,
    folder: Path,
    machine: Machine,
    *,
    stop_after: int | None = None,
) -> State:
    """Train to the config's last step (or until `stop_after`), from the checkpoint in `folder` if one is there.

    The averaged weights (`State.average`) are the result.

    Raises:
        UserError: a class has no picture, or the checkpoint belongs to another training.
    """
    if {picture.label for picture in pool} != {0, 1}:
        raise UserError("sources: pictures of both classes, 'rs' and 'other', are wanted in the training split")
    folder.mkdir(parents=True, exist_ok=True)
    digest, path = _digest(pool, config, machine), folder / CHECKPOINT
    state = _start(config, machine)
    if path.exists():
        state.restore(path, digest)
    last = min(config.training.steps, stop_after or config.training.steps)
    batches = Batches(pool, config).loader(state.step, machine.workers) if state.step < last else None
    began, first = time.monotonic(), state.step
    losses: list[float] = []
    while batches and state.step < last:
        images, labels = next(batches)
        losses.append(_step(state, images, labels, config, machine))
        if state.step % config.training.checkpoint_every == 0 or state.step == last:
            _note(state, losses, validation, config, machine)
            rate = (state.step - first) * config.training.batch / (time.monotonic() - began)
            print(f"step {state.step}: {_told(state.history[-1])}, {rate:.0f} images/s", file=sys.stderr, flush=True)
            state.save(path, digest)
            losses = []
    return state


def _told(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "step")


def _digest(pool: Sequence[Picture], config: Config, machine: Machine) -> str:
    """Of all that the weights depend on but the pixels, for which source and name stand."""
    named, plain = hashlib.sha256(), config.plain()
    del plain["training"]["checkpoint_every"]
    named.update(json.dumps(plain, sort_keys=True).encode())
    named.update(f"{machine.device} {machine.threads}".encode())
    for picture in pool:
        named.update(f"{picture.source}\0{picture.name}\0{picture.label}\n".encode())
    return named.hexdigest()


def _start(config: Config, machine: Machine) -> State:
    from copy import deepcopy

    import torch

    model = build(config.model, config.seed).to(machine.device)
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    plain = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return State(
        model=model, average=deepcopy(model).eval(), optimizer=torch.optim.AdamW(groups, lr=config.training.lr)
    )


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then half a cosine to a hundredth; after a restart at half the rate (Loshchilov, Hutter 2017)."""
    of = config.training
    first, end = config.cycle(step)
    peak = of.lr / 2 if first else of.lr
    if step - first < of.warmup:
        return peak * (step - first + 1) / of.warmup
    done = (step - first - of.warmup) / max(1, end - first - of.warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + cos(pi * done)))


def _step(state: State, images: Any, labels: Any, config: Config, machine: Machine) -> float:
    import torch
    from torch.nn.functional import cross_entropy, one_hot

    torch.manual_seed(config.seed * 1_000_003 + state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config)
    inputs = normalised(images.to(machine.device)).contiguous(memory_format=torch.channels_last)
    targets = one_hot(labels.to(machine.device), 2).float()
    inputs, targets = mixed(inputs, targets, np.random.default_rng([config.seed, state.step, 1]), config.training.mix)
    state.model.train()
    with torch.autocast(machine.device, torch.bfloat16, enabled=machine.device == "cuda"):
        loss = cross_entropy(state.model(inputs).float(), targets, label_smoothing=config.training.label_smoothing)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 5.0)
    state.optimizer.step()
    state.step += 1
    follow(state.average, state.model, min(config.training.ema, (1 + state.step) / (10 + state.step)))
    return float(loss.detach())


def mixed(inputs: Any, targets: Any, rng: np.random.Generator, chance: float) -> tuple[Any, Any]:
    """At that chance, every picture blended with another of the batch: MixUp over all, or CutMix in a rectangle.

    Sources: Zhang et al. 2018, Yun et al. 2019.
    """
    import torch

    if rng.random() >= chance:
        return inputs, targets
    order = torch.from_numpy(rng.permutation(len(inputs))).to(inputs.device)
    share = float(rng.beta(0.4, 0.4))
    if rng.random() < 0.5:
        blended = share * inputs + (1 - share) * inputs[order]
    else:
        height, width = inputs.shape[-2:]
        tall, wide = (round(part * (1 - share) ** 0.5) for part in (height, width))
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        blended = inputs.clone()
        blended[:, :, top : top + tall, left : left + wide] = inputs[order, :, top : top + tall, left : left + wide]
        share = 1 - tall * wide / (height * width)
    return blended, share * targets + (1 - share) * targets[order]


def follow(average: Any, model: Any, decay: float) -> None:
    """Move the averaged weights and running statistics towards the model's; counters are copied."""
    import torch

    with torch.no_grad():
        for held, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if held.is_floating_point():
                held.lerp_(now, 1 - decay)
            else:
                held.copy_(now)


def _note(state: State, losses: list[float], validation: Sequence[Picture], config: Config, machine: Machine) -> None:
    row = {"step": float(state.step), "loss": float(np.mean(losses))}
    if validation:
        scores = score(state.average, transform_for(config.model), (p.pixels for p in validation), machine.device)
        labels = np.array([picture.label for picture in validation], dtype=np.int64)
        row |= {"balanced_accuracy": metrics.balanced_accuracy(scores, labels), "auc": metrics.auc(scores, labels)}
    state.history.append(row)
