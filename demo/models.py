"""Tiny models in the libraries' own folder formats: an open_clip CLIP and a timm classifier.

What is built here loads with `open_clip.create_model("local-dir:FOLDER")` and
`timm.create_model("local-dir:FOLDER", pretrained=True)`, as a researcher's own models do.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""A vision transformer of 64 px input and a text tower on CLIP's own vocabulary: 1.8 M parameters."""

CLIP_PREPROCESS: dict[str, Any] = {
    "size": [64, 64],
    "mode": "RGB",
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}

DETECTOR_ARCHITECTURE = "test_resnet"
DETECTOR_SIZE = 64
DETECTOR_LABELS = ("other", "rs")


def new_open_clip(seed: int = 0, config: dict[str, Any] | None = None) -> Any:
    """An untrained open_clip model (`torch.nn.Module`, fp32, CPU); torch's global generator is left alone."""
    import torch
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(**deepcopy(config or CLIP_CONFIG)).eval()


def save_open_clip(model: Any, folder: str | Path, config: dict[str, Any] | None = None) -> Path:
    """Write an open_clip folder: `open_clip_config.json` and `open_clip_model.safetensors`."""
    folder = Path(folder)
    described = {"model_cfg": config or CLIP_CONFIG, "preprocess_cfg": CLIP_PREPROCESS}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    _save_weights(model, folder / "open_clip_model.safetensors")
    return folder


def make_open_clip(folder: str | Path, seed: int = 0) -> Path:
    """An open_clip folder of a tiny model with random weights that `seed` fixes; returns the folder."""
    return save_open_clip(new_open_clip(seed), folder)


def new_detector(seed: int = 0, architecture: str = DETECTOR_ARCHITECTURE) -> Any:
    """An untrained timm classifier of two classes, `DETECTOR_LABELS` in this order."""
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(architecture, num_classes=len(DETECTOR_LABELS)).eval()


def save_detector(model: Any, folder: str | Path, labels: tuple[str, ...] = DETECTOR_LABELS) -> Path:
    """Write a timm folder, `config.json` and `model.safetensors`; `label_names` says which output is RS."""
    folder = Path(folder)
    described = {
        "architecture": model.pretrained_cfg["architecture"],
        "num_classes": len(labels),
        "num_features": model.num_features,
        "label_names": list(labels),
        "pretrained_cfg": {
            "input_size": [3, DETECTOR_SIZE, DETECTOR_SIZE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": len(labels),
            "first_conv": model.pretrained_cfg["first_conv"],
            "classifier": model.pretrained_cfg["classifier"],
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    _save_weights(model, folder / "model.safetensors")
    return folder


def make_detector(folder: str | Path, seed: int = 0, labels: tuple[str, ...] = DETECTOR_LABELS) -> Path:
    """A timm folder of a tiny classifier with random weights that `seed` fixes; returns the folder."""
    return save_detector(new_detector(seed), folder, labels)


def _save_weights(model: Any, path: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
