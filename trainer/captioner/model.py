"""BLIP2 with LoRA: loading, what goes in, what comes out, and the folder that PEFT reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.captioner.options import Settings
from trainer.errors import UserError

IGNORED = -100
"""Of labels: positions that nothing is asked of."""


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """A model with its adapter, and how its inputs are made."""

    model: Any
    """A PeftModel."""
    process: Any
    """The library's image processor."""
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    start: list[int]
    """Tokens before every caption: the image's places and the beginning's."""
    end: int

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The adapter's weights."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def train(self) -> None:
        """Dropout in the adapter alone: what is frozen runs as it will run later."""
        self.model.eval()
        for name, module in self.model.named_modules():
            if "lora_dropout" in name:
                module.train()

    def pixels(self, images: Sequence[Any]) -> Tensor:
        """(n, 3, side, side) of PIL images."""
        made: Tensor = self.process(images=list(images), return_tensors="pt")["pixel_values"]
        return made

    def tokens(self, captions: Sequence[str], most: int) -> tuple[Tensor, Tensor, Tensor]:
        """(n, length) ids, attention mask and labels of captions of at most so many tokens, their end included."""
        found = [self.tokenizer(text, add_special_tokens=False)["input_ids"][: most - 1] for text in captions]
        length = max(map(len, found)) + 1
        rows, masks, labels = [], [], []
        for ids in found:
            said = [*ids, self.end]
            padding = length - len(said)
            rows.append(self.start + said + [self.end] * padding)
            masks.append([1] * (len(self.start) + len(said)) + [0] * padding)
            labels.append([IGNORED] * len(self.start) + said + [IGNORED] * padding)
        return torch.tensor(rows), torch.tensor(masks), torch.tensor(labels)

    def loss(self, pixels: Tensor, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the captions' tokens."""
        found = self.model(
            pixel_values=pixels.to(self.device, self.dtype),
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
        ).logits[:, :-1]
        wanted = labels[:, 1:].to(self.device)
        return torch.nn.functional.cross_entropy(found.float().transpose(1, 2), wanted, ignore_index=IGNORED)

    @torch.inference_mode()
    def write(self, pixels: Tensor, most: int) -> list[str]:
        """The likeliest caption of each image, token by token; the same every time."""
        self.model.eval()
        rows = self.model.generate(
            pixel_values=pixels.to(self.device, self.dtype), do_sample=False, num_beams=1, max_new_tokens=most
        )
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def make(settings: Settings, device: torch.device) -> Captioner:
    """The model of the settings, its adapter new: it changes nothing yet.

    Raises:
        UserError: the model cannot be had, is no BLIP2 with a decoder-only language model, or lacks the targets.
    """
    model, processor, tokenizer = _loaded(settings, device)
    kind = getattr(model.config, "model_type", "")
    if kind != "blip-2" or not model.config.use_decoder_only_language_model:
        raise UserError(
            f"--model {settings.model}: it is a {kind or 'model'} of another kind; accepted: BLIP2 with a decoder-only"
            " language model, as Salesforce/blip2-opt-2.7b"
        )
    text = model.config.text_config
    ends = model.generation_config.eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    places = [model.config.image_token_index] * model.config.num_query_tokens
    # As `generate` does, BLIP2 hands over to its language model, which must stop where the whole model is told to.
    model.language_model.generation_config = model.generation_config
    return Captioner(
        model=_adapted(model, settings),
        process=processor,
        tokenizer=tokenizer,
        device=device,
        dtype=next(model.parameters()).dtype,
        start=[*places, text.bos_token_id],
        end=int(end if end is not None else text.eos_token_id),
    )


def _loaded(settings: Settings, device: torch.device) -> tuple[Any, Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    name = str(Path(settings.model).expanduser()) if Path(settings.model).expanduser().is_dir() else settings.model
    half = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
    try:
        dtype = torch.bfloat16 if half else torch.float32
        model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        processor, tokenizer = AutoImageProcessor.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except Exception as error:  # libraries raise anything over configs and the hub
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--model {settings.model}: it cannot be loaded ({reason})") from error
    return model.to(device), processor, tokenizer


def _adapted(model: Any, settings: Settings) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        bias="none",
        target_modules=list(settings.targets),
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, each in model.named_modules() if _is_linear(each)})
        raise UserError(
            f"--targets {' '.join(settings.targets)}: no such linear modules in {settings.model}, which has"
            f" {', '.join(names)}"
        ) from error


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)


def adapter_state(captioner: Captioner) -> dict[str, Tensor]:
    """The adapter's weights by PEFT's names, on the CPU."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(captioner.model)
    return {name: weight.detach().cpu().clone() for name, weight in found.items()}


def load_adapter(captioner: Captioner, state: dict[str, Tensor]) -> None:
    """Put weights of `adapter_state` in."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(captioner.model, state)


def save_adapter(captioner: Captioner, folder: Path) -> None:
    """Write a folder as PEFT reads it, beside its place, and move it there when it is whole.

    Raises:
        OSError: it could not be written; the old one stays.
    """
    beside, old = folder.with_name(f"{folder.name}.part"), folder.with_name(f"{folder.name}.old")
    for left in (beside, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        captioner.model.save_pretrained(beside)
        if folder.exists():
            os.replace(folder, old)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
