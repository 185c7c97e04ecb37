"""The model that is trained: made after a config, partly frozen, run on batches, saved as open_clip's folder."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from trainer import adapters
from trainer.data import NORMALISATIONS, normalise
from trainer.data.images import Triple
from trainer.errors import UserError
from trainer.evaluation.model import Choice, create, identifier
from trainer.training.options import OWN, Config

STEP = 8
"""Lengths of token sequences are multiples of it, so that they are few."""
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A model and how its inputs are made."""

    model: Any
    tokenizer: Callable[[list[str]], Any]
    described: dict[str, Any]
    """open_clip's config of it, its activation among it."""
    preprocess: dict[str, Any]
    """open_clip's, with the mean and deviation that pixels are normalised by."""
    config: Config
    device: torch.device

    @property
    def size(self) -> int:
        """Pixels along a side."""
        size = self.preprocess["size"]
        return int(size if isinstance(size, int) else size[0])

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """What the optimizer moves."""
        return [each for each in self.model.parameters() if each.requires_grad]

    @property
    def statistics(self) -> tuple[Triple, Triple]:
        """Mean and deviation of each channel."""
        return tuple(self.preprocess["mean"]), tuple(self.preprocess["std"])

    def train(self) -> None:
        """Training mode for all but frozen towers, which keep their statistics."""
        self.model.train()
        for tower in frozen(self.model, self.config.freeze):
            tower.eval()

    def encode(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) float32 features of unit length, of images and of texts.

        Args:
            images: (n, 3, size, size) uint8.
            tokens: (n, length).
        """
        pixels = normalise(images.to(self.device, non_blocking=True), self.statistics)
        with autocast(self.device, self.config.precision):
            seen = self.model.encode_image(pixels)
            read = encode_text(self.model, tokens, self.device)
        return normalize(seen.float(), dim=-1), normalize(read.float(), dim=-1)


def make(config: Config, device: torch.device) -> Clip:
    """The model of a config; what is not loaded is drawn from its seed.

    Raises:
        UserError: the model cannot be had, or cannot be trained as the config says.
    """
    if identifier(config.model)[1] and adapters.is_saved(Path(config.model).expanduser()):
        raise UserError(f"model is {config.model!r}: it holds trained parts ({adapters.NAME}); a plain model is wanted")
    torch.manual_seed(config.seed)
    made = create(
        Choice(
            model=config.model,
            pretrained=config.pretrained,
            checkpoint=Path(config.checkpoint).expanduser() if config.checkpoint else None,
            quick_gelu=config.quick_gelu,
            device=device.type,
        ),
        untrained=True,
    )
    preprocess = dict(made.model.visual.preprocess_cfg)
    if config.normalisation != OWN:
        preprocess["mean"], preprocess["std"] = map(list, NORMALISATIONS[config.normalisation])
    _prepare(made.model, config)
    return Clip(
        model=made.model.to(device),
        tokenizer=made.tokenizer,
        described=made.described,
        preprocess=_square(preprocess, config.model),
        config=config,
        device=device,
    )


def _square(preprocess: dict[str, Any], name: str) -> dict[str, Any]:
    size = preprocess["size"]
    if not isinstance(size, int) and len(set(size)) > 1:
        raise UserError(f"model is {name!r}: its images are of {tuple(size)} pixels; square ones are wanted")
    return preprocess


def _prepare(model: Any, config: Config) -> None:
    """Freeze what is not trained, and put in what is trained instead."""
    if config.peft.kind != "none" and config.freeze != "none":
        raise UserError(f"freeze is {config.freeze!r}: with peft.kind {config.peft.kind!r} say peft.towers instead")
    if config.recompute:
        model.set_grad_checkpointing(True)
    for tower in frozen(model, config.freeze):
        tower.requires_grad_(False)
    if getattr(model, "logit_bias", None) is not None:
        model.logit_bias.requires_grad_(False)  # the softmax takes no notice of it
    adapters.apply(model, config.peft, config.seed)


def frozen(model: Any, freeze: str) -> list[Any]:
    """The modules and parameters of the tower that stays as it is."""
    if freeze == "image":
        return [model.visual]
    if freeze == "none":
        return []
    if hasattr(model, "text"):
        return [model.text]
    return [_TextTower(model)]


class _TextTower:
    """open_clip's CLIP keeps its text tower in pieces of its own."""

    def __init__(self, model: Any) -> None:
        self.modules = [model.transformer, model.token_embedding, model.ln_final]
        self.weights = [model.positional_embedding, model.text_projection]

    def eval(self) -> None:
        for each in self.modules:
            each.eval()

    def requires_grad_(self, wanted: bool) -> None:
        for each in (*self.modules, *self.weights):
            if each is not None:
                each.requires_grad_(wanted)


def autocast(device: torch.device, precision: str) -> Any:
    """Mixed precision, or none."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, PRECISIONS[precision])


def encode_text(model: Any, tokens: Tensor, device: torch.device) -> Tensor:
    """(n, d) features of texts, at no more positions than the longest of them has.

    In CLIP's text tower no position sees a later one and the feature is that of the end's token, so the positions
    behind it change nothing, in either direction. Most captions take a third of CLIP's 77.
    """
    if not _looks_back_only(model):
        return model.encode_text(tokens.to(device, non_blocking=True))
    used = int(tokens.argmax(dim=-1).max()) + 1  # the end's token has the highest number
    length = min(tokens.shape[1], -(-used // STEP) * STEP)
    tokens = tokens[:, :length].to(device, non_blocking=True)
    kind = model.transformer.get_cast_dtype()
    hidden = model.token_embedding(tokens).to(kind) + model.positional_embedding[:length].to(kind)
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    ends = hidden[torch.arange(len(hidden), device=device), tokens.argmax(dim=-1)]
    projection = model.text_projection
    return projection(ends) if isinstance(projection, torch.nn.Module) else ends @ projection


def _looks_back_only(model: Any) -> bool:
    from open_clip import CLIP

    plain = type(model) is CLIP and model.text_pool_type == "argmax" and model.attn_mask is not None
    return bool(plain and model.text_projection is not None)


@contextmanager
def unmoved_statistics(model: Any) -> Iterator[None]:
    """Passes within leave the running statistics of batch normalisation as they are."""
    moving = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    for each in moving:
        each.track_running_stats = False
    try:
        yield
    finally:
        for each in moving:
            each.track_running_stats = True


def export(clip: Clip, out: Path) -> None:
    """Write `best.pt`, a plain state dict, and `model/`, an open_clip folder, of the weights as they are now.

    LoRA is merged into both. Other trained parts are the whole of `best.pt`, and stand in the folder beside the weights
    that they were trained with.
    """
    kind = clip.config.peft.kind
    folder = out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    model = adapters.merge(copy.deepcopy(clip.model)) if kind == "lora" else clip.model
    beside = set() if kind in ("none", "lora") else set(adapters.trainable_state(model))
    state = {name: _plain(tensor) for name, tensor in model.state_dict().items()}
    _describe(clip, folder)
    _save_folder({name: tensor for name, tensor in state.items() if name not in beside}, folder)
    if beside:
        adapters.save(model, clip.config.peft, folder / adapters.NAME)
    replace_with(out / "best.pt", lambda file: torch.save({n: state[n] for n in beside} if beside else state, file))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _describe(clip: Clip, folder: Path) -> None:
    described = json.dumps({"model_cfg": clip.described, "preprocess_cfg": clip.preprocess}, indent=2) + "\n"
    replace_with(folder / CONFIG, lambda file: file.write(described.encode()))
    if hasattr(clip.tokenizer, "save_pretrained"):
        clip.tokenizer.save_pretrained(folder)


def _save_folder(state: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save

    replace_with(folder / WEIGHTS, lambda file: file.write(save(state)))


def replace_with(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, make it last, then move it there: it is the old one or the new one, never half.

    Raises:
        OSError: it could not be written; the old one stays.
    """
    beside = path.with_name(f"{path.name}.part")
    try:
        with beside.open("wb") as file:  # into a name, torch and safetensors write with errors of their own
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
