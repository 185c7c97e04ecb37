"""Changes of a whole batch of prepared pictures: cheap enough for every step."""

from __future__ import annotations

from math import cos, radians, sin
from typing import Any

import numpy as np

from trainer.detector.augment import LUMA


def turned(images: Any, rng: np.random.Generator) -> Any:
    """A batch (n, side, side, 3) turned by quarters, at times mirrored: any of the square's eight symmetries."""
    images = images.rot90(int(rng.integers(4)), (1, 2))
    return images.flip(2) if rng.random() < 0.5 else images


def zoomed(inputs: Any, rng: np.random.Generator, least: float) -> Any:
    """A batch (n, 3, side, side) cut to one square window of at least so large a share of the side."""
    whole = inputs.shape[-1]
    side = round(whole * float(rng.uniform(least, 1.0)))
    top, left = (int(rng.integers(0, whole - side + 1)) for _ in range(2))
    return inputs[..., top : top + side, left : left + side]


def askew(inputs: Any, degrees: float) -> Any:
    """A batch (n, 3, side, side) turned by so many degrees; the largest centre square without corners, enlarged."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    turn = radians(degrees)
    share = 1 / (abs(cos(turn)) + abs(sin(turn)))
    rows = [[share * cos(turn), -share * sin(turn), 0.0], [share * sin(turn), share * cos(turn), 0.0]]
    matrix = torch.tensor([rows], dtype=inputs.dtype, device=inputs.device).expand(len(inputs), 2, 3)
    grid = affine_grid(matrix, list(inputs.shape), align_corners=False)
    return grid_sample(inputs, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def greyed(inputs: Any, rng: np.random.Generator, share: float) -> Any:
    """A batch (n, 3, side, side), each picture grey (its luma) with a probability of `share`."""
    import torch

    chosen = torch.from_numpy(rng.random(len(inputs)) < share).to(inputs.device)
    weights = torch.tensor(LUMA, dtype=inputs.dtype, device=inputs.device)
    luma = torch.einsum("nchw,c->nhw", inputs, weights)[:, None].expand_as(inputs)
    return torch.where(chosen[:, None, None, None], luma, inputs)


def resized(inputs: Any, size: int) -> Any:
    """A batch (n, 3, side, side) of another side."""
    from torch.nn.functional import interpolate

    if inputs.shape[-1] == size:
        return inputs
    smaller = inputs.shape[-1] > size
    return interpolate(inputs, size=size, mode="bilinear", antialias=smaller, align_corners=False)
