"""Leaving whole sources out: what the detector does on images from places it never saw."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.detector import metrics
from trainer.detector.batches import DRAWN, chosen
from trainer.detector.config import LABELS, Config
from trainer.detector.evaluation import Detector, by_source, family, labels_of
from trainer.detector.finishing import finished
from trainer.detector.images import Picture
from trainer.detector.model import save
from trainer.detector.negatives import KINDS
from trainer.detector.prepared import prepare
from trainer.detector.training import Machine, train


@dataclass(frozen=True)
class Kin:
    """Sources that are left out together: those of one `kin` in the config, or one alone."""

    name: str
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: what it is judged on, and what else it does without."""

    rs: Kin
    photo: Kin
    drawn: tuple[str, ...]
    absent: tuple[str, ...] = ()
    """Further sources left out of training, not judged."""

    @property
    def name(self) -> str:
        """A folder's name."""
        short = f"-without-{len(self.absent)}" if self.absent else ""
        return f"{self.rs.name}-{self.photo.name}{short}"

    @property
    def unseen(self) -> tuple[str, ...]:
        """The sources judged as unseen."""
        return (*self.rs.sources, *self.photo.sources, *self.drawn)


def _kin(config: Config) -> tuple[list[Kin], list[Kin]]:
    """The training sources of remote sensing, and the others."""
    found: dict[str, dict[str, list[str]]] = {label: {} for label in LABELS}
    for name, source in config.sources.items():
        if source.use == "train":
            found[source.label].setdefault(source.kin or name, []).append(name)
    other, rs = ([Kin(name, tuple(sources)) for name, sources in found[label].items()] for label in LABELS)
    return rs, other


def _share(number: int, of: int) -> tuple[str, ...]:
    return tuple(DRAWN + kind for kind in list(KINDS)[number::of])


def rotation(config: Config) -> list[Run]:
    """As few runs as leave out each source (or kin) and each drawn kind at least once; one of either class a run."""
    rs, other = _kin(config)
    count = max(len(rs), len(other))
    return [Run(rs=rs[n % len(rs)], photo=other[n % len(other)], drawn=_share(n, count)) for n in range(count)]


def full(config: Config) -> list[Run]:
    """Every pair of a remote-sensing source (or kin) and another."""
    rs, other = _kin(config)
    return [Run(rs=one, photo=two, drawn=_share(n, len(other))) for one in rs for n, two in enumerate(other)]


def curve(config: Config) -> list[Run]:
    """One pair left out; trained on the first source of each class among the rest, the first two, four, and so on."""
    rs, other = _kin(config)
    most = max(len(rs), len(other)) - 1
    runs = []
    for number in (*(2**power for power in range(most.bit_length()) if 2**power < most), most):
        absent = tuple(source for kin in (*rs[1 + number :], *other[1 + number :]) for source in kin.sources)
        runs.append(Run(rs=rs[0], photo=other[0], drawn=_share(0, 5), absent=absent))
    return runs


DESIGNS = {"rotation": rotation, "full": full, "curve": curve}


def leave_out(
    pool: Sequence[Picture], config: Config, design: str, folder: Path, prepared: Path, machine: Machine
) -> Iterator[dict[str, Any]]:
    """Train and judge the runs of a design; finished ones of the same config are taken from their files.

    `prepared` is the folder of altered pictures that all runs share; none draws those of a source that it leaves out.
    Yields the figures of all runs so far, after each.
    """
    rows: list[dict[str, Any]] = []
    for run in DESIGNS[design](config):
        rows.append(_judged(run, pool, config, folder / design / run.name, prepared, machine))
        yield {"design": design, "config": config.plain(), "runs": list(rows), "overall": overall(rows)}


def _judged(
    run: Run, pool: Sequence[Picture], config: Config, folder: Path, prepared: Path, machine: Machine
) -> dict[str, Any]:
    path = folder / "result.json"
    plain = json.dumps([config.plain(), asdict(run), machine.device, machine.threads], sort_keys=True)
    digest = hashlib.sha256(plain.encode()).hexdigest()
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["digest"] == digest:
            return found
    print(f"leaving out {run.rs.name} and {run.photo.name}", file=sys.stderr, flush=True)
    row = _trained(run, pool, config, folder, prepared, machine) | {"digest": digest}
    path.write_text(json.dumps(row, indent=1) + "\n")
    return row


def _trained(
    run: Run, pool: Sequence[Picture], config: Config, folder: Path, prepared: Path, machine: Machine
) -> dict[str, Any]:
    without = {*run.unseen, *run.absent}
    validation = chosen(pool, "validation", without)
    drawn_on = prepare(chosen(pool, "train"), config, prepared, machine, without)
    state = train(drawn_on, validation, config, folder, machine)
    detector, temperature = finished(state.average, drawn_on, validation, config, machine.device)
    save(detector.model, config.model, folder / "model")
    return judge(run, pool, detector) | {"temperature": temperature}


def judge(run: Run, pool: Sequence[Picture], detector: Detector) -> dict[str, Any]:
    """The figures of a run: on unseen sources, on test images of seen ones, and on the pairs of sources."""
    seen = chosen(pool, "test", {*run.unseen, *run.absent})
    unseen = [picture for picture in pool if picture.source in run.unseen]
    pictures = [*seen, *unseen]
    scores, labels = detector.scores(picture.pixels for picture in pictures), labels_of(pictures)
    cut = len(seen)
    return {
        "rs": run.rs.name,
        "photo": run.photo.name,
        "sources": [*run.rs.sources, *run.photo.sources],
        "drawn": list(run.drawn),
        "absent": list(run.absent),
        "unseen": metrics.summary(scores[cut:], labels[cut:]),
        "seen": metrics.summary(scores[:cut], labels[:cut]),
        "unseen_sources": by_source(unseen, scores[cut:]),
        "pairs": pairs(run.rs.sources, pictures, scores),
    }


def pairs(rs: Collection[str], pictures: Sequence[Picture], scores: metrics.Scores) -> dict[str, dict[str, float]]:
    """The left-out sources of remote sensing against each source of the other class (drawn kinds together)."""
    names = np.array([family(picture.source) for picture in pictures])
    labels = labels_of(pictures)
    table = {}
    for other in dict.fromkeys(names[labels == 0].tolist()):
        inside = np.isin(names, list(rs)) | (names == other)
        table[other] = {
            "balanced_accuracy": metrics.balanced_accuracy(scores[inside], labels[inside]),
            "auc": metrics.auc(scores[inside], labels[inside]),
        }
    return table


def overall(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the runs on unseen sources, and the least accuracy of any."""
    worst: dict[str, float] = {}
    for row in rows:
        for source, found in row["unseen_sources"].items():
            worst[source] = min(worst.get(source, 1.0), found["accuracy"])
    return {
        "unseen_balanced_accuracy": float(np.mean([row["unseen"]["balanced_accuracy"] for row in rows])),
        "unseen_auc": float(np.mean([row["unseen"]["auc"] for row in rows])),
        "unseen_calibration_error": float(np.mean([row["unseen"]["calibration_error"] for row in rows])),
        "seen_balanced_accuracy": float(np.mean([row["seen"]["balanced_accuracy"] for row in rows])),
        "least_by_source": dict(sorted(worst.items(), key=lambda item: item[1])),
    }
