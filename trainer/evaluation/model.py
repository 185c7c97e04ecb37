"""The model under test: any open_clip model by name, hub id or folder, with weights of a checkpoint if one is given.

Whether a model was trained with QuickGELU is not to be seen in its weights, and the wrong activation only makes it a
little worse. So it is taken from a config that records it, or has to be said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UserError
from trainer.evaluation.files import Stored, open_rgb

QUICK = "-quickgelu"
ITRA = (("text_backbone.", ""), ("image_backbone.", "visual."))
"""Prefixes of ITRA's checkpoints, and open_clip's for the same towers."""

OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the command line says of the model."""

    model: str
    """An open_clip name, a hub id (`org/name`), or an open_clip folder."""
    pretrained: str | None = None
    checkpoint: Path | None = None
    adapter: Path | None = None
    """Trained parts (`trainer.adapters`) to put into the model; those in an open_clip folder are put in unasked."""
    quick_gelu: bool | None = None
    device: str = "auto"
    precision: str = "fp32"


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A loaded CLIP."""

    model: Any
    transform: Callable[[Any], Any]
    tokenizer: Callable[[list[str]], Any]
    device: str
    precision: str
    batch: int = 64
    workers: int = 2

    def images(self, images: Iterable[Any]) -> NDArray[np.float32]:
        """(n, d) raw features of PIL images, in their order.

        Raises:
            UserError: the model gives values that are not finite.
        """
        return self._images(self.transform, images)

    def stored(self, images: Sequence[Stored]) -> tuple[NDArray[np.float32], list[int]]:
        """((readable, d) raw features, numbers of the images that decode)."""
        readable: list[int] = []

        def prepared(number: int) -> Any:
            image = open_rgb(images[number].read())
            return None if image is None else (number, self.transform(image))

        def decoded(pairs: Iterable[Any]) -> Iterator[Any]:
            for pair in pairs:
                if pair is not None:
                    readable.append(pair[0])
                    yield pair[1]

        return self._images(prepared, range(len(images)), decoded), readable

    def _images(
        self, prepare: Callable[[Any], Any], items: Iterable[Any], then: Callable[[Iterable[Any]], Iterable[Any]] = iter
    ) -> NDArray[np.float32]:
        with ThreadPoolExecutor(self.workers) as pool:
            prepared = then(_ahead(pool, prepare, items, 2 * self.batch))
            return _joined([self._encode("encode_image", some) for some in _in(prepared, self.batch)])

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) raw features of texts, in their order."""
        return _joined([self._encode("encode_text", self.tokenizer(some)) for some in _in(texts, 4 * self.batch)])

    def _encode(self, method: str, inputs: Any) -> NDArray[np.float32]:
        import torch

        tensors = torch.stack(inputs) if isinstance(inputs, list) else inputs
        if tensors.is_floating_point():
            tensors = tensors.to(_dtype(self.precision))
        with torch.inference_mode():
            features = getattr(self.model, method)(tensors.to(self.device)).float().cpu().numpy()
        if not np.isfinite(features).all():
            raise UserError(f"--model: {method} gives values that are not finite (precision {self.precision})")
        return np.asarray(features, dtype=np.float32)


def _ahead(pool: Executor, work: Callable[[Any], Any], items: Iterable[Any], most: int) -> Iterator[Any]:
    """Results in the items' order, at most so many begun before they are asked for."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _in(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def _joined(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def _dtype(precision: str) -> Any:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


@dataclass(frozen=True, kw_only=True)
class Created:
    """A model as a choice describes it, in evaluation mode."""

    model: Any
    transform: Callable[[Any], Any]
    tokenizer: Callable[[list[str]], Any]
    described: dict[str, Any]
    """open_clip's config of the model, its activation (`quick_gelu`) always among it."""


def load(choice: Choice, batch: int = 64, workers: int = 2) -> Encoder:
    """The model of a choice, in evaluation mode.

    Raises:
        UserError: it has no weights, its activation is unknown, or a checkpoint is of another model.
    """
    import torch

    made = create(choice)
    _attach(made.model, choice, folder=identifier(choice.model)[1])
    torch.backends.cudnn.deterministic = True
    return Encoder(
        model=made.model,
        transform=made.transform,
        tokenizer=made.tokenizer,
        device=device_of(choice.device),
        precision=choice.precision,
        batch=batch,
        workers=workers,
    )


def create(choice: Choice, *, untrained: bool = False) -> Created:
    """The model of a choice; `untrained` ones need no weights and get those of torch's generator.

    Raises:
        UserError: as `load`.
    """
    import open_clip

    name, folder = identifier(choice.model)
    recorded = folder or name.startswith("hf-hub:")
    quick = _quick_gelu(choice, name, recorded=recorded, untrained=untrained)
    options: dict[str, Any] = {} if quick is None else {"quick_gelu": quick}
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            name,
            pretrained=None if choice.checkpoint or recorded else choice.pretrained,
            precision=choice.precision,
            device=device_of(choice.device),
            load_weights=choice.checkpoint is None,
            **options,
        )
        tokenizer = open_clip.get_tokenizer(name)
        described = open_clip.get_model_config(name)
    except Exception as error:  # libraries raise anything over names, configs and the hub
        raise UserError(f"--model {choice.model}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
    if choice.checkpoint:
        _fill(model, choice.checkpoint, choice.model)
    described = {"quick_gelu": False} | described | options
    return Created(model=model.eval(), transform=transform, tokenizer=tokenizer, described=described)


def identifier(model: str) -> tuple[str, bool]:
    """(open_clip's name of a model, whether it is a folder).

    Raises:
        UserError: a path without `open_clip_config.json`, or a name that open_clip does not know.
    """
    import open_clip

    if model.replace("/", "-") in open_clip.list_models():
        return model.replace("/", "-"), False
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "open_clip_config.json").is_file():
            raise UserError(f"--model {model}: the folder has no open_clip_config.json")
        return f"local-dir:{path}", True
    if model.startswith("hf-hub:") or model.count("/") == 1:
        return f"hf-hub:{model.removeprefix('hf-hub:')}", False
    raise UserError(f"--model {model}: no open_clip name, no hub id (org/name) and no folder")


def device_of(wanted: str) -> str:
    """`cuda` or `cpu`.

    Raises:
        UserError: `cuda` was asked for and is not there.
    """
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError("--device cuda: this machine has no CUDA device")
    return "cuda" if wanted != "cpu" and there else "cpu"


def _quick_gelu(choice: Choice, name: str, *, recorded: bool, untrained: bool) -> bool | None:
    """What to tell open_clip; None where the config says it.

    Raises:
        UserError: no weights were named, or nothing says which activation they were trained with.
    """
    import open_clip

    if choice.quick_gelu is not None or recorded:
        return choice.quick_gelu
    if choice.checkpoint is None:
        if not choice.pretrained:
            if untrained:
                return None
            raise UserError(f"--model {choice.model}: its weights are wanted: --pretrained or --checkpoint")
        described = open_clip.get_pretrained_cfg(name, choice.pretrained) or {}
        return described.get("quick_gelu")
    if f"{name}{QUICK}" in open_clip.list_models():
        raise UserError(
            f"--checkpoint {choice.checkpoint}: a state dict does not tell its activation; say --quick-gelu yes"
            f" (OpenAI's weights and what was tuned from them) or --quick-gelu no (LAION's and most others)"
        )
    return None


def _fill(model: Any, path: Path, name: str) -> None:
    from open_clip.factory import load_state_dict, resize_pos_embed

    if not path.is_file():
        raise UserError(f"--checkpoint {path}: the file was not found")
    try:
        state = plain_keys(load_state_dict(str(path)))
        resize_pos_embed(state, model)
        wanted = model.state_dict()
        shapes = [key for key in wanted if key in state and state[key].numel() != wanted[key].numel()]
    except Exception as error:  # pickles, zips and safetensors fail in their own ways
        raise UserError(f"--checkpoint {path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    missing, unknown = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or unknown or shapes:
        odd = (missing and f"{missing[0]} is missing") or (unknown and f"{unknown[0]} is unknown to it")
        raise UserError(f"--checkpoint {path}: of another model than {name} ({odd or shapes[0] + ' has another size'})")
    model.load_state_dict({key: value.reshape(wanted[key].shape) for key, value in state.items()})


def _attach(model: Any, choice: Choice, folder: bool) -> None:
    from trainer.adapters import NAME, attach_saved, is_saved

    path = Path(choice.model).expanduser()
    if choice.adapter is not None:
        attach_saved(model, choice.adapter)
    elif folder and choice.checkpoint is None and is_saved(path):
        attach_saved(model, path / NAME)


def plain_keys(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict under open_clip's names, from `module.` and ITRA's prefixes; the sizes in OpenAI's are left out."""
    renamed: dict[str, Any] = {}
    for key, value in state.items():
        plain = key.removeprefix("module.")
        for before, after in ITRA:
            if plain.startswith(before):
                plain = after + plain.removeprefix(before)
        if plain not in OPENAI_SIZES:
            renamed[plain] = value
    return renamed
