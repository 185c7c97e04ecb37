"""Nucleus sampling whose draws belong to (seed, image, candidate, step) alone: no batch, worker or order changes them.

Each draw is one number in [0, 1) from a counter-based generator, turned into a token by the inverse of the
distribution's cumulative sum, in the order of token ids: where rounding swaps two nearly equal tokens, nothing moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

STREAM = 1 << 128
"""Distance between the counters of two candidates: no caption is long enough to bridge it."""


def uniforms(seed: int, identity: str, candidates: int, steps: int) -> NDArray[np.float64]:
    """Draws in [0, 1) of shape (candidates, steps); the first ones stay the same when more are asked for."""
    digest = hashlib.blake2b(f"{seed}\0caption\0{identity}".encode(), digest_size=16).digest()
    key = int.from_bytes(digest, "big")
    raw = [np.random.Philox(key=key, counter=number * STREAM).random_raw(steps) for number in range(candidates)]
    draws: NDArray[np.float64] = (np.stack(raw) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draws


def choose(logits: Any, draws: Any, *, top_k: int, top_p: float, temperature: float) -> Any:
    """One token a row: the top_k tokens, of these the fewest that hold top_p of the probability, then the draw.

    Args:
        logits: (rows, vocabulary).
        draws: (rows,), in [0, 1).
        top_k: 0 for all tokens.
        top_p: 1.0 for all of them.
        temperature: what logits are divided by.
    """
    import torch

    size = min(top_k or logits.shape[-1], logits.shape[-1])
    values, tokens = logits.double().topk(size, dim=-1)
    weights = torch.softmax(values / temperature, dim=-1)
    weights = weights.masked_fill(weights.cumsum(dim=-1) - weights >= top_p, 0.0)
    tokens, order = tokens.sort(dim=-1)
    cumulative = weights.gather(-1, order).cumsum(dim=-1)
    place = torch.searchsorted(cumulative, draws[:, None].double() * cumulative[:, -1:], right=True)
    return tokens.gather(-1, place.clamp(max=size - 1))[:, 0]


def draw_processor(draws: NDArray[np.float64], device: str, **options: Any) -> Any:
    """A transformers logits processor that leaves each row one token, the drawn one; `chosen` lists them step by step.

    Args:
        draws: (rows, steps).
        device: where the model is.
        options: as for `choose`.
    """
    import torch
    from transformers import LogitsProcessor

    class Draw(LogitsProcessor):  # type: ignore[misc]
        def __init__(self) -> None:
            self.draws = torch.from_numpy(draws).to(device)
            self.chosen: list[Any] = []

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            tokens = choose(scores, self.draws[:, len(self.chosen)], **options)
            self.chosen.append(tokens)
            return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)

    return Draw()


def until(tokens: Sequence[int], stops: frozenset[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    for place, token in enumerate(tokens):
        if token in stops:
            return list(tokens[:place])
    return list(tokens)
