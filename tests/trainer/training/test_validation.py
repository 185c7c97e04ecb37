from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.data import encoded, write_tar
from tests.trainer.training import ALONE, made
from trainer.data import open_index
from trainer.training.validation import Validation


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty pictures of noise, of which every two have the same text."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("repeating")
    members = []
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        members.append((f"{number:03d}.png", encoded(Image.fromarray(pixels))))
        members.append((f"{number:03d}.txt", f"scene of kind {number // 2}".encode()))
    return str(write_tar(folder / "part.tar", members))


def straightforward(scores: np.ndarray, right: np.ndarray) -> list[float]:
    """Recalls at 1, 5 and 10, in percent."""
    ranked = np.take_along_axis(right, np.argsort(-scores, axis=1), axis=1)
    return [100 * float(ranked[:, :k].any(axis=1).mean()) for k in (1, 5, 10)]


def test_figures_are_those_of_a_straightforward_judge(tiny: Path, repeating: str) -> None:
    clip = made(tiny)
    clip.train()
    judge = Validation(open_index([repeating]), clip, ALONE, workers=0)
    found = judge.figures()
    assert clip.model.training
    (batch,) = list(judge.loader.batches(1))
    clip.model.eval()
    with torch.no_grad():
        images, texts = clip.encode(batch.images, batch.tokens)
    scale = clip.model.logit_scale.exp().item()
    own = torch.arange(20)
    both = [torch.nn.functional.cross_entropy(scale * table, own) for table in (images @ texts.T, texts @ images.T)]
    assert found["loss"] == pytest.approx(float(sum(both)) / 2, abs=1e-5)
    _, first, of = np.unique(batch.texts, return_index=True, return_inverse=True)
    scores = (images @ texts[first[of]].T).numpy()  # equal texts have equal scores, and are all right or all wrong
    right = of[:, None] == of[None, :]
    forth, back = straightforward(scores, right), straightforward(scores.T, right.T)
    assert [found[f"i2t/R@{k}"] for k in (1, 5, 10)] == pytest.approx(forth)
    assert [found[f"t2i/R@{k}"] for k in (1, 5, 10)] == pytest.approx(back)
    assert found["mR"] == pytest.approx(np.mean(forth + back))


def test_a_bound_takes_whole_batches_and_the_same_ones_every_time(tiny: Path, repeating: str) -> None:
    judge = Validation(open_index([repeating]), made(tiny, validation_samples=5), ALONE, workers=0)
    assert judge.batches == 1
    assert judge.figures() == judge.figures()
