"""A CLIP that ranks candidates: cosines with the image, as it is and turned, and zero-shot classes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages import vision
from stages.base import operational, semantic
from stages.errors import UserError
from stages.models import ModelRef, open_clip_names
from stages.vision import Pixels, Preprocess

ANGLES = 12
"""The paper's number of turns, 30° apart (arXiv 2306.11300 §III-B)."""
QUICK = "-quickgelu"
PROMPT = "a satellite image of {}."
"""What a class is called when an image is asked for its own."""


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """A contrastive model that ranks candidates, and how many it keeps."""

    model: str = semantic(help="an open_clip name, a hub id, or a folder with open_clip_config.json and weights")
    pretrained: str | None = semantic(None, help="tag (or file) of weights, for an open_clip name")
    keep: int = semantic(10, help="candidates left by this ranking")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = semantic("auto", help="auto: fp16 on a GPU, else fp32")
    batch_size: int = operational(16, help="images a forward pass, each with all its candidates")
    device: Literal["auto", "cuda", "cpu"] = operational("auto", help="auto: a GPU where the cluster has one")
    threads: int = operational(1, help="CPU threads of each model")


@dataclass(frozen=True, kw_only=True)
class RerankConfig(RankConfig):
    """The second model: the same options."""

    keep: int = semantic(5, help="candidates left by this ranking")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """What a batch is given."""

    scores: NDArray[np.float32]
    """(images, candidates)."""
    rotation_mean: NDArray[np.float32] | None = None
    rotation_variance: NDArray[np.float32] | None = None
    """Over the angles; shapes as above."""
    image_class: list[str] | None = None
    text_classes: list[list[str]] | None = None


Run = Callable[[Sequence[Pixels], Sequence[Pixels], Sequence[Sequence[str]], Sequence[str]], Ranks]
"""Images of the model's size, their discs (`disc`; none without rotations), candidates, and the classes to tell."""


@dataclass(frozen=True, kw_only=True)
class Ranker:
    """One of the two models. Instances are pickled into tasks; models are loaded by `load`."""

    name: str
    """`rank` or `rerank`."""
    config: RankConfig
    rotates: bool

    @property
    def classifies(self) -> bool:
        """Whether it also tells the classes of images and candidates: one of the models is enough."""
        return self.name == "rank"

    @property
    def ref(self) -> ModelRef:
        """The model as the recipe names it."""
        where = f"stages.captions.{self.name}"
        model, pretrained = self.config.model, self.config.pretrained
        if pretrained == "openai" and f"{model}{QUICK}" in open_clip_names():
            model += QUICK  # OpenAI's weights were trained with it: `RN50x64` can only mean this
        return ModelRef(library="open_clip", where=where, model=model, pretrained=pretrained).absolute()

    def check(self) -> None:
        """Raise `UserError` for what is wrong, before anything runs."""
        if min(self.config.batch_size, self.config.threads, self.config.keep) < 1:
            raise UserError(f"{self.ref.where}: keep, batch_size and threads are whole numbers from 1 on")
        self.ref.check()

    def digest(self, sha256: Callable[[str], str]) -> str:
        """Identity of what is computed: weights and what is asked of them."""
        ref = self.ref
        model = [sha256(path) for path in ref.files()] or [ref.identifier, str(ref.pretrained)]
        described = [model, self.config.precision, self.rotates and ANGLES, PROMPT]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def load(self, preprocess: Preprocess) -> Run:
        """Both towers on their device."""
        import torch

        vision.be_deterministic(self.config.threads)
        device = vision.device_for(self.config.device, self.ref.where)
        precision = vision.precision_for(self.config.precision, device)
        model, tokenizer = vision.load_open_clip(self.ref, device, precision)

        def encode(texts: Sequence[str]) -> Any:
            return _unit(model.encode_text(tokenizer(list(texts)).to(device)))

        @lru_cache(maxsize=64)
        def class_features(names: tuple[str, ...]) -> Any:
            return torch.cat([encode([PROMPT.format(words(name))]) for name in names])

        @torch.inference_mode()
        def run(
            images: Sequence[Pixels],
            discs: Sequence[Pixels],
            candidates: Sequence[Sequence[str]],
            classes: Sequence[str],
        ) -> Ranks:
            features = _unit(model.encode_image(vision.to_tensor(images, preprocess, device, precision)))
            texts = encode([text for each in candidates for text in each]).view(len(images), -1, features.shape[-1])
            found: dict[str, Any] = {"scores": _numbers(_cosines(features, texts))}
            if self.rotates:
                turned = [
                    _cosines(_unit(model.encode_image(view.to(vision.dtype_of(precision)))), texts)
                    for view in turns(discs, preprocess, device)
                ]
                found["rotation_mean"] = _numbers(torch.stack(turned).mean(dim=0))
                found["rotation_variance"] = _numbers(torch.stack(turned).var(dim=0, correction=0))
            if not classes:
                return Ranks(**found)
            named = class_features(tuple(classes))
            of_texts = [[classes[n] for n in row] for row in (texts @ named.T).argmax(dim=-1).tolist()]
            of_images = [classes[n] for n in (features @ named.T).argmax(dim=-1).tolist()]
            return Ranks(**found, image_class=of_images, text_classes=of_texts)

        return run


def disc(image: Any, preprocess: Preprocess) -> Pixels:
    """The centre square of an image at the size from which any turn of the model's input can be cut.

    A square of side s inscribed in the circle inscribed in this one has corners inside the image at every angle, so no
    turned view sees a black corner, and all views see the same ground.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    wanted = math.ceil(max(preprocess.size) * math.sqrt(2)) + 2
    square = image.resize((wanted, wanted), resample=_bicubic(), box=(left, top, left + side, top + side))
    return np.asarray(square, dtype=np.uint8)


def turns(discs: Sequence[Pixels], preprocess: Preprocess, device: str) -> list[Any]:
    """Normalised views (n, 3, height, width), one tensor for each of `ANGLES` turns."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    pixels = torch.from_numpy(np.stack(discs)).to(device).permute(0, 3, 1, 2).to(torch.float32)
    mean, std = (torch.tensor(preprocess.options[name], device=device).view(1, 3, 1, 1) for name in ("mean", "std"))
    height, width = preprocess.size
    across, down = width / pixels.shape[3], height / pixels.shape[2]
    views = []
    for number in range(ANGLES):
        cosine, sine = (f(2 * math.pi * number / ANGLES) for f in (math.cos, math.sin))
        matrix = torch.tensor([[cosine * across, -sine * down, 0.0], [sine * across, cosine * down, 0.0]])
        grid = affine_grid(matrix.to(device).expand(len(discs), 2, 3), [len(discs), 3, height, width], False)
        view = grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False)
        views.append((view.clamp(0, 255) / 255 - mean) / std)
    return views


def words(name: str) -> str:
    """A class's name in words: `place_of_worship` is "place of worship"."""
    return " ".join(name.replace("_", " ").split())


def _bicubic() -> Any:
    from PIL.Image import Resampling

    return Resampling.BICUBIC


def _unit(features: Any) -> Any:
    from torch.nn.functional import normalize

    return normalize(features.float(), dim=-1)


def _cosines(features: Any, texts: Any) -> Any:
    """(n, d) and (n, c, d) to (n, c)."""
    return (texts * features[:, None]).sum(dim=-1)


def _numbers(values: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values.float().cpu().numpy()
    return found
