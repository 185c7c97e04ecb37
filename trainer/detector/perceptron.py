"""The perceptron over descriptors: one hidden layer, fitted in a minute."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HIDDEN = 512
PASSES = 120
"""Over the prepared pictures, each time in one of their views."""
BATCH = 512
STEPS = 9_600
"""At most: twice as many change nothing beyond chance."""
RATE = 2e-3
DECAY = 0.3
DROPPED = 0.4
"""Share of hidden units that a step does without; of the descriptors half as many."""
SMOOTHING = 0.1


def fit(described: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """What `descriptors.Beside` takes, from descriptors (views, n, WIDTH) and the labels of the n pictures.

    AdamW with half a cosine. Each step draws pictures, and a view of each. Standardisation is of the first view.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as log_loss

    from descriptors import WIDTH, standardised

    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 3])
    views = torch.from_numpy(described)
    mean, deviation = views[0].mean(0), views[0].std(0) + 1e-4
    views = standardised(views, mean, deviation)
    wanted = torch.from_numpy(labels).float() * (1 - SMOOTHING) + SMOOTHING / 2
    hidden, out = torch.nn.Linear(WIDTH, HIDDEN), torch.nn.Linear(HIDDEN, 1)
    dropouts = torch.nn.Dropout(DROPPED / 2), torch.nn.Dropout(DROPPED)
    weights = [*hidden.parameters(), *out.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY)
    steps = min(STEPS, max(1, PASSES * len(labels) // BATCH))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(labels), BATCH))
        seen = views[torch.from_numpy(rng.integers(0, len(views), BATCH)), rows]
        found = out(dropouts[1](torch.relu(hidden(dropouts[0](seen)))))[:, 0]
        loss = log_loss(found, wanted[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    halves = torch.tensor([[-0.5], [0.5]])
    layers = {"hidden.weight": hidden.weight, "hidden.bias": hidden.bias}
    layers |= {"out.weight": halves * out.weight, "out.bias": halves[:, 0] * out.bias}
    return {"mean": mean, "deviation": deviation} | {name: value.detach() for name, value in layers.items()}
