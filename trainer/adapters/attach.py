"""Put trained parts into an open_clip model, freeze the rest, and take LoRA out again as plain weights.

The names of the model's own weights stay what they are; new ones stand beside them: `….attn.lora.q.a`,
`….attn.prefix_gate…`, `….resblocks.3.adapter…`, `….transformer.prefixes…`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.adapters.options import PeftOptions
from trainer.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

MARKS = {"lora": ".attn.lora.", "prefix": "transformer.prefixes.", "adapter": ".adapter."}
GATES = ".attn.prefix_gate."
"""What the names of new weights hold."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How much is trained, in parameters."""

    kind: str
    trainable: int
    total: int
    sizes: Mapping[str, int]
    """`image.lora`, `text.adapter` …: trained parameters of each part of each tower; for `none` those of the towers."""

    def __str__(self) -> str:
        """The lines that a trainer prints."""
        share = f"{self.trainable:,} of {self.total:,} parameters ({self.trainable / max(1, self.total):.2%})"
        parts = [f"  {name:<14}{size:>12,}  {4 * size / 1e6:9.2f} MB in float32" for name, size in self.sizes.items()]
        return "\n".join([f"peft {self.kind}: trains {share}", *parts])


def apply(model: Any, options: PeftOptions, seed: int) -> Report:
    """Put the parts into a model, in place, and freeze all else; `none` leaves the model as it is.

    Args:
        model: an open_clip CLIP or CustomTextCLIP whose towers are open_clip's own transformers.
        options: kind, towers and sizes.
        seed: of the new weights; no global generator is touched.

    Raises:
        UserError: a tower is of another kind (timm, ResNet, Hugging Face), or the model has parts already.
    """
    import torch

    if options.kind == "none":
        return report(model, options.kind)
    if added_names(model):
        raise UserError(f"peft.kind is {options.kind!r}: the model has trained parts already ({added_names(model)[0]})")
    towers = transformers(model, options.towers)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for transformer in towers.values():
            _attach(transformer, options)
    return report(model, options.kind)


def transformers(model: Any, towers: str) -> dict[str, Any]:
    """The `Transformer` of each tower asked for.

    Raises:
        UserError: as above.
    """
    wanted = ("image", "text") if towers == "both" else (towers,)
    found = {"image": model.visual, "text": getattr(model, "text", model)}
    return {name: _transformer(found[name], name) for name in wanted}


def _transformer(tower: Any, name: str) -> Any:
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
    from torch.nn import MultiheadAttention

    transformer = getattr(tower, "transformer", None)
    odd = type(tower).__name__
    owned = isinstance(tower, VisionTransformer | TextTransformer) or (name == "text" and hasattr(tower, "visual"))
    if owned and isinstance(transformer, Transformer):
        blocks = list(transformer.resblocks)
        if all(type(b) is ResidualAttentionBlock and isinstance(b.attn, MultiheadAttention) for b in blocks):
            return transformer
        odd = f"{odd} of {type(blocks[0]).__name__}s"
    raise UserError(
        f"peft: the {name} tower is a {odd}; accepted: open_clip's own transformers (ViT and CLIP's text transformer), "
        "or peft.kind none"
    )


def _attach(transformer: Any, options: PeftOptions) -> None:
    from trainer.adapters.modules import Bottleneck, Gate, LowRank, Prefixes, TunedAttention, through_adapter

    width, gated = transformer.width, options.gated
    like = transformer.resblocks[0].attn.in_proj_weight
    if "prefix" in options.parts:
        prefixes = Prefixes(width, transformer.layers, options.length, options.bottleneck)
        transformer.prefixes = prefixes.to(like.device, like.dtype)
    for number, block in enumerate(transformer.resblocks):
        if options.kind != "pfeiffer":
            block.attn = TunedAttention(block.attn, number)
        if "lora" in options.parts:
            for name in ("q", "v"):
                block.attn.lora[name] = LowRank(width, options.rank, options.alpha, gated).to(like.device, like.dtype)
        if "prefix" in options.parts:
            gate = Gate(width).to(like.device, like.dtype) if gated else None
            block.attn.share(transformer.prefixes, gate)
        if "adapter" in options.parts:
            block.adapter = Bottleneck(width, options.reduction, gated).to(like.device, like.dtype)
            block.register_forward_hook(through_adapter)


def report(model: Any, kind: str) -> Report:
    """Counts of a model as it stands."""
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = _part(name, kind)
            sizes[part] = sizes.get(part, 0) + parameter.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    return Report(kind=kind, trainable=sum(sizes.values()), total=total, sizes=dict(sorted(sizes.items())))


def _part(name: str, kind: str) -> str:
    if name in ("logit_scale", "logit_bias"):
        return "logits"
    tower = "image" if name.startswith("visual.") else "text"
    if kind == "none":
        return tower
    if GATES in name or ".gate." in name:
        return f"{tower}.gates"
    return f"{tower}.{next((part for part, mark in MARKS.items() if mark in name), 'own')}"


def added_names(model: Any) -> list[str]:
    """Names of the weights that `apply` put into a model."""
    marks = (*MARKS.values(), GATES)
    return [name for name, _ in model.named_parameters() if any(mark in name for mark in marks)]


def trainable_state(model: Any) -> dict[str, Tensor]:
    """What a run changes: the parts, or all weights where there are none; tensors are the model's own."""
    state: dict[str, Tensor] = model.state_dict()
    names = added_names(model)
    return {name: state[name] for name in names} if names else state


def load_trainable(model: Any, state: Mapping[str, Tensor]) -> None:
    """Put a `trainable_state` into a model to which the same options were applied.

    Raises:
        UserError: names or shapes are those of other options, or of another model.
    """
    own = trainable_state(model)
    odd = [f"{name} is missing" for name in sorted(set(own) - set(state))]
    odd += [f"{name} is unknown to the model" for name in sorted(set(state) - set(own))]
    odd += [
        f"{name} has another shape" for name in sorted(own) if name in state and state[name].shape != own[name].shape
    ]
    if odd:
        raise UserError(f"peft: the saved parts are of other options or of another model ({odd[0]})")
    model.load_state_dict(dict(state), strict=False)


def merge(model: Any) -> Any:
    """The model, changed in place, with LoRA's products in its own weights, and none but those.

    Raises:
        UserError: it has parts that depend on the input, which no weight can hold.
    """
    import torch

    from trainer.adapters.modules import TunedAttention

    left = [name for name in added_names(model) if MARKS["lora"] not in name or ".gate." in name]
    if left:
        raise UserError(f"peft: only LoRA can be merged into a plain model; this one has {left[0]}")
    for tower in (model.visual, getattr(model, "text", model)):
        for block in getattr(getattr(tower, "transformer", None), "resblocks", ()):
            if isinstance(block.attn, TunedAttention):
                with torch.no_grad():
                    block.attn = _merged(block.attn)
    return model


def _merged(tuned: Any) -> nn.MultiheadAttention:
    from torch.nn import MultiheadAttention

    width = tuned.in_proj_weight.shape[1]
    weight = tuned.in_proj_weight
    for place, name in ((0, "q"), (2, "v")):
        rows = weight[place * width : (place + 1) * width]
        rows.copy_(rows.float() + tuned.lora[name].weight())
    plain = MultiheadAttention(width, tuned.heads, batch_first=True, device="meta")
    plain.in_proj_weight, plain.in_proj_bias, plain.out_proj = weight, tuned.in_proj_bias, tuned.out_proj
    return plain.train(tuned.training)
