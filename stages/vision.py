"""Loading models and preparing images as they want them: uint8 on the CPU, the rest on the model's device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages import resizing
from stages.errors import UnitError
from stages.images import open_reduced, open_rgb
from stages.models import ModelRef

Pixels = NDArray[np.uint8]
"""(height, width, 3)."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """A model's own preprocessing, as plain values that travel in commit records."""

    library: str
    options: Mapping[str, Any]
    reduced: bool = False
    """JPEGs are decoded at a smaller scale where that is enough."""

    def read(self) -> Callable[[bytes], Pixels]:
        """From the bytes of an image to the model's input size; raises ValueError for what cannot be decoded."""
        transform = self.transform()
        plain = resizing.plain_resize(self.library, self.options)
        if not self.reduced or plain is None:
            return lambda data: transform(open_rgb(data))

        def apply(data: bytes) -> Pixels:
            image, box = open_reduced(data, plain.least)
            return transform(image) if box == image.size else np.asarray(plain(image, box), dtype=np.uint8)

        return apply

    def transform(self) -> Callable[[Any], Pixels]:
        """From a PIL RGB image to the model's input size; the library's own resizing, before normalisation."""
        plain = resizing.plain_resize(self.library, self.options)
        library = _open_clip_steps if self.library == "open_clip" else _timm_steps
        steps = [plain] if plain else library(self.options)

        def apply(image: Any) -> Pixels:
            image = without_excess(image)
            for step in steps:
                image = step(image)
            return np.asarray(image, dtype=np.uint8)

        return apply

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return resizing.input_size(self.library, self.options)


def without_excess(image: Any) -> Any:
    """The middle of an image longer than LONGEST times its width: all that a centre crop will see of it."""
    width, height = (min(side, resizing.LONGEST * min(image.size)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))


def preprocess_of(ref: ModelRef) -> Preprocess:
    """What the model's config says, without building the model.

    Raises:
        UnitError: the config cannot be fetched or understood.
    """
    try:
        options = _open_clip_options(ref) if ref.library == "open_clip" else _timm_options(ref)
    except Exception as error:  # libraries raise anything over configs and the hub
        raise UnitError(f"{ref.where}: the config of {ref.model!r} cannot be used ({error})") from error
    return Preprocess(library=ref.library, options=options)


def _open_clip_options(ref: ModelRef) -> dict[str, Any]:
    if ref.folder:
        return resizing.open_clip_folder(ref.config())
    from open_clip import get_model_config, get_pretrained_cfg
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    described: Mapping[str, Any] = {}
    if ref.is_hub:
        from open_clip.factory import _get_hf_config

        described = _get_hf_config(ref.identifier.removeprefix("hf-hub:")).get("preprocess_cfg", {})
    elif ref.pretrained:
        described = get_pretrained_cfg(ref.model, ref.pretrained) or {}
    options = merge_preprocess_dict(asdict(PreprocessCfg()), dict(described))
    size = get_model_config(ref.identifier)["vision_cfg"].get("image_size", options["size"])
    return options | {"size": size}


def _open_clip_steps(options: Mapping[str, Any]) -> list[Callable[[Any], Any]]:
    """Resizing and cropping; the two last steps of the library's transform make tensors and normalise."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    named: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    return list(image_transform_v2(PreprocessCfg(**named), is_train=False).transforms)[:-2]


def _timm_options(ref: ModelRef) -> dict[str, Any]:
    if ref.folder and (said := resizing.timm_folder(ref.config())):
        return said
    from timm.data import resolve_data_config

    found = resolve_data_config({}, pretrained_cfg=_timm_config(ref)[0])
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _timm_config(ref: ModelRef) -> tuple[dict[str, Any], str, Any]:
    from timm.models import load_model_config_from_hf
    from timm.models._hub import load_model_config_from_path

    if ref.folder:
        return load_model_config_from_path(str(ref.folder))
    return load_model_config_from_hf(ref.identifier.removeprefix("hf-hub:"))


def _timm_steps(options: Mapping[str, Any]) -> list[Callable[[Any], Any]]:
    from timm.data import create_transform

    named: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    return list(create_transform(**named, is_training=False).transforms)[:-2]


def device_for(wanted: str, where: str) -> str:
    """`cuda` or `cpu`, from `auto`, `cuda` or `cpu`.

    Raises:
        UnitError: `cuda` was asked for and is not there.
    """
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UnitError(f"{where}.device: 'cuda' was asked for, but this worker sees no CUDA device")
    return "cuda" if wanted != "cpu" and there else "cpu"


def precision_for(wanted: str, device: str) -> str:
    """`fp32`, `fp16` or `bf16`; `auto` is half precision on a GPU, full on a CPU."""
    if wanted != "auto":
        return wanted
    return "fp16" if device == "cuda" else "fp32"


def be_deterministic(threads: int) -> None:
    """A fixed number of threads (at most the machine's cores), no algorithm chosen by timing, no reduced float32."""
    import torch

    torch.set_num_threads(min(threads, os.cpu_count() or 1))
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def load_open_clip(ref: ModelRef, device: str, precision: str) -> tuple[Any, Any]:
    """(model in evaluation mode, tokenizer).

    Raises:
        UnitError: the weights cannot be fetched, or do not fit the architecture.
    """
    import open_clip

    try:
        model = open_clip.create_model(
            ref.identifier, pretrained=ref.pretrained, precision=precision, device=device, require_pretrained=True
        )
        return model.eval(), open_clip.get_tokenizer(ref.identifier)
    except Exception as error:
        raise _cannot_load(ref, error) from error


def load_timm(ref: ModelRef, device: str, precision: str) -> Any:
    """The classifier, in evaluation mode, with the perceptron over descriptors that its folder may hold.

    Raises:
        UnitError: as above.
    """
    import timm

    from descriptors import beside

    try:
        model = timm.create_model(ref.identifier, pretrained=True)
        model = model.to(device=device, dtype=dtype_of(precision)).eval()
        if ref.folder:
            options = _timm_options(ref)
            model = beside(model, ref.folder, options["mean"], options["std"])
    except Exception as error:
        raise _cannot_load(ref, error) from error
    return model


def dtype_of(precision: str) -> Any:
    """The torch dtype of a precision's name."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def _cannot_load(ref: ModelRef, error: Exception) -> UnitError:
    reason = " ".join(str(error).split())[:300]
    hint = "" if ref.folder or ref.files() else f"; to fetch it by hand: {ref.fetch_command()}"
    return UnitError(f"{ref.where}: the model {ref.model!r} cannot be loaded ({reason}){hint}")


def label_names(ref: ModelRef) -> list[str]:
    """Names of a classifier's outputs, in order; empty when its config names none."""
    names = ref.config().get("label_names") if ref.folder else _timm_config(ref)[0].get("label_names")
    if isinstance(names, Mapping):
        names = [names[index] for index in sorted(names, key=int)]
    return [str(name) for name in names or []]


def to_tensor(images: Sequence[Pixels], preprocess: Preprocess, device: str, precision: str) -> Any:
    """(n, 3, height, width): scaled to 0–1, normalised as the model's config says, on its device."""
    import torch

    pixels = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).to(torch.float32) / 255
    mean, std = (torch.tensor(preprocess.options[name], device=device).view(1, 3, 1, 1) for name in ("mean", "std"))
    return ((pixels - mean) / std).to(dtype_of(precision))


def shipped_model(name: str) -> Path:
    """The folder of a shipped model (`manifests/models/NAME`)."""
    import manifests

    return Path(str(manifests.__file__)).parent / "models" / name


def shipped_or_path(kind: str, name: str) -> Path:
    """The file of a shipped YAML (`manifests/KIND/NAME.yaml`), or the path itself."""
    import manifests

    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name.removeprefix("file://")).expanduser().absolute()
    return Path(str(manifests.__file__)).parent / kind / f"{name}.yaml"
