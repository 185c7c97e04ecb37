"""Texture at several scales, and how the channels go together: nothing that depends on where in the picture it is."""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional

from descriptors.cells import deviation

SCALES: Final = 4
"""The picture, and that at a half, a quarter and an eighth of its size."""
FINE: Final = 3
"""So many scales are large enough for coherence and neighbours."""
QUANTILES: Final = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
SAMPLED: Final = 900
"""Gradients of a picture, about, that its quantiles are taken from."""
COHERENT: Final = (0.3, 0.6, 0.85)
NEIGHBOURS: Final = tuple((down, across) for down in (-1, 0, 1) for across in (-1, 0, 1) if (down, across) != (0, 0))
BRIGHTER: Final = 0.01
"""By how much, of 1, a neighbour must be brighter to count."""
WIDTH: Final = SCALES * (1 + len(QUANTILES)) + FINE * (2 + len(COHERENT) + 9) + 7


def describe_texture(pixels: torch.Tensor, grey: torch.Tensor) -> torch.Tensor:
    """(n, 3, height, width) and their brightness (n, height, width) to (n, WIDTH).

    At each scale: the logarithm of the mean gradient, and quantiles of the gradient over its mean, which tell an even
    texture from a subject before a blurred ground. At the finer ones: how far gradients of a neighbourhood share a
    direction (the structure tensor's coherence), how unevenly they lie, and the shares of pixels with 0 to 8 brighter
    neighbours (after Ojala et al. 2002). Of the channels: correlations, means and deviations of their differences.
    """
    plane, told = grey[:, None], []
    for scale in range(SCALES):
        across = plane[..., 1:-1, 2:] - plane[..., 1:-1, :-2]
        down = plane[..., 2:, 1:-1] - plane[..., :-2, 1:-1]
        told.append(_strengths(torch.hypot(across, down).flatten(1)))
        if scale < FINE:
            told += [_coherence(across, down, 5 if scale else 7), _neighbours(plane)]
        plane = functional.avg_pool2d(plane, 2)
    return torch.cat([*told, _channels(pixels)], 1)


def _strengths(strength: torch.Tensor) -> torch.Tensor:
    drawn = strength[:, :: max(1, strength.shape[1] // SAMPLED)].sort(1).values
    drawn = drawn / (drawn.mean(1, keepdim=True) + 1e-4)
    at = [int(share * (drawn.shape[1] - 1)) for share in QUANTILES]
    return torch.cat([torch.log(strength.mean(1, keepdim=True) + 1e-3), drawn[:, at]], 1)


def _coherence(across: torch.Tensor, down: torch.Tensor, side: int) -> torch.Tensor:
    """Over windows of `side` px, weighted by their gradient: the mean, and the share above each of COHERENT."""
    products = torch.cat([across * across, down * down, across * down], 1)
    if min(products.shape[-2:]) >= side:
        products = functional.avg_pool2d(products, side, stride=side // 2)
    xx, yy, xy = products.flatten(2).unbind(1)
    strength = (xx + yy).sqrt()
    coherence = torch.sqrt((xx - yy) ** 2 + 4 * xy**2) / (xx + yy + 1e-4)
    share = strength / (strength.sum(1, keepdim=True) + 1e-4)
    told = [(coherence * share).sum(1)] + [((coherence > least) * share).sum(1) for least in COHERENT]
    spread = strength.std(1, correction=0) / (strength.mean(1) + 1e-4)
    return torch.stack([*told, spread], 1)


def _neighbours(plane: torch.Tensor) -> torch.Tensor:
    height, width = plane.shape[-2:]
    centre = plane[..., 1:-1, 1:-1] + BRIGHTER
    brighter = torch.zeros_like(centre, dtype=torch.uint8)
    for down, across in NEIGHBOURS:
        brighter += plane[..., 1 + down : height - 1 + down, 1 + across : width - 1 + across] > centre
    counts = [torch.bincount(picture, minlength=len(NEIGHBOURS) + 1) for picture in brighter.flatten(1)]
    return torch.stack(counts).float() / brighter[0].numel()


def _channels(pixels: torch.Tensor) -> torch.Tensor:
    red, green, blue = pixels.flatten(2).unbind(1)
    first, second = red - green, green - blue
    told = [_correlation(red, green), _correlation(green, blue), _correlation(red, blue)]
    return torch.stack([*told, first.mean(1), second.mean(1), deviation(first), deviation(second)], 1)


def _correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    one, other = one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True)
    spread = (one * one).mean(1).sqrt() * (other * other).mean(1).sqrt()
    return (one * other).mean(1) / (spread + 1e-4)
