"""The image-to-text model: a few candidates for each image, from one encoding of it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages import vision
from stages.captioning.sampling import draw_processor, uniforms, until
from stages.errors import UnitError, UserError
from stages.models import FILES, ModelRef

Inputs = Mapping[str, NDArray[Any]]
"""What the model's own processor makes of one image (and the prompt): arrays whose first axis is the batch's, or that
of pieces, where the model takes those of all images one after another."""
Write = Callable[[Sequence[Inputs], Sequence[str]], list[list[str]]]
"""Candidates of a batch: the images' inputs and identities (what their noise belongs to)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How candidates are drawn; all of it decides what comes out."""

    candidates: int = 20
    top_k: int = 50
    top_p: float = 0.95
    temperature: float = 1.0
    max_tokens: int = 50
    prompt: str | None = None
    precision: str = "auto"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """A model of transformers' image-text-to-text classes, with or without a PEFT adapter. Pickled into tasks."""

    ref: ModelRef
    adapter: ModelRef | None
    device: str
    threads: int

    def check(self) -> None:
        """Raise `UserError` for what is wrong, before anything runs."""
        self.ref.check()
        if self.adapter is None:
            return
        folder = self.adapter.folder
        if folder is None or not (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{self.adapter.where}: {self.adapter.model!r} is no folder with adapter_config.json; accepted: "
                "what PEFT's save_pretrained writes"
            )

    def files(self) -> list[str]:
        """Local files that decide the candidates."""
        folder = self.adapter.folder if self.adapter else None
        adapter = [str(path) for path in sorted(folder.iterdir()) if path.suffix in FILES] if folder else []
        return [*self.ref.files(), *adapter]

    def digest(self, sha256: Callable[[str], str], options: Options) -> str:
        """Identity of what is written: weights, adapter and options; not paths, batch shapes or devices."""
        described = {
            "model": [sha256(path) for path in self.ref.files()] or self.ref.identifier,
            "adapter": [sha256(path) for path in self.files()[len(self.ref.files()) :]],
            "options": vars(options),
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def processor(self, prompt: str | None) -> Callable[[Any], Inputs]:
        """From a PIL RGB image to the model's inputs, by the library's own processor.

        Raises:
            UnitError: the processor's files cannot be fetched or understood.
        """
        vision.be_deterministic(1)
        try:
            process = _with_prompt(self.ref, prompt) if prompt else _image_processor(self.ref)
        except Exception as error:  # libraries raise anything over configs and the hub
            raise UnitError(
                f"{self.ref.where}: the processor of {self.ref.model!r} cannot be used ({error})"
            ) from error
        return lambda image: {name: np.asarray(value) for name, value in process(image).items()}

    def load(self, options: Options) -> Write:
        """The model on its device, ready to write for batches of one size.

        Raises:
            UnitError: the weights or the adapter cannot be fetched, or do not fit.
        """
        import torch

        vision.be_deterministic(self.threads)
        device = vision.device_for(self.device, self.ref.where)
        precision = vision.precision_for(options.precision, device)
        model, tokenizer = self.open(device, precision)
        stops = _stops(model, tokenizer)

        @torch.inference_mode()
        def write(inputs: Sequence[Inputs], identities: Sequence[str]) -> list[list[str]]:
            tensors = _batch(inputs, device, vision.dtype_of(precision))
            draws = [uniforms(options.seed, name, options.candidates, options.max_tokens) for name in identities]
            try:
                rows = _generate(model, tensors, np.concatenate(draws), device, options)
            except torch.OutOfMemoryError as error:
                raise UnitError(
                    f"{self.ref.where}: {len(inputs)} images with {options.candidates} candidates each do not fit the "
                    f"memory of the device; lower stages.captions.batch_size"
                ) from error
            except (ValueError, TypeError, IndexError, StopIteration) as error:
                raise UnitError(self._unwritten(options, error)) from error
            texts = tokenizer.batch_decode([until(row, stops) for row in rows], skip_special_tokens=True)
            clean = [" ".join(text.split()) for text in texts]
            return [clean[n : n + options.candidates] for n in range(0, len(clean), options.candidates)]

        return write

    def _unwritten(self, options: Options, error: Exception) -> str:
        """Why the model does not write."""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        sentence = f"{self.ref.where}: the model {self.ref.model!r} cannot write ({reason})"
        if options.prompt is not None:
            return sentence
        return f"{sentence}; models that are spoken to need stages.captions.prompt, with their mark for the image in it"

    def open(self, device: str, precision: str) -> tuple[Any, Any]:
        """(the model in evaluation mode, its adapter merged; the tokenizer).

        Raises:
            UnitError: as above.
        """
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        try:
            # What the architecture wants in full precision (BLIP2's Q-Former) stays so, whatever the rest is loaded as.
            dtype = vision.dtype_of(precision)
            model: Any = AutoModelForImageTextToText.from_pretrained(self.ref.identifier, dtype=dtype)
            if self.adapter:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, str(self.adapter.folder)).merge_and_unload()
            tokenizer = AutoTokenizer.from_pretrained(self.ref.identifier)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UnitError(f"{self.ref.where}: the model {self.ref.model!r} cannot be loaded ({reason})") from error
        if hasattr(model, "language_model"):
            # BLIP2 hands over to its language model, which must stop where the whole model is told to.
            model.language_model.generation_config = model.generation_config
        return model.to(device=device).eval(), tokenizer


@cache
def _image_processor(ref: ModelRef) -> Callable[[Any], Any]:
    from transformers import AutoImageProcessor

    process = AutoImageProcessor.from_pretrained(ref.identifier)
    return lambda image: process(images=image, return_tensors="np")


@cache
def _with_prompt(ref: ModelRef, prompt: str) -> Callable[[Any], Any]:
    from transformers import AutoProcessor

    process = AutoProcessor.from_pretrained(ref.identifier)
    return lambda image: process(images=image, text=prompt, return_tensors="np")


def _batch(inputs: Sequence[Inputs], device: str, dtype: Any) -> dict[str, Any]:
    """Tensors of the whole batch; what is a number of pixels in the model's precision."""
    import torch

    tensors = {}
    for name in inputs[0]:
        tensor = torch.from_numpy(np.concatenate([each[name] for each in inputs])).to(device)
        tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors


def _generate(
    model: Any, tensors: Mapping[str, Any], draws: NDArray[np.float64], device: str, options: Options
) -> list[list[int]]:
    """The drawn tokens of every candidate, images in order. The image is encoded once: `generate` expands what
    follows from it. With all but one token at minus infinity, the library's own sampling has nothing left to draw.
    """
    import torch
    from transformers import LogitsProcessorList

    names = ("top_k", "top_p", "temperature")
    draw = draw_processor(draws, device, **{name: getattr(options, name) for name in names})
    model.generate(
        **tensors,
        logits_processor=LogitsProcessorList([draw]),
        do_sample=True,
        num_beams=1,
        num_return_sequences=options.candidates,
        max_new_tokens=options.max_tokens,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
    )
    rows: list[list[int]] = torch.stack(draw.chosen, dim=1).tolist()
    return rows


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text, wherever the model's configs say so."""
    text = model.config.get_text_config(decoder=True)
    named = [
        getattr(model.generation_config, "eos_token_id", None),
        getattr(text, "sep_token_id", None),
        tokenizer.eos_token_id,
        tokenizer.sep_token_id,
    ]
    found: set[int] = set()
    for value in named:
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)


def pack(inputs: Inputs) -> bytes:
    """The inputs of one image as bytes."""
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **inputs)
    return out.getvalue()


def unpack(data: bytes) -> Inputs:
    """The inverse of `pack`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def adapter_ref(where: str, adapter: str | None) -> ModelRef | None:
    """The adapter that a recipe names."""
    if adapter is None:
        return None
    return ModelRef(library="transformers", where=where, model=str(Path(adapter).expanduser())).absolute()
