"""What gradients, texture and colours say of a picture, in 444 numbers that nobody trained, and a perceptron over them.

A detector's folder may hold such a perceptron (`descriptors.safetensors`) beside its network: what the two say is
added. A network that learns from two dozen sources learns the sources too; a perceptron over plain statistics does so
far less. The trainer writes the file and the pipeline reads it; both compute the numbers here, and neither imports the
other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional

from descriptors import cells, texture

FILE: Final = "descriptors.safetensors"
"""In a detector's folder: `mean`, `deviation` (WIDTH), `hidden.weight` (hidden, WIDTH), `hidden.bias`, `out.weight`
(classes, hidden) and `out.bias`, float32."""
NAMES: Final = ("mean", "deviation", "hidden.weight", "hidden.bias", "out.weight", "out.bias")
WIDTH: Final = cells.WIDTH + cells.SORTED + texture.WIDTH
AT_ONCE: Final = 32
"""Pictures of a batch that a CPU scores at a time: more fall out of its cache, fewer suit its convolutions less."""
CLIP: Final = 4.0
"""Standardised descriptors are held within so many deviations: no odd picture outvotes the network."""
LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness (ITU-R BT.601)."""


def describe(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 3, height, width) in 0–1, at least 32 px a side, to (n, WIDTH), float32."""
    pixels = pixels.float()
    grey = torch.einsum("nchw,c->nhw", pixels, torch.tensor(LUMA, device=pixels.device))
    return torch.cat([cells.describe_cells(pixels, grey), texture.describe_texture(pixels, grey)], 1)


class Beside(torch.nn.Module):
    """A classifier, and a perceptron over descriptors whose outputs are added to its own."""

    mean: torch.Tensor
    deviation: torch.Tensor
    input_mean: torch.Tensor
    input_std: torch.Tensor

    def __init__(self, network: Any, perceptron: dict[str, torch.Tensor], mean: Any, std: Any) -> None:
        """`perceptron` is what FILE holds; `mean` and `std` are those by which the network's input was normalised."""
        super().__init__()
        self.network = network
        classes, hidden = perceptron["out.weight"].shape
        self.hidden, self.out = torch.nn.Linear(WIDTH, hidden), torch.nn.Linear(hidden, classes)
        for name in ("mean", "deviation"):
            self.register_buffer(name, perceptron[name].float())
        for layer in ("hidden", "out"):
            held = {name: perceptron[f"{layer}.{name}"].float() for name in ("weight", "bias")}
            getattr(self, layer).load_state_dict(held)
        self.register_buffer("input_mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("input_std", torch.tensor(std).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, 3, height, width), normalised, to (n, classes) in float32."""
        at_once = AT_ONCE if inputs.device.type == "cpu" else max(len(inputs), 1)
        return torch.cat([self.network(part).float() + self.perceived(part) for part in inputs.split(at_once)])

    def perceived(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the perceptron says, without the network."""
        with torch.autocast(inputs.device.type, enabled=False):
            described = describe(self._pixels(inputs))
            held = functional.relu(self.hidden(standardised(described, self.mean, self.deviation)))
            found: torch.Tensor = self.out(held)
        return found

    def _pixels(self, inputs: torch.Tensor) -> torch.Tensor:
        """As they were in 0-1, whatever normalising and half precision made of them."""
        pixels = torch.addcmul(self.input_mean, inputs.float().contiguous(), self.input_std)
        return pixels.mul_(255).round_().div_(255)

    def scale(self, factor: float) -> None:
        """Multiply the perceptron's outputs, in place."""
        self.out.weight.mul_(factor)
        self.out.bias.mul_(factor)

    def perceptron(self) -> dict[str, torch.Tensor]:
        """What FILE holds."""
        held = self.state_dict()
        return {name: held[name].cpu() for name in NAMES}


def standardised(described: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Of mean 0 and deviation 1 over the training's pictures, within CLIP."""
    return ((described - mean) / deviation).clamp(-CLIP, CLIP)


def beside(network: Any, folder: Path, mean: Any, std: Any) -> Any:
    """The network as it is, or with the perceptron that its folder holds; to be called once it is on its device.

    Raises:
        ValueError: the file is no such perceptron.
    """
    path = folder / FILE
    if not path.is_file():
        return network
    from safetensors.torch import load

    held = load(path.read_bytes())
    if set(held) != set(NAMES) or held["hidden.weight"].shape[-1] != WIDTH:
        raise ValueError(f"{path}: a perceptron over {WIDTH} descriptors is wanted ({', '.join(NAMES)})")
    device = next(network.parameters()).device
    return Beside(network, held, mean, std).to(device).eval()
