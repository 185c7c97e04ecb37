"""What the teacher's features alone tell of sources never seen: a linear classifier on them, in minutes.

It bounds what a detector that learns these features may hope for, and shows what views and drawn land do to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector import metrics, teacher
from trainer.detector.augment import augment
from trainer.detector.batches import LAND, Batches
from trainer.detector.config import Config
from trainer.detector.evaluation import labels_of, thinned
from trainer.detector.images import Picture
from trainer.detector.leave_out import Run, rotation
from trainer.detector.linear import logistic
from trainer.detector.model import normalised
from trainer.detector.training import Machine

Features = NDArray[np.float32]
"""(pictures, width)."""
PENALTY = 0.01
"""Of the squared weights, beside the mean log-loss."""
BATCH = 64
VIEWS = ("plain", "altered")


@dataclass(frozen=True)
class _Seen:
    """Pictures with the features of each view."""

    pictures: Sequence[Picture]
    views: dict[str, Features]


def probe(pool: Sequence[Picture], config: Config, machine: Machine, most: int) -> list[dict[str, Any]]:
    """For each choice of views to learn from, with and without drawn land: figures on plain views of what was left out.

    At most `most` pictures of a source are used. Standardisation and weights are of the pictures learnt from.
    """
    pictures = thinned(pool, most)
    model = teacher.load(config.teacher, machine.device)
    views = {view: _features(model, pictures, config, view, machine.device) for view in VIEWS}
    seen, rows = _Seen(pictures, views), []
    for learnt in (("plain",), ("altered",), VIEWS):
        for land in (False, True):
            runs = [_judged(seen, run, config, learnt, land) for run in rotation(config)]
            rows.append(
                {
                    "views": list(learnt),
                    "land": land,
                    "balanced_accuracy": float(np.mean([run["unseen"]["balanced_accuracy"] for run in runs])),
                    "auc": float(np.mean([run["unseen"]["auc"] for run in runs])),
                    "runs": runs,
                }
            )
    return rows


def _features(model: Any, pictures: Sequence[Picture], config: Config, view: str, device: str) -> Features:
    import torch
    from PIL import Image

    size, found = config.model.size, []
    for first in range(0, len(pictures), BATCH):
        batch = []
        for number in range(first, min(first + BATCH, len(pictures))):
            pixels = pictures[number].pixels
            if view == "plain":
                image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
                batch.append(np.asarray(image))
            else:
                batch.append(
                    augment(pixels, np.random.default_rng([config.seed, number]), size, config.training.harder)
                )
        inputs = normalised(torch.from_numpy(np.stack(batch)).to(device)).contiguous(memory_format=torch.channels_last)
        found.append(teacher.features(model, inputs, device, config.teacher.size).cpu().numpy())
    return np.concatenate(found)


def _judged(seen: _Seen, run: Run, config: Config, views: Sequence[str], land: bool) -> dict[str, Any]:
    import torch

    names = [picture.source for picture in seen.pictures]
    unseen = np.array([name in run.unseen for name in names])
    learnt = np.flatnonzero(~unseen & np.array([land or not name.startswith(LAND) for name in names]))
    chances = Batches([seen.pictures[int(row)] for row in learnt], config).chances
    labels = labels_of(seen.pictures)
    for label in (0, 1):
        chances[labels[learnt] == label] /= chances[labels[learnt] == label].sum()
    features = np.concatenate([seen.views[view][learnt] for view in views])
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    weights = np.tile(chances, len(views))
    inputs = torch.from_numpy((features - mean) / deviation).float()
    layer = logistic(inputs, np.tile(labels[learnt], len(views)), weights, PENALTY)
    with torch.inference_mode():
        scores = (
            layer(torch.from_numpy((seen.views["plain"][unseen] - mean) / deviation).float())[:, 0].double().numpy()
        )
    return {"rs": run.rs.name, "photo": run.photo.name, "unseen": metrics.summary(scores, labels[unseen])}
