"""From candidates with their scores to one final caption: gate, ranks, pick, and the facts beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.captioning import tokens
from stages.captioning.gate import Gate
from stages.captioning.meta import Part, draw

Row = Mapping[str, Any]


@dataclass
class Candidate:
    """A generated caption and what is known of it; None where it was not asked."""

    text: str
    score: float | None = None
    rerank: float | None = None
    rotation_mean: float | None = None
    rotation_variance: float | None = None
    reason: str | None = None
    text_class: str | None = None

    def to_row(self) -> dict[str, Any]:
        """As `captions.candidates` holds it."""
        names = ("text", "score", "rerank", "rotation_mean", "rotation_variance", "reason")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the pick is made."""

    keep: int | None
    """Candidates after the first ranking; None without one."""
    rekeep: int | None
    pick: str
    tolerance: float
    seed: int


@dataclass(frozen=True)
class Picked:
    """The finalists' two best and the one that is used."""

    top: Candidate | None = None
    rotation_invariant: Candidate | None = None
    used: Candidate | None = None


def judge(candidates: Sequence[Candidate], row: Row, gate: Gate, prompt: str | None) -> None:
    """Give each candidate the reason for which it cannot stand; the first of equal texts stands for the others."""
    seen: set[str] = set()
    for candidate in candidates:
        same = " ".join(candidate.text.lower().split())
        candidate.reason = gate.reason(candidate.text, row, prompt) or ("repeated" if same in seen else None)
        seen.add(same)


def select(candidates: Sequence[Candidate], choice: Choice, key: str) -> Picked:
    """Rank those that stand (20 → 10 → 5 in the paper, arXiv 2306.11300 §III-B), and pick.

    The rotation test prefers the caption whose cosine varies least while the image turns, among finalists whose mean
    cosine is within `tolerance` of the best: without that bound, captions about nothing vary least.
    """
    standing = [candidate for candidate in candidates if candidate.reason is None]
    for name, keep in (("score", choice.keep), ("rerank", choice.rekeep)):
        if keep is not None:
            standing.sort(key=lambda candidate: -_or_least(getattr(candidate, name)))
            for candidate in standing[keep:]:
                candidate.reason = "outranked"
            standing = standing[:keep]
    if not standing:
        return Picked()
    top, steady = standing[0], _steadiest(standing, choice.tolerance)
    use_steady = choice.pick == "rotation_invariant" or (choice.pick == "random" and draw(choice.seed, "pick", key, 2))
    return Picked(top, steady, steady if use_steady and steady else top)


def _steadiest(finalists: Sequence[Candidate], tolerance: float) -> Candidate | None:
    tested = [each for each in finalists if each.rotation_variance is not None]
    if not tested:
        return None
    floor = max(_or_least(each.rotation_mean) for each in tested) - tolerance
    near = [each for each in tested if _or_least(each.rotation_mean) >= floor]
    return min(near, key=lambda each: each.rotation_variance or 0.0)


def _or_least(score: float | None) -> float:
    return -2.0 if score is None else score


@dataclass(frozen=True)
class Composed:
    """A final caption, its parts, and what did not fit."""

    parts: list[Part]
    left_out: int = 0
    """Facts that CLIP's tokens had no room for."""

    @property
    def text(self) -> str:
        """The caption."""
        return " ".join(part.text for part in self.parts)


def compose(first: Part | None, meta: Part | None, facts: Sequence[Part], mode: str, budget: int) -> Composed:
    """Put the parts together.

    Args:
        first: the generated caption, or the one that the row came with.
        meta: the whole meta caption.
        facts: one sentence each.
        mode: `paper` (meta caption, then the generated one, whatever the length) or `budget` (the generated one, then
            facts while they fit).
        budget: tokens.
    """
    if mode == "paper":
        return Composed([part for part in (meta, first) if part])
    if first is None:
        parts = [meta] if meta and tokens.count(meta.text) <= budget else []
        return Composed(parts) if parts else _filled([], facts, budget)
    opening = first.text if first.text.endswith((".", "!", "?")) else f"{first.text}."
    return _filled([replace(first, text=opening)], facts, budget)


def _filled(parts: list[Part], facts: Sequence[Part], budget: int) -> Composed:
    left_out = 0
    for fact in facts:
        longer = [*parts, fact]
        if tokens.count(" ".join(part.text for part in longer)) <= budget:
            parts = longer
        else:
            left_out += 1
    return Composed(parts, left_out)
