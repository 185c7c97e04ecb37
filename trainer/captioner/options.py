"""What a training of a captioner is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UserError

TARGETS = ("self_attn.qkv", "self_attn.projection")
"""Modules that get LoRA: the attention of BLIP2's image encoder, and of nothing else."""
PRECISIONS = ("auto", "fp32", "bf16")
OPERATIONAL = frozenset(["out", "resume", "device", "workers", "checkpoint_every", "data", "val_data"])
"""What a resumed run may be told otherwise; other data is told by its digest."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The defaults are RS5M's, where its adapter's files and name tell them."""

    model: str
    """Hub id or transformers' folder of a BLIP2 with a decoder-only language model (OPT)."""
    data: tuple[str, ...]
    val_data: tuple[str, ...] = ()
    out: Path
    held_out: float = 0.1
    """Share of the images that is kept for METEOR, where there is neither `val_data` nor an official split."""
    epochs: int = 5
    batch_size: int = 20
    lr: float = 5e-5
    warmup: int = 100
    weight_decay: float = 0.01
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = TARGETS
    max_tokens: int = 50
    judged: int = 500
    """Images that METEOR is measured on, at most."""
    precision: str = "auto"
    """`bf16` on GPUs and `fp32` on CPUs by default; the adapter's own weights are float32 in either case."""
    seed: int = 0
    resume: bool = False
    device: str = "auto"
    workers: int = 2
    checkpoint_every: int = 500
    """Steps; one is also written after each epoch."""

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "warmup": 0, "weight_decay": 0, "rank": 1, "max_tokens": 1, "judged": 1}
        for name, bound in {**least, "workers": 0, "checkpoint_every": 1, "seed": 0}.items():
            if not getattr(self, name) >= bound:
                raise UserError(f"{_option(name)} {getattr(self, name)}: at least {bound} is wanted")
        for name in ("lr", "alpha"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{_option(name)} {getattr(self, name)}: a finite number above 0 is wanted")
        for name in ("held_out", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{_option(name)} {getattr(self, name)}: 0 or more, and less than 1, is wanted")
        if not self.targets or not all(self.targets):
            raise UserError(f"--targets {' '.join(self.targets)}: names of modules are wanted")

    def identity(self) -> dict[str, Any]:
        """All that decides the steps, as plain values."""
        return {name: value for name, value in asdict(self).items() if name not in OPERATIONAL} | {
            "targets": list(self.targets)
        }


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
