"""What is trained instead of the whole model; the defaults are AdapterHub's, which the paper used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from trainer.errors import UserError

KINDS = ("none", "lora", "pfeiffer", "prefix", "unipelt")
"""`none`: the whole model is trained (the paper's full fine-tuning)."""
TOWERS = ("both", "image", "text")
PARTS = {"none": (), "lora": ("lora",), "pfeiffer": ("adapter",), "prefix": ("prefix",)}
PARTS["unipelt"] = ("prefix", "lora", "adapter")
"""What each kind is made of."""


@dataclass(frozen=True, kw_only=True)
class PeftOptions:
    """Kind, place and sizes; sizes of parts that the kind does not have are ignored (arXiv 2306.11300 §VI-A)."""

    kind: str = "none"
    towers: str = "both"
    rank: int = 8
    """Of LoRA's matrices, for queries and values."""
    alpha: float = 8.0
    """LoRA's products are multiplied by alpha / rank."""
    reduction: int = 16
    """An adapter's bottleneck is the tower's width divided by this."""
    prefix: int | None = None
    """Keys and values put before those of the tokens, in each layer; None: 30, and 10 in UniPELT."""
    bottleneck: int = 512
    """Width of the network that prefixes are made by."""

    def __post_init__(self) -> None:
        """Raise `UserError` for a name that is none of those accepted, or a size that makes no sense."""
        for name, accepted in (("kind", KINDS), ("towers", TOWERS)):
            if getattr(self, name) not in accepted:
                raise UserError(f"peft.{name} is {getattr(self, name)!r}; accepted: {', '.join(accepted)}")
        for name in ("rank", "reduction", "length", "bottleneck"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                key = "prefix" if name == "length" else name
                raise UserError(f"peft.{key} is {value!r}; accepted: a whole number from 1 on")
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 < self.alpha < float("inf"):
            raise UserError(f"peft.alpha is {self.alpha!r}; accepted: a number above 0")

    @classmethod
    def from_mapping(cls, said: Mapping[str, Any]) -> PeftOptions:
        """Options as a config or a saved file says them.

        Raises:
            UserError: an unknown key, or a value that is not accepted.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(said) - set(known))
        if unknown:
            raise UserError(f"peft.{unknown[0]} is unknown; accepted: {', '.join(known)}")
        return cls(**said)

    @property
    def parts(self) -> tuple[str, ...]:
        """`lora`, `adapter`, `prefix`: what the kind adds."""
        return PARTS[self.kind]

    @property
    def gated(self) -> bool:
        """Whether a learnt gate weighs each part (UniPELT, arXiv 2110.07577)."""
        return self.kind == "unipelt"

    @property
    def length(self) -> int:
        """Prefixes a layer."""
        if self.prefix is None:
            return 10 if self.gated else 30
        return self.prefix
