"""The meteorological season of a date, by hemisphere."""

from __future__ import annotations

SEASONS = ("winter", "spring", "summer", "autumn")
"""Of the northern hemisphere, from December on, three months each."""


def season(month: int, latitude: float) -> str:
    """`spring`, `summer`, `autumn` or `winter`: three whole months each, half a year apart south of the equator."""
    return SEASONS[(month % 12 // 3 + (2 if latitude < 0 else 0)) % 4]
