"""From trained weights to a detector that may be used: dead channels, the perceptron beside it, the temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.detector import perceptron
from trainer.detector.config import Config
from trainer.detector.evaluation import Detector, calibrate
from trainer.detector.images import Picture
from trainer.detector.model import MEAN, STD, divide_logits, silence_dead_channels, transform_for
from trainer.detector.prepared import Prepared

LOUDNESS = 0.2
"""Of the network beside the perceptron: the ratio of their log-odds' spreads over the validation pictures."""


def finished(
    network: Any, prepared: Prepared, validation: Sequence[Picture], config: Config, device: str
) -> tuple[Detector, float]:
    """The detector that is to be saved, and its temperature, which is folded in. The network changes in place."""
    silence_dead_channels(network)
    detector = Detector(network, transform_for(config.model), device)
    if prepared.described is not None:
        made = _with_descriptors(detector, prepared, prepared.described, validation, config.seed)
        detector = Detector(made, detector.transform, device)
    return detector, calibrate(detector, validation)


def _with_descriptors(
    detector: Detector, prepared: Prepared, described: Any, validation: Sequence[Picture], seed: int
) -> Any:
    """The network (two outputs) with a perceptron over the descriptors of the prepared pictures.

    How much each deserves elsewhere cannot be learned from pictures of sources that both saw: the network is to speak
    `LOUDNESS` as loud.
    """
    from descriptors import Beside

    fitted = perceptron.fit(np.asarray(described[:, prepared.rows]), prepared.labels[prepared.rows], seed)
    made = Beside(detector.model, fitted, MEAN, STD).to(detector.device).eval()
    pixels = [picture.pixels for picture in validation]
    alone = detector.scores(pixels)
    added = Detector(made, detector.transform, detector.device).scores(pixels) - alone
    if alone.std() > 0 and added.std() > 0:
        divide_logits(detector.model, float(alone.std() / (LOUDNESS * added.std())))
    return made
