"""How good the weights are: loss and retrieval over validation samples, the same ones every time."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainer.data import Index, Loader, LoaderOptions
from trainer.evaluation.judge import tallies_of
from trainer.evaluation.retrieval import Side
from trainer.evaluation.zero_shot import unit_length
from trainer.training.loss import text_ids
from trainer.training.model import Clip
from trainer.training.world import World

BATCH = 64
"""Samples a rank encodes at once."""
ROWS = 1024
"""Of the table of scores that are held together."""


class Validation:
    """Judges a model on samples drawn from an index, `validation_samples` at most.

    With several ranks up to `ranks - 1` of them are left out.
    """

    def __init__(self, index: Index, clip: Clip, world: World, workers: int) -> None:
        options = LoaderOptions(
            batch_size=BATCH, size=clip.size, augment=None, captions=clip.config.captions, workers=workers
        )
        self.loader = Loader(index, options, rank=world.rank, ranks=world.ranks, tokenize=clip.tokenizer)
        self.clip, self.world = clip, world
        self.batches = -(-min(clip.config.validation_samples, len(index)) // (BATCH * world.ranks))

    def figures(self) -> dict[str, float]:
        """Loss (symmetric, over all samples at once) and recalls in percent; on the first rank alone.

        Recalls count every image of the same text as right (the duplicate-aware protocol of `trainer.evaluate`).
        """
        images, texts, ids = self._encoded()
        if not self.world.is_first:
            return {}
        loss = _loss(images, texts, self.clip.model.logit_scale.detach().exp())
        return {"loss": loss} | _recalls(images, texts, ids)

    def _encoded(self) -> tuple[Tensor, Tensor, Tensor]:
        self.clip.model.eval()
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.inference_mode():
            for batch in islice(self.loader.batches(1), self.batches):
                images, texts = self.clip.encode(batch.images, batch.tokens)
                found.append((images, texts, text_ids(batch.texts).to(self.clip.device)))
            images, texts, ids = (self.world.collected(torch.cat(side)) for side in zip(*found, strict=True))
        self.clip.train()
        return images, texts, ids


def _loss(images: Tensor, texts: Tensor, scale: Tensor) -> float:
    own = torch.arange(len(images), device=images.device)
    total = 0.0
    with torch.inference_mode():
        for queries, gallery in ((images, texts), (texts, images)):
            for start in range(0, len(own), ROWS):
                rows = slice(start, start + ROWS)
                scores = scale * queries[rows] @ gallery.T
                total += float(cross_entropy(scores, own[rows], reduction="sum"))
    return total / (2 * len(own))


def _recalls(images: Tensor, texts: Tensor, ids: Tensor) -> dict[str, float]:
    vectors = [unit_length(side.cpu().numpy().astype(np.float32)) for side in (images, texts)]
    _, first, of = np.unique(ids.cpu().numpy(), return_index=True, return_inverse=True)
    own = np.arange(len(vectors[0]))
    sides = Side(features=vectors[0], of=own), Side(features=vectors[1][first], of=of)
    tally = tallies_of([str(each) for each in own], *sides, own, aware=True)["expected"]
    return {name: 100 * float(value) for name, value in zip(tally.all_names, tally.values(), strict=True)}
