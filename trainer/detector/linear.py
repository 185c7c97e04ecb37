"""Logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def logistic(inputs: Any, labels: NDArray[np.int64], weights: NDArray[np.float64], penalty: float) -> Any:
    """A linear layer of one output, the log-odds of label 1, fitted by L-BFGS.

    `inputs` is a float32 tensor (rows, width). The loss is the weighted mean log-loss and `penalty` times the squared
    weights.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as log_loss

    wanted = torch.from_numpy(labels).float()
    shares = torch.from_numpy(weights / weights.sum()).float()
    layer = torch.nn.Linear(inputs.shape[1], 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        found = log_loss(layer(inputs)[:, 0], wanted, weight=shares, reduction="sum")
        found = found + penalty * (layer.weight**2).sum()
        found.backward()
        return found

    optimizer.step(loss)
    return layer
