"""What a saved detector does: by source, by class, under degradations, and how far its probabilities hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.detector import metrics
from trainer.detector.augment import encoded, rotated
from trainer.detector.batches import DRAWN, LAND
from trainer.detector.images import SPLITS, Picture, Pixels
from trainer.detector.model import divide_logits, score

PREVALENCES = (0.5, 0.75, 0.9)
Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Detector:
    """A loaded model with its transform."""

    model: Any
    transform: Callable[[Any], Any]
    device: str = "cpu"

    def scores(self, pixels: Iterable[Pixels]) -> metrics.Scores:
        """Log-odds of `rs`."""
        return score(self.model, self.transform, pixels, self.device)


def labels_of(pictures: Sequence[Picture]) -> metrics.Labels:
    """1 for remote sensing."""
    return np.array([picture.label for picture in pictures], dtype=np.int64)


def calibrate(detector: Detector, validation: Sequence[Picture]) -> float:
    """Fold the temperature of the least log-loss into the model, in place. Returns it."""
    scores = detector.scores(picture.pixels for picture in validation)
    temperature = metrics.fit_temperature(scores, labels_of(validation))
    divide_logits(detector.model, temperature)
    return temperature


def family(source: str) -> str:
    """A source's name; all drawn negatives together, and all drawn land."""
    return next((prefix[:-1] for prefix in (DRAWN, LAND) if source.startswith(prefix)), source)


def by_source(pictures: Sequence[Picture], scores: metrics.Scores) -> dict[str, dict[str, Any]]:
    """Images, accuracy at probability 0.5, and mean log-odds of every source (drawn kinds one by one)."""
    rows: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(picture.source for picture in pictures):
        inside = np.array([picture.source == source for picture in pictures])
        label = next(picture.label for picture in pictures if picture.source == source)
        right = (scores[inside] > 0) == bool(label)
        rows[source] = {
            "label": label,
            "images": int(inside.sum()),
            "accuracy": float(right.mean()),
            "mean_logit": float(scores[inside].mean()),
        }
    return rows


def degradations() -> dict[str, Change]:
    """Named changes of a PIL image: JPEG quality, size of the shorter side, turns, grey."""
    changes: dict[str, Change] = {f"jpeg {quality}": partial(encoded, quality=quality) for quality in (40, 60, 80, 95)}
    changes |= {f"size {size}": partial(_resized, size=size) for size in (64, 128, 256, 512, 1000)}
    changes |= {f"turn {angle}": partial(_turned, angle=angle) for angle in range(30, 360, 30)}
    changes["grey"] = lambda image: image.convert("L").convert("RGB")
    return changes


def _resized(image: Any, size: int) -> Any:
    from PIL import Image

    factor = size / min(image.size)
    return image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)


def _turned(image: Any, angle: int) -> Any:
    """Quarters whole; other angles about the middle, the inscribed part kept."""
    from PIL import Image

    quarters, rest = divmod(angle, 90)
    for _ in range(quarters):
        image = image.transpose(Image.Transpose.ROTATE_90)
    return rotated(image, rest) if rest else image


def robustness(detector: Detector, pictures: Sequence[Picture]) -> dict[str, dict[str, float]]:
    """For every degradation: balanced accuracy, AUC and the change of the former, in points."""
    from PIL import Image

    labels = labels_of(pictures)
    plain = metrics.balanced_accuracy(detector.scores(p.pixels for p in pictures), labels)
    table = {}
    for name, change in degradations().items():
        scores = detector.scores(np.asarray(change(Image.fromarray(picture.pixels))) for picture in pictures)
        found = metrics.balanced_accuracy(scores, labels)
        table[name] = {
            "balanced_accuracy": found,
            "auc": metrics.auc(scores, labels),
            "change_points": 100 * (found - plain),
        }
    return table


def counts(pool: Sequence[Picture]) -> dict[str, dict[str, int]]:
    """Images of each source by part of the split; drawn kinds together."""
    table: dict[str, dict[str, int]] = {}
    for picture in pool:
        row = table.setdefault(family(picture.source), {"label": picture.label} | dict.fromkeys(SPLITS, 0))
        row[picture.split] += 1
    return table


def thinned(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """At most so many of each source (drawn kinds together), evenly spaced."""
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(family(picture.source), []).append(picture)
    return [
        group[at]
        for group in groups.values()
        for at in (range(len(group)) if len(group) <= most else np.linspace(0, len(group) - 1, most).astype(int))
    ]


def evaluate(detector: Detector, pool: Sequence[Picture], most: int = 150) -> dict[str, Any]:
    """All figures over the test pictures; robustness over at most `most` of each source."""
    test = [picture for picture in pool if picture.split == "test"]
    scores, labels = detector.scores(picture.pixels for picture in test), labels_of(test)
    return {
        "prior": 0.5,
        "test": metrics.summary(scores, labels),
        "sources": by_source(test, scores),
        "precision": {str(share): metrics.precision_at(scores, labels, share) for share in PREVALENCES},
        "reliability": metrics.reliability(scores, labels),
        "robustness": robustness(detector, thinned(test, most)),
    }


def elsewhere(detector: Detector, pool: Sequence[Picture]) -> dict[str, Any]:
    """Figures over pictures that no training saw: of all together and by source."""
    scores = detector.scores(picture.pixels for picture in pool)
    return {"test": metrics.summary(scores, labels_of(pool)), "sources": by_source(pool, scores)}


def draw_reliability(rows: Sequence[dict[str, float]], path: Path) -> None:
    """The reliability plot as a PNG: share of positives over probability, with the weight of each bin below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 5.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    chance = [row["probability"] for row in rows]
    top.plot([0, 1], [0, 1], color="grey", linewidth=1, label="perfect")
    top.plot(chance, [row["positives"] for row in rows], marker="o", label="detector")
    top.set_ylabel("share of remote sensing")
    top.legend()
    bottom.bar(chance, [row["weight"] for row in rows], width=0.03)
    bottom.set_yscale("log")
    bottom.set_xlabel("P(remote sensing)")
    bottom.set_ylabel("weight")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
