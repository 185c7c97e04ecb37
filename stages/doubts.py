"""Where near hashes alone do not decide whether two rows are one image.

Near hashes of different views of one place never do, unless the scope says so. Others are confirmed by thumbnails
(`stages.likeness`) when they differ by more than `ALONE` bits or one of the images has little texture; a row whose
thumbnail is not known goes by its hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stages.likeness import AGREE, ALONE, Greys, likeness
from stages.narrow import HAS_PLACE, HAS_THUMBNAIL, IS_PLAIN, TURNED, NarrowRows
from stages.twins import NONE, Hashes, Ids, Near


def unsure(near: Near, plain: Ids, radius: int) -> Ids:
    """Ids of the hashes whose images' thumbnails may be asked for; `plain` are those of images of little texture."""
    ids = near.touching(plain)
    if radius > ALONE:
        far = np.bitwise_count(near.values(near.left) ^ near.values(near.right)) > ALONE
        ids = np.union1d(ids, np.concatenate([near.left[far], near.right[far]]))
    return ids


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What settles doubts about any rows."""

    radius: int
    orientations: int
    by_view: bool
    """Different views of one place may be twins."""
    rows: Ids
    """Positions of the rows whose thumbnails are at hand, ascending."""
    greys: Greys
    """(n, 32, 32) their thumbnails."""

    def doubts(self, narrow: NarrowRows, rows: Ids, places: Ids) -> RowDoubts:
        """Doubts about rows in the total order, which stand at positions of the input and have ids of places."""
        known = narrow.column("known")[rows]
        turned = np.empty((len(rows), 0), np.uint64)
        if self.radius > ALONE and self.orientations > 1 and (known & HAS_THUMBNAIL).any():
            turned = np.stack([narrow.column(name)[rows] for name in TURNED.names], axis=1)
        has_views = not self.by_view and (known & HAS_PLACE).any()
        grey = np.searchsorted(self.rows, rows)
        at_hand = np.isin(rows, self.rows)
        return RowDoubts(
            judge=self,
            upright=narrow.column("phash")[rows],
            turned=turned,
            plain=(known & IS_PLAIN) > 0,
            place=places if has_views else np.full(len(rows), NONE),
            view=narrow.column("view")[rows] if has_views else np.zeros(len(rows), np.uint64),
            grey=np.where(at_hand, grey, NONE),
        )


@dataclass(frozen=True, kw_only=True)
class RowDoubts:
    """`twins.Doubts` about (n,) rows."""

    judge: Judge
    upright: Hashes
    turned: Hashes
    """(n, 7), or (n, 0) where distances do not count."""
    plain: NDArray[np.bool_]
    place: Ids
    """Equal where the location is, or NONE."""
    view: Hashes
    grey: Ids
    """Index into the judge's thumbnails, or NONE."""

    @cached_property
    def of(self) -> NDArray[np.bool_]:
        """Rows about which there may be doubts."""
        return self.plain | (self.place != NONE) | (self.judge.radius > ALONE)

    def about_views(self) -> RowDoubts:
        """Only whether rows are different views of one place: what is asked when hashes do not come into it."""
        return replace(self, judge=replace(self.judge, radius=0), plain=np.zeros(len(self.plain), bool))

    def settle(self, row: int, others: Sequence[int]) -> int | None:
        """The first of the others that shows the same image."""
        rows = np.array(others, np.int64)
        same = ~self._is_other_view(row, rows)
        ask = same & (self.plain[row] | self.plain[rows])
        if self.judge.radius > ALONE:
            ask |= same & (self._bits(row, rows) > ALONE)
        ask &= (self.grey[rows] != NONE) & (self.grey[row] != NONE)
        if ask.any():
            grey, greys = self.judge.greys[self.grey[row]], self.judge.greys[self.grey[rows[ask]]]
            same[ask] = likeness(grey, greys, self.judge.orientations) >= AGREE
        return int(rows[same.argmax()]) if same.any() else None

    def _is_other_view(self, row: int, others: Ids) -> NDArray[np.bool_]:
        here = (self.place[row] != NONE) & (self.place[others] == self.place[row])
        return here & (self.view[others] != self.view[row])

    def _bits(self, row: int, others: Ids) -> NDArray[np.uint8]:
        """Bits between the hashes, in the orientation where they are nearest."""
        least = np.bitwise_count(self.upright[others] ^ self.upright[row])
        for turned in (self.turned[others] ^ self.upright[row], self.upright[others][:, None] ^ self.turned[row]):
            least = np.minimum(least, np.bitwise_count(turned).min(axis=1, initial=64))
        return least
