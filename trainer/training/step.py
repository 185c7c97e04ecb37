"""One step of the optimizer: gradients of a whole batch, in chunks if it must be, and what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, log, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data import Batch
from trainer.training.loss import contrastive, repeated, text_ids
from trainer.training.model import Clip, unmoved_statistics
from trainer.training.world import World

LARGEST_SCALE = log(100)
"""Of the logarithm by which cosines are multiplied, as in CLIP."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a step tells of itself, on the device: reading it waits for the step."""

    values: Tensor
    """(3,): the loss of the whole batch, the share of its samples whose text repeats, the gradient's norm."""
    lr: float
    scale: Tensor
    keys: list[str]
    """Of this rank's samples."""


def optimizer_for(clip: Clip) -> torch.optim.AdamW:
    """AdamW that decays matrices alone (names and shapes as in open_clip's training)."""
    config = clip.config
    decayed: list[Tensor] = []
    spared: list[Tensor] = []
    for name, weight in clip.model.named_parameters():
        if weight.requires_grad:
            small = weight.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
            (spared if small else decayed).append(weight)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def learning_rate(step: int, steps: int, lr: float, warmup: int) -> float:
    """The rate of a step, the first of which is 0: a linear warm-up to `lr`, then half a cosine to 0."""
    warmup = min(warmup, steps)
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.5 * (1 + cos(pi * (step - warmup) / max(1, steps - warmup)))


def take(
    clip: Clip, optimizer: Any, scaler: Any, parts: Sequence[Batch], world: World, *, step: int, steps: int
) -> Figures:
    """Move the weights by one batch.

    Args:
        clip: the model.
        optimizer: of `optimizer_for`.
        scaler: torch's gradient scaler; it does nothing unless the precision is fp16.
        parts: this rank's samples, in chunks.
        world: the ranks, each with as many samples.
        step: number of the step, from 0.
        steps: of the whole training.
    """
    lr = learning_rate(step, steps, clip.config.lr, clip.config.warmup)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    ids = text_ids([text for part in parts for text in part.texts]).to(clip.device)
    loss = gradients(clip, parts, ids, world, scaler, step)
    world.average_gradients(clip.trained)
    scaler.unscale_(optimizer)
    norm = _clipped(clip)
    scaler.step(optimizer)
    scaler.update()
    world.share_buffers(clip.model)
    with torch.no_grad():
        clip.model.logit_scale.clamp_(0, LARGEST_SCALE)
    values = world.mean(torch.stack([loss, repeated(world.gathered(ids)), norm]))
    keys = [key for part in parts for key in part.keys]
    return Figures(values=values, lr=lr, scale=clip.model.logit_scale.detach().exp().mean(), keys=keys)


def _clipped(clip: Clip) -> Tensor:
    """The gradient's norm, before it was made no longer than `clip`."""
    found = [weight for weight in clip.trained if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in found if weight.grad is not None])
    if clip.config.clip:
        torch.nn.utils.clip_grads_with_norm_(found, clip.config.clip, norm)
    return norm


def gradients(clip: Clip, parts: Sequence[Batch], ids: Tensor, world: World, scaler: Any, step: int) -> Tensor:
    """Add the gradient of this rank's part of the loss to the weights; returns that part.

    Several chunks see each other as negatives, at the memory of one (GradCache, Gao et al. 2021): features first,
    without a graph; the loss and its gradient by the features; then each chunk again, with the same random numbers, and
    its part of that gradient led on to the weights.
    """
    ids_used = ids if clip.config.same_text == "positive" else None
    if len(parts) == 1:
        _draw_alike(clip, world, step, 0)
        images, texts = clip.encode(parts[0].images, parts[0].tokens)
        loss = contrastive(images, texts, clip.model.logit_scale.exp(), world, ids_used)
        scaler.scale(loss).backward()
        return loss.detach()
    features = _cached(clip, parts, world, step)
    whole = [torch.cat(side).requires_grad_() for side in zip(*features, strict=True)]
    loss = contrastive(whole[0], whole[1], clip.model.logit_scale.exp(), world, ids_used)
    scaler.scale(loss).backward()
    sizes = [len(part) for part in parts]
    wanted = zip(*(_gradient(side).split(sizes) for side in whole), strict=True)
    for number, (part, gradient) in enumerate(zip(parts, wanted, strict=True)):
        _draw_alike(clip, world, step, number)
        found = clip.encode(part.images, part.tokens)
        moved = [at for at, side in enumerate(found) if side.requires_grad]
        torch.autograd.backward([found[at] for at in moved], [gradient[at] for at in moved])
    return loss.detach()


def _cached(clip: Clip, parts: Sequence[Batch], world: World, step: int) -> list[tuple[Tensor, Tensor]]:
    found = []
    with torch.no_grad(), unmoved_statistics(clip.model):
        for number, part in enumerate(parts):
            _draw_alike(clip, world, step, number)
            found.append(clip.encode(part.images, part.tokens))
    return found


def _gradient(features: Tensor) -> Tensor:
    assert features.grad is not None
    return features.grad


def _draw_alike(clip: Clip, world: World, step: int, number: int) -> None:
    """Let dropout draw by seed, step, rank and chunk, so that a pass can be repeated and a run can go on."""
    seed = np.random.SeedSequence([clip.config.seed, step, world.rank, number]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(seed) >> 1)


@dataclass
class Average:
    """The weights' exponential mean; its decay rises from a tenth, so that the beginning is soon forgotten."""

    weights: list[Tensor]
    decay: float

    @classmethod
    def of(cls, clip: Clip) -> Average | None:
        """A copy of what is trained, or None where no mean is wanted."""
        if not clip.config.ema:
            return None
        return cls([weight.detach().clone() for weight in clip.trained], clip.config.ema)

    def follow(self, clip: Clip, step: int) -> None:
        """Move towards the weights after a step, of which `step` were done before."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.weights, [weight.detach() for weight in clip.trained], 1 - decay)

    def swap(self, clip: Clip) -> None:
        """Change places with the model's weights."""
        for held, weight in zip(self.weights, clip.trained, strict=True):
            kept = weight.detach().clone()
            weight.data.copy_(held)
            held.copy_(kept)
