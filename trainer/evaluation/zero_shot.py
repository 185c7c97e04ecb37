"""Zero-shot classification: class vectors from prompts in two averagings, and hits with ties shared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def unit_length(features: NDArray[np.floating]) -> Floats:
    """Rows divided by their length (zero rows stay), in float32."""
    wide = features.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / np.where(length > 0, length, 1)).astype(np.float32)


def class_vectors(features: NDArray[np.floating], *, paper: bool) -> Floats:
    """(classes, d) of length 1, from raw text features (classes, templates, d).

    The usual way (Radford et al. 2021) averages vectors of length 1; GeoRSCLIP's published evaluation averages the raw
    features, so that a template whose features are longer counts for more.
    """
    return unit_length((features if paper else unit_length(features)).astype(np.float64).mean(axis=1))


def hits(images: Floats, classes: Floats, labels: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """`expected`, `best` and `worst` hit of each image (images, d) at its label, over orders of tied classes."""
    scores = images @ classes.T
    own = scores[np.arange(len(labels)), labels]
    top = own == scores.max(axis=1)
    tied = (scores == own[:, None]).sum(axis=1)
    return {
        "expected": np.where(top, 1.0 / tied, 0.0),
        "best": top.astype(np.float64),
        "worst": (top & (tied == 1)).astype(np.float64),
    }
