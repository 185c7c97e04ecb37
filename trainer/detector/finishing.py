"""From trained weights to a detector that may be used: dead channels, the layer over descriptors, the temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.detector.config import Config
from trainer.detector.evaluation import Detector, calibrate
from trainer.detector.images import Picture
from trainer.detector.linear import logistic
from trainer.detector.model import MEAN, STD, silence_dead_channels, transform_for
from trainer.detector.prepared import Prepared

PENALTY = 0.02
"""Of the squared weights of the layer over descriptors, beside the mean log-loss."""
BATCH = 256


def finished(
    network: Any, prepared: Prepared, validation: Sequence[Picture], config: Config, device: str
) -> tuple[Detector, float]:
    """The detector that is to be saved, and its temperature, which is folded in. The network changes in place."""
    silence_dead_channels(network)
    detector = Detector(network, transform_for(config.model), device)
    if config.model.descriptors:
        detector = Detector(_with_descriptors(detector, prepared, validation), detector.transform, device)
    return detector, calibrate(detector, validation)


def _with_descriptors(detector: Detector, prepared: Prepared, validation: Sequence[Picture]) -> Any:
    """The network (two outputs) with a layer over the descriptors of the prepared pictures.

    Both parts speak as loud: the layer's log-odds get the spread that the network's have over the validation pictures.
    How much each deserves elsewhere cannot be learned from those: on sources that it saw, the network is always better.
    """
    import torch

    from descriptors import Beside, standardised

    described = _described(prepared)
    mean, deviation = described.mean(0), described.std(0) + 1e-4
    labels = prepared.labels[prepared.rows]
    found = logistic(standardised(described, mean, deviation), labels, np.ones(len(labels)), PENALTY)
    halves = torch.tensor([[-0.5], [0.5]])
    layer = {"mean": mean, "deviation": deviation, "weight": halves * found.weight, "bias": halves[:, 0] * found.bias}
    made = Beside(detector.model, {name: value.detach() for name, value in layer.items()}, MEAN, STD)
    made = made.to(detector.device).eval()
    pixels = [picture.pixels for picture in validation]
    alone = detector.scores(pixels)
    added = Detector(made, detector.transform, detector.device).scores(pixels) - alone
    if added.std() > 0:
        made.scale(float(alone.std() / added.std()))
    return made


def _described(prepared: Prepared) -> Any:
    """(rows that may be drawn, WIDTH)."""
    import torch

    from descriptors import describe

    parts = []
    for first in range(0, len(prepared.rows), BATCH):
        images = torch.from_numpy(prepared.images[prepared.rows[first : first + BATCH]])
        parts.append(describe(images.permute(0, 3, 1, 2).float() / 255))
    return torch.cat(parts)
