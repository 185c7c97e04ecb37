"""`/.well-known/tdmrep.json` of the TDM Reservation Protocol: which paths of an origin reserve their rights."""

from __future__ import annotations

import json
from dataclasses import dataclass

from stages.fetch.robots import matches

PATH = "/.well-known/tdmrep.json"


@dataclass(frozen=True)
class Reservations:
    """(location pattern, reserved), in the file's order."""

    rules: tuple[tuple[str, bool], ...] = ()

    def heeded(self, path: str) -> str | None:
        """What reserves the path (as sent): its first rule that matches, if it reserves; None when nothing does."""
        first = next(((pattern, reserved) for pattern, reserved in self.rules if matches(pattern, path)), None)
        return f"tdmrep.json: {first[0][:200]}" if first is not None and first[1] else None


def parse(body: bytes) -> Reservations:
    """The rules of a file; of what is none, no rules."""
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError):
        return Reservations()
    rules = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("location"), str):
            rules.append((entry["location"], str(entry.get("tdm-reservation")) == "1"))
    return Reservations(tuple(rules))
