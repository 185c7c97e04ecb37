"""What the search for near hashes will take, said before it is begun."""

from __future__ import annotations

from stages.errors import UserError
from stages.hamming import chance_pairs, estimated_seconds


def sentence(hashes: int, radius: int) -> str:
    """Chance pairs and time for so many hashes, were they all different and random."""
    minutes = estimated_seconds(hashes, radius) / 60
    return (
        f"{hashes:,} hashes within {radius} bits: about {minutes:,.1f} minutes of one core, "
        f"{chance_pairs(hashes, radius):,.0f} pairs by chance"
    )


def refuse_beyond(minutes: int, hashes: int, radius: int) -> None:
    """Let nobody begin a search of days unknowingly.

    Raises:
        UserError: it would take longer than `max_minutes`.
    """
    if estimated_seconds(hashes, radius) > minutes * 60:
        raise UserError(
            f"stages.dedup.max_minutes is {minutes}, but {sentence(hashes, radius)}; "
            "raise max_minutes to have it done, or lower radius"
        )
