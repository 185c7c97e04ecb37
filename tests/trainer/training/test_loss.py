from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from tests.trainer.training import ALONE
from trainer.training.loss import contrastive, repeated, text_ids


def features(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def straightforward(images: torch.Tensor, texts: torch.Tensor, scale: float, positives: list[set[int]]) -> float:
    """Each sample's mean negative log probability of its positives, one at a time, in float64."""
    scores = scale * images.double().numpy() @ texts.double().numpy().T
    terms = []
    for table in (scores, scores.T):
        for own, row in enumerate(table):
            chances = np.exp(row) / np.exp(row).sum()
            terms.append(-np.mean([np.log(chances[other]) for other in positives[own]]))
    return float(np.mean(terms))


def test_the_loss_is_the_mean_cross_entropy_of_both_directions() -> None:
    images, texts = features(6, 1), features(6, 2)
    found = contrastive(images, texts, torch.tensor(14.3), ALONE)
    assert abs(float(found) - straightforward(images, texts, 14.3, [{at} for at in range(6)])) < 1e-5


def test_samples_of_the_same_text_share_the_target() -> None:
    images, texts = features(5, 1), features(5, 2)
    ids = text_ids(["a lake", "a wood", "a lake ", "a hill", "a lake"])
    found = contrastive(images, texts, torch.tensor(9.0), ALONE, ids)
    lakes = {0, 2, 4}
    assert abs(float(found) - straightforward(images, texts, 9.0, [lakes, {1}, lakes, {3}, lakes])) < 1e-5


def test_without_repeated_texts_multi_positives_change_nothing() -> None:
    images, texts = features(4, 3), features(4, 4)
    ids = text_ids(["a", "b", "c", "d"])
    plain, shared = (contrastive(images, texts, torch.tensor(20.0), ALONE, each) for each in (None, ids))
    torch.testing.assert_close(plain, shared)


def test_the_share_of_repeated_texts() -> None:
    assert float(repeated(text_ids(["a", "b", "a", "c", "a", "c", "d", "e"]))) == 5 / 8
    assert float(repeated(text_ids(["a", "b"]))) == 0
    assert text_ids(["é "]).tolist() == text_ids(["é"]).tolist()
