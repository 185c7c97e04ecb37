"""What the search for near hashes will take, said before it is begun."""

from __future__ import annotations

from dataclasses import dataclass

from stages.errors import UserError
from stages.hamming import chance_pairs, estimated_seconds


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of a search among rows whose hashes were all different and random: no less, where few are equal."""

    rows: int
    radius: int
    orientations: int = 1

    @property
    def minutes(self) -> float:
        """Of one core; each turned view is searched together with the images as they stand."""
        seconds = estimated_seconds(self.rows, self.radius)
        return (seconds + (self.orientations - 1) * estimated_seconds(2 * self.rows, self.radius)) / 60

    @property
    def pairs(self) -> float:
        """Pairs within the radius by chance."""
        return chance_pairs(self.rows, self.radius) * (2 * self.orientations - 1)

    def __str__(self) -> str:
        return (
            f"near hashes of {self.rows:,} rows within {self.radius} bits take about {self.minutes:,.1f} minutes "
            f"of one core, with {self.pairs:,.0f} pairs by chance"
        )

    def refuse_beyond(self, minutes: int) -> None:
        """Let nobody begin a search of days unknowingly.

        Raises:
            UserError: it would take longer.
        """
        if self.minutes > minutes:
            raise UserError(
                f"stages.dedup.max_minutes: found {minutes}, but {self}; raise it to go on, or lower radius"
            )
