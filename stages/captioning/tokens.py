"""How many of its 77 tokens CLIP spends on a text."""

from __future__ import annotations

from functools import cache
from typing import Any

CONTEXT = 77
"""CLIP's context: start and end token, and 75 between them."""


def count(text: str) -> int:
    """Tokens of a text, start and end included; what is beyond `CONTEXT` is never read."""
    return len(_tokenizer().encode(text)) + 2


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
