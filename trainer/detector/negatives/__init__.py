"""Hard negatives that code draws: what a pool holds after a filter by keywords, and what no photograph set has.

Every kind is a function of a numpy generator and nothing else; fonts come with matplotlib. The same seed draws the
same picture with the same library versions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector.negatives import charts, documents, maps, plain, scenes

KINDS: dict[str, Callable[[np.random.Generator], Any]] = {
    kind.__name__: kind for module in (maps, charts, documents, scenes, plain) for kind in module.KINDS
}


def draw(kind: str, seed: int, number: int) -> NDArray[np.uint8]:
    """Picture `number` of a kind: (height, width, 3), sides of 160 to 384 px."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
    return np.asarray(KINDS[kind](rng).convert("RGB"), dtype=np.uint8)


def sheet(seed: int, columns: int = 8, cell: int = 128) -> Any:
    """A contact sheet: a row of `columns` pictures for every kind (PIL image)."""
    from PIL import Image

    page = Image.new("RGB", (columns * cell, len(KINDS) * cell), (255, 255, 255))
    for row, kind in enumerate(KINDS):
        for column in range(columns):
            picture = Image.fromarray(draw(kind, seed, column))
            page.paste(picture.resize((cell - 2, cell - 2), Image.Resampling.LANCZOS), (column * cell, row * cell))
    return page
