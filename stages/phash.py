"""The perceptual hash: 64 bits of the low frequencies of a 32 × 32 grey thumbnail.

Bit-equal to `imagehash.phash` (hash_size 8, highfreq_factor 4) of the image under the RGB rule
(`stages.images.to_rgb`): convert to grey, shrink with Lanczos to 32 × 32, two unnormalised DCT-II
(columns, then rows), the 8 × 8 lowest frequencies row by row, each bit set where the coefficient exceeds
their median; the first bit is the highest of the integer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 32
LOW = 8
FLAT_DEVIATION = 1.0
"""Below this standard deviation of the thumbnail's grey levels (0–255) the bits would be those of noise."""


def phash(image: Image) -> int | None:
    """The hash of an RGB image as an unsigned 64-bit integer; None when the image is too flat to hash."""
    import numpy as np
    from PIL.Image import Resampling
    from scipy.fftpack import dct

    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Resampling.LANCZOS))
    if grey.std() < FLAT_DEVIATION:
        return None
    low = dct(dct(grey, axis=0), axis=1)[:LOW, :LOW]
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")
