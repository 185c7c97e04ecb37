"""float32 linear layers on CPUs through oneDNN: the same sums in another order, at the speed of the processor.

PyTorch sends them to MKL, which on processors not of its maker leaves out AVX-512: on an AMD EPYC it reaches 40 % of
oneDNN's rate. Imports torch: import it where a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_LINEAR = torch.ops.aten.linear.default


class OneDnnLinear(TorchDispatchMode):
    """Within this context, float32 linear layers on the CPU are oneDNN's."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The layer, or whatever else was called."""
        if func is _LINEAR and _is_plain(args[0]):
            return torch.ops.mkldnn._linear_pointwise(args[0], args[1], _bias(args), "none", [], "")
        return func(*args, **(kwargs or {}))


def _is_plain(inputs: torch.Tensor) -> bool:
    return inputs.device.type == "cpu" and inputs.dtype == torch.float32 and inputs.dim() >= 2


def _bias(args: Sequence[Any]) -> torch.Tensor | None:
    return args[2] if len(args) > 2 else None


def linear_through_onednn(device: str, precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context to run a model in; without effect where oneDNN is missing, or is used anyway.

    PyTorch's fused attention is switched off for the process: its linear layers cannot be redirected.
    """
    has_op = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if device != "cpu" or precision != "fp32" or not torch.backends.mkldnn.is_available() or not has_op:
        return nullcontext
    torch.backends.mha.set_fastpath_enabled(False)
    return OneDnnLinear
