"""The trained parts, and an attention that can hold them.

LoRA: arXiv 2106.09685. Adapters: arXiv 1902.00751, placed and sized after arXiv 2005.00247 (Pfeiffer). Prefixes: arXiv
2101.00190. Gates: arXiv 2110.07577 (UniPELT). All leave out dropout, as the defaults of AdapterHub do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Gate(nn.Module):
    """How much of a part is used: the mean over tokens of a sigmoid of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, 1, 1) from (batch, tokens, width)."""
        return torch.sigmoid(self.score(tokens)).mean(dim=1, keepdim=True)


class LowRank(nn.Module):
    """LoRA's `scale · tokens Aᵀ Bᵀ`; B begins as zeros."""

    def __init__(self, width: int, rank: int, alpha: float, gated: bool) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, width))
        self.b = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.gate = Gate(width) if gated else None

    def forward(self, tokens: Tensor) -> Tensor:
        """What is added to queries or values: (batch, tokens, width) from the same shape."""
        added = functional.linear(functional.linear(tokens, self.a), self.b) * self.scale
        return added if self.gate is None else added * self.gate(tokens)

    def weight(self) -> Tensor:
        """What is added to the projection's weight when merged: (width, width), in float32."""
        return (self.b.float() @ self.a.float()) * self.scale


class Bottleneck(nn.Module):
    """A Pfeiffer adapter behind a block: `y + up(relu(down(y)))`.

    AdapterHub adds what the adapter gives before the block's residual is added, which is the same sum. There, `up`
    begins with small random weights; here it begins as zeros, so that training starts from the very model.
    """

    def __init__(self, width: int, reduction: int, gated: bool) -> None:
        super().__init__()
        inner = max(1, width // reduction)
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)
        self.gate = Gate(width) if gated else None

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) from the same shape."""
        added = self.up(functional.relu(self.down(tokens)))
        return tokens + (added if self.gate is None else added * self.gate(tokens))


class Prefixes(nn.Module):
    """Keys and values for every layer of a tower, made by one small network from learnt vectors."""

    def __init__(self, width: int, layers: int, length: int, bottleneck: int) -> None:
        super().__init__()
        self.width = width
        self.vectors = nn.Parameter(torch.randn(length, width))
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, layers * 2 * width)

    def forward(self, layer: int) -> tuple[Tensor, Tensor]:
        """(keys, values) of a layer, (length, width) each."""
        part = slice(layer * 2 * self.width, (layer + 1) * 2 * self.width)
        inner = torch.tanh(self.down(self.vectors))
        keys, values = functional.linear(inner, self.up.weight[part], self.up.bias[part]).chunk(2, dim=-1)
        return keys, values


class TunedAttention(nn.Module):
    """Self-attention with the weights, and their names, of an `nn.MultiheadAttention`, and trained parts beside them.

    `nn.MultiheadAttention` calls none of its submodules, and in evaluation gives all its weights to one kernel: parts
    put into it are passed by. Here queries, keys and values are plain tensors.
    """

    def __init__(self, plain: nn.MultiheadAttention, layer: int) -> None:
        super().__init__()
        self.in_proj_weight = plain.in_proj_weight
        self.in_proj_bias = plain.in_proj_bias
        self.out_proj = plain.out_proj
        self.heads = plain.num_heads
        self.layer = layer
        self.lora = nn.ModuleDict()
        self.prefix_gate: Gate | None = None
        self._prefixes: tuple[Prefixes, ...] = ()

    def share(self, prefixes: Prefixes, gate: Gate | None) -> None:
        """Use the tower's prefixes. They are registered with the tower alone, so that no weight has two names."""
        self._prefixes = (prefixes,)
        self.prefix_gate = gate

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, None]:
        """As `nn.MultiheadAttention` with batch first, one tensor for all three, and an additive mask or none."""
        batch, tokens, width = query.shape
        queries, keys, values = functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.lora:
            queries, values = queries + self.lora["q"](query), values + self.lora["v"](query)
        mask = options.get("attn_mask")
        if self._prefixes:
            keys, values, mask = self._prefixed(query, keys, values, mask)
        split = [part.reshape(batch, -1, self.heads, width // self.heads) for part in (queries, keys, values)]
        q, k, v = (part.transpose(1, 2) for part in split)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=self._by_heads(mask, q))
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width)), None

    def _prefixed(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values with the prefixes before them, which every token sees."""
        before = [part.to(keys.dtype).expand(len(query), -1, -1) for part in self._prefixes[0](self.layer)]
        if self.prefix_gate is not None:
            gate = self.prefix_gate(query).to(keys.dtype)
            before = [part * gate for part in before]
        if mask is not None:
            mask = functional.pad(mask, (before[0].shape[1], 0))
        return torch.cat([before[0], keys], dim=1), torch.cat([before[1], values], dim=1), mask

    def _by_heads(self, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """One mask for all, or one a head of each sample, in the shape and type that the kernel wants."""
        if mask is None:
            return None
        if mask.ndim == 3:
            mask = mask.reshape(len(q), self.heads, *mask.shape[1:])
        return mask.to(q.dtype)


def through_adapter(block: Any, inputs: Any, output: Tensor) -> Tensor:
    """The forward hook of a block with an adapter behind it."""
    adapted: Tensor = block.adapter(output)
    return adapted
