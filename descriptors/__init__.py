"""What a picture's gradients and colours say of it, in 295 numbers that nobody trained, and a linear layer over them.

A detector's folder may hold such a layer (`descriptors.safetensors`) beside its network: what the two say is added. A
network that learns from a dozen sources learns the sources too; a linear layer over plain statistics hardly can. The
trainer writes the file and the pipeline reads it; both compute the numbers here, and neither imports the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional

FILE: Final = "descriptors.safetensors"
"""In a detector's folder: `mean`, `deviation` (WIDTH), `weight` (classes, WIDTH) and `bias` (classes), float32."""
CELLS: Final = 4
"""Gradients, brightness and contrast are told of so many cells a side."""
DIRECTIONS: Final = 8
LEVELS: Final = 4
"""Of each channel in the histogram of colours."""
WIDTH: Final = CELLS * CELLS * (DIRECTIONS + 3 + 3) + LEVELS**3 + 7
AT_ONCE: Final = 8
"""Pictures of a batch that are described at a time: so many stay in a processor's cache, which takes half the time."""
CLIP: Final = 4.0
"""Standardised descriptors are held within so many deviations: no odd picture outvotes the network."""
LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness (ITU-R BT.601)."""


def describe(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 3, height, width) in 0–1, at least 8 px a side, to (n, WIDTH), float32.

    Of 4 x 4 cells: the share of all gradient in each of eight directions (after Dalal & Triggs 2005, normalised over
    the picture), mean and deviation of each channel. Of the whole: a histogram of 64 colours, mean and deviation of
    saturation and brightness, shares of almost black and almost white, and of pixels that equal the one above.
    """
    pixels = pixels.float()
    grey = torch.einsum("nchw,c->nhw", pixels, torch.tensor(LUMA, device=pixels.device))
    mean = functional.adaptive_avg_pool2d(pixels, CELLS)
    contrast = (functional.adaptive_avg_pool2d(pixels**2, CELLS) - mean**2).clamp(min=0).sqrt()
    saturation = pixels.amax(1) - pixels.amin(1)
    whole = [saturation.mean((1, 2)), saturation.std((1, 2)), grey.mean((1, 2)), grey.std((1, 2))]
    whole += [_share(grey < 0.05), _share(grey > 0.95), _share((pixels.diff(dim=2) == 0).all(1))]
    parts = [_gradients(grey), mean.flatten(1), contrast.flatten(1), _colours(pixels), torch.stack(whole, 1)]
    return torch.cat(parts, 1)


def _share(where: torch.Tensor) -> torch.Tensor:
    return where.float().mean((1, 2))


def _gradients(grey: torch.Tensor) -> torch.Tensor:
    """(n, height, width) to (n, directions * cells): each one's share of the picture's gradient."""
    across = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    down = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    turn = torch.atan2(down, across).remainder(torch.pi) * (DIRECTIONS / torch.pi)
    direction = turn.long().clamp(max=DIRECTIONS - 1)[:, None]
    strength = torch.hypot(across, down)[:, None]
    planes = torch.zeros(len(grey), DIRECTIONS, *across.shape[1:], device=grey.device).scatter_(1, direction, strength)
    found = functional.adaptive_avg_pool2d(planes, CELLS).flatten(1)
    return found / (found.sum(1, keepdim=True) + 1e-6)


def _colours(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 64): the share of every other pixel of every other row in each of 4 x 4 x 4 colours."""
    level = (pixels[:, :, ::2, ::2] * LEVELS).long().clamp(0, LEVELS - 1).flatten(2)
    colour = (level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]
    counts = torch.zeros(len(pixels), LEVELS**3, device=pixels.device)
    counts.scatter_add_(1, colour, torch.ones_like(colour, dtype=torch.float32))
    return counts / colour.shape[1]


class Beside(torch.nn.Module):
    """A classifier, and a linear layer over descriptors whose outputs are added to its own."""

    mean: torch.Tensor
    deviation: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    input_mean: torch.Tensor
    input_std: torch.Tensor

    def __init__(self, network: Any, layer: dict[str, torch.Tensor], mean: Any, std: Any) -> None:
        """`layer` is what FILE holds; `mean` and `std` are those by which the network's input was normalised."""
        super().__init__()
        self.network = network
        for name in ("mean", "deviation", "weight", "bias"):
            self.register_buffer(name, layer[name].float())
        self.register_buffer("input_mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("input_std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, 3, height, width), normalised, to (n, classes) in float32."""
        described = torch.cat([describe(self._pixels(part)) for part in inputs.split(AT_ONCE)])
        plain = standardised(described, self.mean, self.deviation)
        added: torch.Tensor = self.network(inputs).float() + functional.linear(plain, self.weight, self.bias)
        return added

    def _pixels(self, inputs: torch.Tensor) -> torch.Tensor:
        """As they were in 0-1, whatever normalising and half precision made of them."""
        pixels = torch.addcmul(self.input_mean, inputs.float().contiguous(), self.input_std)
        return pixels.mul_(255).round_().div_(255)

    def scale(self, factor: float) -> None:
        """Multiply the layer's outputs, in place."""
        self.weight *= factor
        self.bias *= factor

    def layer(self) -> dict[str, torch.Tensor]:
        """What FILE holds."""
        return {name: getattr(self, name).cpu() for name in ("mean", "deviation", "weight", "bias")}


def standardised(described: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Of mean 0 and deviation 1 over the training's pictures, within CLIP."""
    return ((described - mean) / deviation).clamp(-CLIP, CLIP)


def beside(network: Any, folder: Path, mean: Any, std: Any) -> Any:
    """The network as it is, or with the layer that its folder holds; to be called once the network is on its device.

    Raises:
        ValueError: the file is no such layer.
    """
    path = folder / FILE
    if not path.is_file():
        return network
    from safetensors.torch import load

    layer = load(path.read_bytes())
    if set(layer) != {"mean", "deviation", "weight", "bias"} or layer["weight"].shape[-1] != WIDTH:
        raise ValueError(f"{path}: mean, deviation, weight and bias of {WIDTH} descriptors are wanted")
    device = next(network.parameters()).device
    return Beside(network, layer, mean, std).to(device).eval()
