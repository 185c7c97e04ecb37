"""Images per second of processor time, of an architecture on CPU, after decoding and resizing."""

from __future__ import annotations

import time
from dataclasses import replace

from trainer.detector.config import LABELS, Model
from trainer.detector.model import BATCH, MEAN, STD, build


def images_per_second(described: Model, threads: int, seconds: float) -> dict[str, float]:
    """Forward passes of full batches in float32, channels last, per second of processor time (all threads together).

    Raises:
        UserError: timm knows no such architecture.
    """
    import torch

    from descriptors import WIDTH, Beside
    from trainer.detector.perceptron import HIDDEN

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = build(replace(described, drop_path=0.0), 0).eval()
        if described.descriptors:
            held = {"mean": torch.zeros(WIDTH), "deviation": torch.ones(WIDTH)}
            for name, shape in (("hidden", (HIDDEN, WIDTH)), ("out", (len(LABELS), HIDDEN))):
                held |= {f"{name}.weight": torch.zeros(shape), f"{name}.bias": torch.zeros(shape[0])}
            model = Beside(model, held, MEAN, STD)
        batch = torch.zeros(BATCH, 3, described.size, described.size).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            model(batch)
            passes, began = 0, time.process_time()
            while time.process_time() - began < seconds:
                model(batch)
                passes += 1
            took = time.process_time() - began
    finally:
        torch.set_num_threads(before)
    return {
        "parameters": float(sum(weight.numel() for weight in model.parameters())),
        "images_per_second": passes * BATCH / took,
        "threads": float(threads),
    }
