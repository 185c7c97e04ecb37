"""Encoding texts with an open_clip model at no more positions than the texts have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

LENGTHS = (16, 32, 48)
"""Numbers of positions short of the model's own: few, so that batches come in few shapes."""


def text_encoder(model: Any, tokenizer: Any, device: str) -> Callable[[Sequence[str]], Any]:
    """From n texts to their (n, width) features, as the model gives them.

    A text tower in which no position sees a later one, and whose feature is that of the last token, gives the same
    feature without the positions after it. CLIP's 77 are for captions four times as long as those of the web.
    """
    shortened = lru_cache(maxsize=None)(lambda length: _shortened(model, length))
    can_stop_early = _looks_back_only(model)

    def encode(texts: Sequence[str]) -> Any:
        tokens = tokenizer(list(texts)).to(device)
        if not can_stop_early:
            return model.encode_text(tokens)
        used = int(tokens.argmax(dim=-1).max()) + 1  # the end's token has the highest number
        length = next((each for each in LENGTHS if used <= each < tokens.shape[1]), None)
        return shortened(length).encode_text(tokens[:, :length]) if length else model.encode_text(tokens)

    return encode


def _looks_back_only(model: Any) -> bool:
    from open_clip import CLIP

    return type(model) is CLIP and model.text_pool_type == "argmax" and model.attn_mask is not None


def _shortened(model: Any, length: int) -> Any:
    """The same model, weights shared, with a text tower of fewer positions."""
    from torch.nn import Parameter

    short = copy.copy(model)
    positions = Parameter(model.positional_embedding[:length], requires_grad=False)
    short._parameters = model._parameters | {"positional_embedding": positions}
    short._buffers = model._buffers | {"attn_mask": model.attn_mask[:length, :length]}
    return short
