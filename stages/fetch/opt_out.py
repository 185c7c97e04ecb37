"""Opt-outs in a response's headers: X-Robots-Tag directives and the TDM reservation protocol."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

DIRECTIVES = ("noai", "noimageai", "noml", "noindex", "noimageindex")
"""Honoured by default: the four that img2dataset honours, and noml (docs/download.md says what each means)."""
_WITH_VALUE = frozenset(["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"])
_IMPLIED = {"none": ("none", "noindex", "nofollow")}
_AGENT = re.compile(r"\*|[a-z_][a-z0-9_.\-]*")


def heeded(robots_tags: Sequence[str], reservations: Iterable[str], agent: str, honoured: Iterable[str]) -> str | None:
    """What in the headers forbids our use, as header and value; None when nothing does.

    Args:
        robots_tags: the values of all `X-Robots-Tag` headers.
        reservations: the values of all `TDM-Reservation` headers; 1 reserves all rights.
        agent: our product token; directives scoped to another agent do not concern us.
        honoured: directives that count, in any case.
    """
    if any(value.strip() == "1" for value in reservations):
        return "TDM-Reservation: 1"
    if not robots_tags:
        return None
    wanted = {directive.strip().lower() for directive in honoured}
    found = (name for tag in robots_tags for name in _directives(tag, agent.lower()) if name in wanted)
    directive = next(found, None)
    return None if directive is None else f"X-Robots-Tag: {directive}"


def _directives(tag: str, agent: str) -> Iterator[str]:
    """The directives of one header that hold for `agent`; `name:` scopes those that follow it.

    A date has commas and colons of its own: what stands before its colons is no agent's name.
    """
    holds = True
    for item in tag.lower().split(","):
        name, colon, rest = (part.strip() for part in item.partition(":"))
        if colon and name not in _WITH_VALUE and _AGENT.fullmatch(name):
            holds = name in (agent, "*")
            name = rest
        if holds:
            yield from _IMPLIED.get(name, (name,))
