from __future__ import annotations

import numpy as np
import pytest
import torch

from descriptors import NAMES, WIDTH
from trainer.detector.perceptron import fit


def described(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two views of pictures whose label is whether two of their numbers have one sign: no layer alone tells it."""
    rng = np.random.default_rng(seed)
    two = rng.normal(size=(count, 2)).astype(np.float32)
    labels = (two.prod(1) > 0).astype(np.int64)
    numbers = np.repeat(two, WIDTH // 2, axis=1)
    return np.stack([numbers, numbers + 0.05 * rng.normal(size=numbers.shape).astype(np.float32)]), labels


def said(found: dict[str, torch.Tensor], numbers: np.ndarray) -> np.ndarray:
    plain = ((torch.from_numpy(numbers) - found["mean"]) / found["deviation"]).clamp(-4, 4)
    hidden = (plain @ found["hidden.weight"].T + found["hidden.bias"]).clamp(min=0)
    outputs = hidden @ found["out.weight"].T + found["out.bias"]
    return (outputs[:, 1] - outputs[:, 0]).numpy()


def test_it_learns_what_a_linear_layer_cannot() -> None:
    views, labels = described(4000, 0)
    unseen, wanted = described(1000, 1)
    found = fit(views, labels, 0)
    assert set(found) == set(NAMES)
    assert ((said(found, unseen[0]) > 0) == wanted).mean() > 0.9


def test_the_seed_decides_the_weights() -> None:
    views, labels = described(300, 0)
    first, again, other = (fit(views, labels, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in NAMES)
    assert not torch.equal(first["hidden.weight"], other["hidden.weight"])


def test_a_number_that_never_varies_does_no_harm() -> None:
    views, labels = described(300, 0)
    views[:, :, 7] = 2.0
    found = fit(views, labels, 0)
    assert np.isfinite(said(found, views[0])).all()
    assert found["deviation"][7] == pytest.approx(1e-4)
