"""The processes of a training: alone, under torchrun, or in a group that Ray Train made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.errors import UserError

BUCKET_BYTES = 64 << 20
"""Gradients that travel together."""


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def gathered(self, own: Tensor) -> Tensor:
        """(ranks · n, …) rows of all ranks in order of rank, each of which has n; gradients come back to their rank."""
        return own if self.ranks == 1 else _Gathered.apply(own, self.rank, self.ranks)

    def collected(self, own: Tensor) -> Tensor:
        """The same without gradients, and for ranks that have different numbers of rows."""
        if self.ranks == 1:
            return own
        return torch.cat([each.to(self.device) for each in self.objects(own.cpu())])

    def mean(self, values: Tensor) -> Tensor:
        """The ranks' mean of each value."""
        if self.ranks > 1:
            distributed.all_reduce(values)
            values /= self.ranks
        return values

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Make every gradient the ranks' mean of it; what has none here has none anywhere."""
        if self.ranks == 1:
            return
        waiting = []
        for bucket in _buckets([each.grad for each in parameters if each.grad is not None]):
            flat = torch.cat([each.reshape(-1) for each in bucket])
            waiting.append((distributed.all_reduce(flat, async_op=True), flat, bucket))
        for handle, flat, bucket in waiting:
            handle.wait()
            flat /= self.ranks
            for gradient, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Give every rank the first one's running statistics (batch normalisation)."""
        if self.ranks > 1:
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    for buffer in module.buffers(recurse=False):
                        distributed.broadcast(buffer, 0)

    def objects(self, own: Any) -> list[Any]:
        """What each rank gave."""
        if self.ranks == 1:
            return [own]
        found: list[Any] = [None] * self.ranks
        distributed.all_gather_object(found, own)
        return found


class _Gathered(torch.autograd.Function):
    """Rows of all ranks; each rank's gradient is the sum of what all ranks want of its rows."""

    @staticmethod
    def forward(context: Any, own: Tensor, rank: int, ranks: int) -> Tensor:
        context.rank, context.rows = rank, len(own)
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(ranks)]
        distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        summed = gradients[0].contiguous()
        distributed.all_reduce(summed)
        start = context.rank * context.rows
        return summed[start : start + context.rows], None, None


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of gradients of one type and about `BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
    if bucket:
        yield bucket


@contextmanager
def joined(wanted: str) -> Iterator[World]:
    """The world that this process was started in: torchrun's variables, a group that is there already, or none.

    Args:
        wanted: the device, `auto`, `cpu` or `cuda`.

    Raises:
        UserError: `cuda` was asked for and is not there.
    """
    from trainer.evaluation.model import device_of

    kind = device_of(wanted)
    ours = not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if ours:
        if kind == "cuda":
            torch.cuda.set_device(_local_rank())
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        there = distributed.is_initialized()
        rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if there else (0, 1)
        yield World(
            rank, ranks, torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
        )
    finally:
        if ours:
            distributed.destroy_process_group()


def _local_rank() -> int:
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK {number}: this machine has {torch.cuda.device_count()} CUDA devices, one a process"
        )
    return number
