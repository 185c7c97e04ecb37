"""How many of its 77 tokens CLIP spends on a text: open_clip's vocabulary, without loading open_clip and torch."""

from __future__ import annotations

import gzip
import html
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from stages.errors import UserError

CONTEXT = 77
"""CLIP's context: start and end token, and 75 between them."""
MERGES = 49152 - 256 - 2
"""Lines of the vocabulary file that CLIP uses."""
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def count(text: str) -> int:
    """Tokens of a text, start and end included; what is beyond `CONTEXT` is never read."""
    return counts([text])[0]


def counts(texts: Sequence[str]) -> list[int]:
    """Tokens of each text."""
    import ftfy

    clean = [html.unescape(html.unescape(ftfy.fix_text(text))).lower() for text in texts]
    return [len(encoded.ids) + 2 for encoded in _tokenizer().encode_batch_fast(clean)]


@cache
def _tokenizer() -> Any:
    """CLIP's byte-pair encoding (arXiv 2103.00020 §2.4)."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    with gzip.open(_vocabulary(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 1 + MERGES]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _vocabulary() -> Path:
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise UserError("the package open_clip_torch is not installed; it has the vocabulary that counts tokens")
    return Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
