"""The classifier: built by timm without weights, saved as a timm folder in half precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector.config import LABELS, Model
from trainer.detector.images import Pixels
from trainer.errors import UserError

MEAN = STD = (0.5, 0.5, 0.5)
BATCH = 128
"""Images a forward pass, when scoring."""
DEAD = 1e-3
"""Variance below which a channel before a batch normalisation counts as constant."""


def build(model: Model, seed: int) -> Any:
    """An untrained classifier of two outputs (`LABELS`), in channels-last memory; the seed fixes its weights.

    Raises:
        UserError: timm knows no such architecture, or its classifier is no single layer.
    """
    import timm
    import torch

    if model.architecture not in timm.list_models():
        raise UserError(f"model.architecture: timm has no {model.architecture!r}; `timm.list_models()` lists its names")
    torch.manual_seed(seed)
    options: dict[str, Any] = {"drop_path_rate": model.drop_path} if model.drop_path else {}
    built = timm.create_model(model.architecture, num_classes=len(LABELS), pretrained=False, **options)
    _start_undecided(built)
    return built.to(memory_format=torch.channels_last)


def _last_layer(model: Any) -> Any:
    import torch

    last = model.get_classifier()
    if not isinstance(last, torch.nn.Linear | torch.nn.Conv2d):
        raise UserError(f"model.architecture: the classifier is a {type(last).__name__}; a linear last layer is wanted")
    return last


def _start_undecided(model: Any) -> None:
    """Small last weights: some architectures start with log-odds of ±10 for two classes, and lose hundreds of steps."""
    import torch

    last = _last_layer(model)
    torch.nn.init.normal_(last.weight, std=0.01)
    if last.bias is not None:
        torch.nn.init.zeros_(last.bias)


def divide_logits(model: Any, temperature: float) -> None:
    """Fold a temperature into the last layer (and the perceptron's), in place: logits come out divided by it.

    Raises:
        UserError: the architecture's classifier is no single layer with weight and bias.
    """
    import torch

    from descriptors import Beside

    if isinstance(model, Beside):
        model.scale(1 / temperature)
        model = model.network
    last = _last_layer(model)
    with torch.no_grad():
        last.weight /= temperature
        if last.bias is not None:
            last.bias /= temperature


def silence_dead_channels(model: Any) -> int:
    """Fix batch-normalised channels that hardly varied over the training pictures at their mean, in place; how many.

    Such a channel says nothing about pictures like those of the training, yet on a picture unlike them its tiny
    variance multiplies whatever it says by hundreds, block after block: some photographs got log-odds of -300,000.
    """
    import torch

    silenced = 0
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d) and layer.running_var is not None:
            dead = layer.running_var < DEAD
            layer.weight.data[dead] = 0.0
            silenced += int(dead.sum())
    return silenced


def save(model: Any, described: Model, folder: Path) -> Path:
    """Write `config.json` and `model.safetensors` (float16), as `timm.create_model("local-dir:…")` reads them.

    A perceptron over descriptors goes into a file of its own.
    """
    import torch
    from safetensors.torch import save as to_bytes

    from descriptors import FILE, Beside

    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    if isinstance(model, Beside):
        (folder / FILE).write_bytes(to_bytes(model.perceptron()))
        model = model.network
    config = {
        "architecture": described.architecture,
        "num_classes": len(LABELS),
        "num_features": model.num_features,
        "label_names": list(LABELS),
        "pretrained_cfg": {
            "input_size": [3, described.size, described.size],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(MEAN),
            "std": list(STD),
            "num_classes": len(LABELS),
            "first_conv": model.pretrained_cfg["first_conv"],
            "classifier": model.pretrained_cfg["classifier"],
        },
    }
    halves = {
        name: (value.to(torch.float16) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "model.safetensors").write_bytes(to_bytes(halves))
    return folder


def load(folder: Path, device: str = "cpu") -> tuple[Any, Callable[[Any], Any]]:
    """(model in evaluation mode, its transform from a PIL image to a normalised tensor), both as timm reads the folder.

    With the perceptron over descriptors, where the folder holds one.

    Raises:
        UserError: the folder is not such a model.
    """
    from timm.data import create_transform, resolve_data_config

    from descriptors import beside

    network = load_network(folder, device)
    transform = create_transform(**resolve_data_config({}, model=network), is_training=False)
    return beside(network, folder, MEAN, STD), transform


def load_network(folder: Path, device: str = "cpu") -> Any:
    """The network alone, in evaluation mode.

    Raises:
        UserError: the folder is not such a model.
    """
    import timm
    import torch

    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise UserError(f"--model {folder}: config.json and model.safetensors are wanted there")
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return network.eval().to(device).to(memory_format=torch.channels_last)


def transform_for(described: Model) -> Callable[[Any], Any]:
    """The transform that a saved model of this description asks for."""
    from timm.data import create_transform

    return create_transform(
        input_size=(3, described.size, described.size),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
        mean=MEAN,
        std=STD,
        is_training=False,
    )


def normalised(images: Any) -> Any:
    """(n, size, size, 3) uint8 to (n, 3, size, size) float, as the saved config's mean and std say."""
    return (images.permute(0, 3, 1, 2).float() / 255.0 - MEAN[0]) / STD[0]


def score(
    model: Any, transform: Callable[[Any], Any], pictures: Iterable[Pixels], device: str = "cpu"
) -> NDArray[np.float64]:
    """The log-odds of `rs` for each picture: the second output less the first."""
    from PIL import Image

    found: list[NDArray[np.float64]] = []
    held: list[Any] = []
    for pixels in pictures:
        held.append(transform(Image.fromarray(pixels)))
        if len(held) == BATCH:
            found.append(forward(model, held, device))
            held = []
    if held:
        found.append(forward(model, held, device))
    return np.concatenate(found) if found else np.zeros(0)


def forward(model: Any, tensors: Sequence[Any], device: str) -> NDArray[np.float64]:
    """Log-odds of a list of prepared images."""
    import torch

    with torch.inference_mode():
        batch = torch.stack(list(tensors)).to(device, memory_format=torch.channels_last)
        outputs = model(batch).double()
    return (outputs[:, 1] - outputs[:, 0]).cpu().numpy()
