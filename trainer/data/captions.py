"""Which text an image is paired with: one of its passport's captions, drawn by weights, true of the image as shown.

A sentence that tells where in the picture something lies is false once the picture is turned or mirrored, one that
tells the size of a pixel once it is resized. The passport's `caption_parts` mark the first kind as
`orientation_dependent` and the second by their `fact`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.errors import UserError

CAPTION = "caption"
NAMED = ("top_caption", "rotation_invariant_caption", "meta_caption")
"""Columns of the passport that hold one caption."""
ORIGINS = ("alt_text", "generated", "metadata", "label", "user")
"""Of the entries of the passport's `captions`."""
KINDS = (CAPTION, *NAMED, *ORIGINS)
ORIENTED = ("upright", "leave_out")
GSD = ("keep", "leave_out", "restate")
SIZE_FACTS = frozenset({"resolution", "extent"})
"""Facts that tell the size of a pixel or of what is seen."""
DIRECTION = re.compile(
    r"\b(left|right|top|bottom|upper|lower|above|below|north\w*|south\w*|east\w*|west\w*|corner|azimuth)\b",
    re.IGNORECASE,
)
"""Words of place or direction; many a text holds one that no turn falsifies."""

Passport = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """How the text is chosen."""

    weights: Mapping[str, float] = field(default_factory=lambda: {CAPTION: 1.0})
    """Of `caption` (the shard's own text), of the passport's columns and of origins of its `captions`; among those
    that a sample has, one is drawn, then one of its texts."""
    oriented: str = "upright"
    """`upright`: an image with an orientation-dependent text is neither turned nor mirrored; `leave_out`: such
    sentences are left out where that leaves a text."""
    words: bool = False
    """Whether untagged texts with a word of `DIRECTION` count as orientation-dependent, too. Whole meta captions, whose
    sentences the passport does not list, always do."""
    gsd: str = "keep"
    """Sentences of resolution and extent: `keep`; `leave_out`; `restate`: the pixel's size after resizing instead."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(KINDS))
        if unknown:
            raise UserError(f"captions.weights: unknown kind {unknown[0]!r}; accepted: {', '.join(KINDS)}")
        if any(weight < 0 for weight in self.weights.values()) or not sum(self.weights.values()) > 0:
            raise UserError(f"captions.weights: {dict(self.weights)} must be at least 0 each, and above 0 together")
        for name, accepted in (("oriented", ORIENTED), ("gsd", GSD)):
            if getattr(self, name) not in accepted:
                raise UserError(f"captions.{name} is {getattr(self, name)!r}; accepted: {', '.join(accepted)}")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A text, and whether it is true of the upright image alone."""

    text: str
    oriented: bool


def choose(caption: str, passport: Passport, options: CaptionOptions, rng: np.random.Generator) -> Chosen:
    """The text of a sample; empty when it has none.

    Args:
        caption: the shard's own text.
        passport: empty where the shard has none.
        options: weights and what to do with sentences that would be false.
        rng: two numbers are drawn from it, always.
    """
    kind, text = rng.random(2)
    texts = _drawn(_kinds(caption, passport, options.weights), kind) or [caption]
    chosen = texts[min(int(text * len(texts)), len(texts) - 1)]
    parts = _parts(passport)
    if options.gsd != "keep":
        chosen = _without(chosen, [part["text"] for part in parts if part.get("fact") in SIZE_FACTS])
    oriented = _oriented(passport, parts)
    if options.oriented == "leave_out":
        chosen = _without(chosen, oriented)
    tagged = any(sentence in chosen for sentence in oriented)
    untagged = (options.words or _is_meta(chosen, passport)) and DIRECTION.search(chosen) is not None
    return Chosen(chosen, tagged or untagged)


def _kinds(caption: str, passport: Passport, weights: Mapping[str, float]) -> list[tuple[float, list[str]]]:
    """(weight, texts) of the kinds that the sample has, in the order of their names."""
    found: list[tuple[float, list[str]]] = []
    for name in sorted(weights):
        if name == CAPTION:
            texts = [caption]
        elif name in NAMED:
            texts = [passport.get(name) or ""]
        else:
            texts = [entry["text"] for entry in passport.get("captions") or () if entry.get("origin") == name]
        texts = [each for each in texts if each.strip()]
        if texts and weights[name] > 0:
            found.append((weights[name], texts))
    return found


def _drawn(kinds: Sequence[tuple[float, list[str]]], at: float) -> list[str]:
    left = at * sum(weight for weight, _ in kinds)
    for weight, texts in kinds:
        left -= weight
        if left < 0:
            return texts
    return kinds[-1][1] if kinds else []


def _parts(passport: Passport) -> list[Passport]:
    return [part for part in passport.get("caption_parts") or () if part.get("text")]


def _oriented(passport: Passport, parts: Sequence[Passport]) -> list[str]:
    """Sentences and captions that are tagged."""
    tagged = [*parts, *(passport.get("captions") or ())]
    return [each["text"] for each in tagged if each.get("orientation_dependent") and each.get("text")]


def _is_meta(text: str, passport: Passport) -> bool:
    metadata = (entry.get("text") for entry in passport.get("captions") or () if entry.get("origin") == "metadata")
    return text == passport.get("meta_caption") or text in metadata


def _without(text: str, sentences: Sequence[str]) -> str:
    """The text less the sentences, if anything stays."""
    left = text
    for sentence in sentences:
        left = left.replace(sentence, "")
    return " ".join(left.split()) or text if left != text else text


def restated(passport: Passport, source_pixels: float) -> str:
    """A sentence of the size of a pixel that covers so many of the stored image's; empty where the size is unknown."""
    sides = [passport[name] for name in ("pixel_x_m", "pixel_y_m") if passport.get(name)]
    if not sides:
        return ""
    return f"A pixel covers {float(np.mean(sides)) * source_pixels:.2g} m."
