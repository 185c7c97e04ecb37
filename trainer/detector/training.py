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
from numpy.typing import NDArray

from trainer.detector import metrics
from trainer.detector.config import Config
from trainer.detector.images import Picture
from trainer.detector.model import build, normalised, score, transform_for
from trainer.detector.prepared import Prepared
from trainer.detector.teacher import pooled
from trainer.detector.views import askew, greyed, resized, turned, zoomed
from trainer.errors import UserError

CHECKPOINT = "checkpoint.pt"
PARTS = ("model", "average", "project", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where to train: what may change speed; of these `device` and `threads` change roundings, `workers` nothing."""

    device: str = "cpu"
    threads: int = 1
    workers: int = 1

    @property
    def memory_format(self) -> Any:
        """Of images and weights. cuDNN takes seconds for a step of depthwise convolutions in channels-last memory."""
        import torch

        return torch.contiguous_format if self.device == "cuda" else torch.channels_last

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
    project: Any
    """From the model's features to the teacher's, or nothing."""
    optimizer: Any
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path, digest: str) -> None:
        """Write the checkpoint beside its place, then move it there."""
        import torch

        parts = {name: getattr(self, name).state_dict() for name in PARTS}
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
        for name in PARTS:
            getattr(self, name).load_state_dict(found[name])
        self.step, self.history = found["step"], found["history"]


def train(
    prepared: Prepared,
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
        UserError: the checkpoint belongs to another training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest, path = _digest(prepared, config, machine), folder / CHECKPOINT
    state = _start(prepared, config, machine)
    if path.exists():
        state.restore(path, digest)
    last = min(config.training.steps, stop_after or config.training.steps)
    began, first = time.monotonic(), state.step
    losses: list[float] = []
    while state.step < last:
        losses.append(_step(state, prepared, config, machine))
        if state.step % config.training.checkpoint_every == 0 or state.step == last:
            _note(state, losses, validation, config, machine)
            rate = (state.step - first) * config.training.batch / (time.monotonic() - began)
            print(f"step {state.step}: {_told(state.history[-1])}, {rate:.0f} images/s", file=sys.stderr, flush=True)
            state.save(path, digest)
            losses = []
    return state


def _told(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "step")


def _digest(prepared: Prepared, config: Config, machine: Machine) -> str:
    """Of all that the weights depend on."""
    plain = config.plain()
    del plain["training"]["checkpoint_every"]
    for source in plain["sources"].values():
        del source["kin"], source["origin"], source["licence"]
    named = json.dumps([plain, machine.device, machine.threads, prepared.digest], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()


def _start(prepared: Prepared, config: Config, machine: Machine) -> State:
    from copy import deepcopy

    import torch

    model = build(config.model, config.seed).to(machine.device, memory_format=machine.memory_format)
    width = 0 if prepared.features is None else prepared.features.shape[1]
    project = torch.nn.Linear(model.head_hidden_size, width) if width else torch.nn.Identity()
    project.to(machine.device)
    decayed = [weight for weight in (*model.parameters(), *project.parameters()) if weight.ndim > 1]
    plain = [weight for weight in (*model.parameters(), *project.parameters()) if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.training.lr, fused=machine.device == "cuda")
    return State(model=model, average=deepcopy(model).eval(), project=project, optimizer=optimizer)


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then half a cosine to a hundredth."""
    of = config.training
    if step < of.warmup:
        return of.lr * (step + 1) / of.warmup
    done = (step - of.warmup) / max(1, of.steps - of.warmup)
    return of.lr * (0.01 + 0.99 * 0.5 * (1 + cos(pi * done)))


def _step(state: State, prepared: Prepared, config: Config, machine: Machine) -> float:
    import torch

    torch.manual_seed(config.seed * 1_000_003 + state.step)
    rng = np.random.default_rng([config.seed, state.step, 1])
    rows = prepared.draw(rng, config.training.batch)
    inputs = turned(torch.from_numpy(prepared.images[rows]).to(machine.device), rng)
    inputs = zoomed(normalised(inputs), rng, config.training.zoom)
    if rng.random() < config.training.turn:
        inputs = askew(inputs, float(rng.uniform(-45, 45)))
    if config.training.grey:
        inputs = greyed(inputs, rng, config.training.grey)
    inputs = resized(inputs, config.size_at(state.step)).contiguous(memory_format=machine.memory_format)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config)
    state.model.train()
    with torch.autocast(machine.device, torch.bfloat16, enabled=machine.device == "cuda"):
        loss = _loss(state, inputs, rows, prepared, config)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 5.0)
    state.optimizer.step()
    state.step += 1
    follow(state.average, state.model, min(config.training.ema, (1 + state.step) / (10 + state.step)))
    return float(loss.detach())


def _loss(state: State, inputs: Any, rows: NDArray[np.int64], prepared: Prepared, config: Config) -> Any:
    """Of the label, and of the teacher's features."""
    import torch
    from torch.nn.functional import cross_entropy, smooth_l1_loss

    found = pooled(state.model, inputs)
    labels = torch.from_numpy(prepared.labels[rows]).to(inputs.device)
    outputs = state.model.get_classifier()(found).float()
    loss = cross_entropy(outputs, labels, label_smoothing=config.training.label_smoothing)
    if prepared.features is None:
        return loss
    wanted = torch.from_numpy(prepared.features[rows]).to(inputs.device).float()
    return loss + config.teacher.weight * smooth_l1_loss(state.project(found).float(), wanted)


def follow(average: Any, model: Any, decay: float) -> None:
    """Move the averaged weights and running statistics towards the model's; counters are copied."""
    import torch

    with torch.no_grad():
        pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
        weights, counters = ([p for p in pairs if p[0].is_floating_point() is kind] for kind in (True, False))
        torch._foreach_lerp_([held for held, _ in weights], [now for _, now in weights], 1 - decay)
        for held, now in counters:
            held.copy_(now)


def _note(state: State, losses: list[float], validation: Sequence[Picture], config: Config, machine: Machine) -> None:
    row = {"step": float(state.step), "loss": float(np.mean(losses))}
    if validation:
        scores = score(state.average, transform_for(config.model), (p.pixels for p in validation), machine.device)
        labels = np.array([picture.label for picture in validation], dtype=np.int64)
        row |= {"balanced_accuracy": metrics.balanced_accuracy(scores, labels), "auc": metrics.auc(scores, labels)}
    state.history.append(row)
