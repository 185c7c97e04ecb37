"""Opt-outs in a response's headers: X-Robots-Tag directives and the TDM reservation protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
"""Honoured by default: the four that img2dataset honours."""
_WITH_VALUE = frozenset(["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"])
_IMPLIED = {"none": ("none", "noindex", "nofollow")}


def opted_out(robots_tags: Iterable[str], tdm_reservation: str | None, agent: str, honoured: Iterable[str]) -> bool:
    """Whether the headers forbid our use.

    Args:
        robots_tags: the values of all `X-Robots-Tag` headers.
        tdm_reservation: the value of `TDM-Reservation`; 1 reserves all rights.
        agent: our product token; directives scoped to another agent do not concern us.
        honoured: directives that count, in any case.
    """
    if (tdm_reservation or "").strip() == "1":
        return True
    wanted = {directive.strip().lower() for directive in honoured}
    return any(directive in wanted for tag in robots_tags for directive in _directives(tag, agent.lower()))


def _directives(tag: str, agent: str) -> Iterator[str]:
    """The directives of one header that hold for `agent`; `name:` scopes those that follow it."""
    holds = True
    for item in tag.lower().split(","):
        name, colon, rest = (part.strip() for part in item.partition(":"))
        if colon and name not in _WITH_VALUE:
            holds = name in (agent, "*")
            name = rest
        if holds:
            yield from _IMPLIED.get(name, (name,))
