"""What the shipped detector says of real images when they are decoded at a smaller scale, or when it runs in bfloat16.

    CURATION_REAL_DATA=… python -m benchmarks.precision [--images 300] [--out precision.json]

Log-odds beside those of whole decoding in float32, by set of images: mean and largest difference, of log-odds and of
probabilities, and how many images change sides at a probability of a half.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.scorers import DetectorConfig, DetectorScorer, score_batches

SETS = ("rs/aid", "rs/hurricane", "photo/flickr8k", "photo/imagenet")
BATCH = 32


def bodies(folder: Path, count: int) -> list[bytes]:
    """So many JPEGs, evenly out of all in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]


def log_odds(images: list[bytes], config: DetectorConfig) -> NDArray[np.float64]:
    """The detector's log-odds."""
    scorer = DetectorScorer(config)
    preprocess = replace(scorer.preprocess(), reduced=config.reduced)
    read, run = preprocess.read(), scorer.load(preprocess)
    scores = score_batches(run, BATCH, [read(data) for data in images], [""] * len(images), scorer.columns)
    return np.asarray(scores["detector_logit"].to_numpy(zero_copy_only=False), dtype=np.float64)


def compared(plain: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, Any]:
    """How far `other` is from `plain`."""
    odds, chances = np.abs(other - plain), np.abs(_sigmoid(other) - _sigmoid(plain))
    return {
        "images": len(plain),
        "log_odds": {"mean": float(odds.mean()), "largest": float(odds.max())},
        "probability": {"mean": float(chances.mean()), "largest": float(chances.max())},
        "changed_sides": int(((plain > 0) != (other > 0)).sum()),
    }


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-values))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("CURATION_REAL_DATA"), help="folder of real images")
    parser.add_argument("--images", type=int, default=300, help="of each set")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data or CURATION_REAL_DATA is wanted")
    found: dict[str, Any] = {}
    for name in SETS:
        images = bodies(options.data / name, options.images)
        plain = log_odds(images, DetectorConfig(precision="fp32"))
        found[name] = {
            "reduced": compared(plain, log_odds(images, DetectorConfig(precision="fp32", reduced=True))),
            "bfloat16": compared(plain, log_odds(images, DetectorConfig(precision="bf16"))),
        }
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
