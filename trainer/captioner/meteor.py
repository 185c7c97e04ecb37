"""METEOR of captions, by nltk: words in lower case, cut at white space, as RS5M's authors measured it.

METEOR matches words, then their stems, then synonyms of WordNet. WordNet is a download that this project does not
make: without it the third step finds nothing, and the figure is called `meteor_exact_stem`. It is then at most
slightly below METEOR.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

FULL, WITHOUT_SYNONYMS = "meteor", "meteor_exact_stem"


class NoSynonyms:
    """A WordNet without words."""

    def synsets(self, word: str) -> tuple[()]:
        """None, whatever the word."""
        return ()


@cache
def _wordnet() -> Any:
    import nltk

    try:
        nltk.data.find("corpora/wordnet")
    except LookupError:
        try:
            nltk.data.find("corpora/wordnet.zip")
        except LookupError:
            return NoSynonyms()
    from nltk.corpus import wordnet

    return wordnet


def label() -> str:
    """What the figure is called on this machine."""
    return WITHOUT_SYNONYMS if isinstance(_wordnet(), NoSynonyms) else FULL


def score(caption: str, reference: str) -> float:
    """0 to 1."""
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(reference.split(), caption.split(), wordnet=_wordnet()))


def scores(captions: Sequence[str], references: Sequence[Sequence[str]], seed: int) -> dict[str, float]:
    """Means over images: against one reference of each, drawn by seed (the paper's way), and against its best one."""
    rng = np.random.default_rng([seed, len(captions)])
    every = [[score(caption, text) for text in texts] for caption, texts in zip(captions, references, strict=True)]
    drawn = [values[int(rng.integers(len(values)))] for values in every]
    return {label(): float(np.mean(drawn)), f"{label()}_best": float(np.mean([max(values) for values in every]))}
