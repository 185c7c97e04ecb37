"""The symmetric contrastive loss (InfoNCE; Radford et al. 2021), over the samples of all ranks.

Each rank scores its own images against all texts and its own texts against all images. The mean of the ranks' losses is
the loss of the whole batch, and so is that of their gradients, since a gathered feature takes its gradient home.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from trainer.training.world import World


def contrastive(images: Tensor, texts: Tensor, scale: Tensor, world: World, ids: Tensor | None = None) -> Tensor:
    """This rank's part of the loss.

    Args:
        images: (n, d) features of unit length, n of them on every rank.
        texts: (n, d), those of their texts.
        scale: what cosines are multiplied by.
        world: the ranks.
        ids: (n,) numbers of the texts; where they are equal, samples are positives of each other, and each of a
            sample's positives has an equal share in its target (UniCL, Yang et al. 2022). None: only its own text is.
    """
    all_images, all_texts = world.gathered(images), world.gathered(texts)
    own = torch.arange(len(images), device=images.device) + world.rank * len(images)
    target = own if ids is None else _shares(ids, world.gathered(ids))
    to_text = cross_entropy(scale * images @ all_texts.T, target)
    to_image = cross_entropy(scale * texts @ all_images.T, target)
    return (to_text + to_image) / 2


def _shares(own: Tensor, everyone: Tensor) -> Tensor:
    """(n, all): each positive's share of a sample's target."""
    same = (own[:, None] == everyone[None, :]).float()
    return same / same.sum(dim=1, keepdim=True)


def text_ids(texts: Sequence[str]) -> Tensor:
    """(n,) a number for each text, the same for the same text on every rank."""
    digests = [hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).digest() for text in texts]
    return torch.tensor([int.from_bytes(each, "little", signed=True) for each in digests])


def repeated(ids: Tensor) -> Tensor:
    """The share of samples whose text another sample has, too; nothing here waits for the device."""
    ordered = ids.sort().values
    equal = ordered[1:] == ordered[:-1]
    return (pad(equal, (0, 1)) | pad(equal, (1, 0))).float().mean()
