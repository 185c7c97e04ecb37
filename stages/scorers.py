"""Scorers: what gives an image (and its caption) its numbers. Each is a model, its inputs and its columns."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from stages import vision
from stages.base import operational, semantic
from stages.errors import UserError
from stages.features import COLUMN, vector_array
from stages.memory import Fitted
from stages.models import ModelRef
from stages.texts import text_encoder
from stages.vision import Pixels, Preprocess

BUILTIN = "builtin"
"""The recipe's name for the detector that is shipped (manifests/models/detector)."""
Scores = dict[str, NDArray[np.float32]]
Run = Callable[[Sequence[Pixels], Sequence[str]], Scores]
"""Scores of one batch: uint8 images of the model's size and their captions (empty when there is none). A scorer with
features gives those too, (n, width), under `features.COLUMN`."""


@dataclass(frozen=True, kw_only=True)
class VlmConfig:
    """A contrastive vision-language model and the prompts it compares images with."""

    model: str = semantic(help="an open_clip name, a hub id, or a folder with open_clip_config.json and weights")
    pretrained: str | None = semantic(None, help="tag (or file) of weights, for an open_clip name")
    prompts: str = semantic("rs5m", help="prompts shipped under this name, or a YAML file with a list `prompts`")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = semantic("auto", help="auto: fp16 on a GPU, else fp32")
    reduced: bool = semantic(False, help="decode large JPEGs at 1/2, 1/4 or 1/8, twice the model's size at least")
    batch_size: int = operational(64, help="images a forward pass")
    device: Literal["auto", "cuda", "cpu"] = operational("auto", help="auto: a GPU where the cluster has one")
    threads: int = operational(4, help="CPU threads of each model, where it has so many cores")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """A classifier one of whose classes is remote sensing."""

    model: str = semantic(
        "builtin", help="builtin: the shipped one; or a timm folder (config.json, weights); or a hub id"
    )
    positive_label: str | None = semantic(None, help="name of the class that means remote sensing; else found by name")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = semantic("auto", help="auto: fp16 on a GPU, else fp32")
    reduced: bool = semantic(False, help="decode large JPEGs at 1/2, 1/4 or 1/8, twice the model's size at least")
    batch_size: int = operational(128, help="images a forward pass")
    device: Literal["auto", "cuda", "cpu"] = operational("auto", help="auto: a GPU where the cluster has one")
    threads: int = operational(4, help="CPU threads of each model, where it has so many cores")


class Scorer(ABC):
    """One model of the outliers stage. Instances are pickled into tasks; models are loaded by `load`."""

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    """Scores it gives, float32."""
    reads_captions: ClassVar[bool]
    """Whether a score depends on the caption too."""
    with_features: bool = False
    """Whether it returns the image's features too."""

    def __init__(self, config: Any, ref: ModelRef) -> None:
        self.config = config
        self.ref = ref.absolute()

    def check(self) -> None:
        """Raise `UserError` for what is wrong, before anything runs."""
        if self.config.batch_size < 1 or self.config.threads < 1:
            raise UserError(f"{self.ref.where}: batch_size and threads are whole numbers from 1 on")
        self.ref.check()

    def files(self) -> list[str]:
        """Local files that decide the scores."""
        return self.ref.files()

    def digest(self, sha256: Callable[[str], str]) -> str:
        """Identity of what is computed: weights and options, not paths, batch shapes or devices."""
        return self._digest(sha256, [*self.semantics(), *(["reduced"] if self.config.reduced else [])])

    def features_digest(self, sha256: Callable[[str], str]) -> str:
        """Identity of the image features, which no prompt changes."""
        return self._digest(sha256, ["features", self.config.precision, *(["reduced"] if self.config.reduced else [])])

    def _digest(self, sha256: Callable[[str], str], options: Sequence[Any]) -> str:
        named = [self.ref.identifier, self.ref.pretrained]
        described = {
            "scorer": self.name,
            "model": [sha256(path) for path in self.ref.files()] or named,
            "options": options,
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def preprocess(self) -> Preprocess:
        """The model's own preprocessing."""
        return vision.preprocess_of(self.ref)

    @abstractmethod
    def semantics(self) -> list[Any]:
        """Options beside the weights that decide the scores."""

    @abstractmethod
    def load(self, preprocess: Preprocess) -> Run:
        """The model on its device, ready to score batches of `batch_size`."""


class VlmScorer(Scorer):
    """Cosine with the mean of the prompts' text features (arXiv 2306.11300 §III-A), and with the caption."""

    name: ClassVar[str] = "vlm"
    columns: ClassVar[tuple[str, ...]] = ("vlm_score", "caption_similarity")
    reads_captions: ClassVar[bool] = True
    config: VlmConfig

    def __init__(self, config: VlmConfig, with_features: bool = False, where: str = "stages.outliers.vlm") -> None:
        self.with_features = with_features
        super().__init__(
            config, ModelRef(library="open_clip", where=where, model=config.model, pretrained=config.pretrained)
        )
        self.prompts_file = vision.shipped_or_path("prompts", config.prompts)

    def check(self) -> None:
        """The model and the prompts."""
        super().check()
        self.prompts()

    def files(self) -> list[str]:
        """Weights and prompts."""
        return [*super().files(), str(self.prompts_file)]

    def semantics(self) -> list[Any]:
        """Prompts and precision."""
        return [self.prompts(), self.config.precision]

    def prompts(self) -> list[str]:
        """The texts whose mean an image is compared with.

        Raises:
            UserError: the file is missing or holds no list of texts.
        """
        try:
            found = yaml.safe_load(self.prompts_file.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{self.ref.where}.prompts: {self.config.prompts!r} cannot be read ({error})") from error
        texts = found.get("prompts") if isinstance(found, dict) else None
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{self.ref.where}.prompts: {self.prompts_file} holds no list of texts named `prompts`")
        return texts

    def load(self, preprocess: Preprocess) -> Run:
        """Both towers; the prompts are encoded once."""
        import torch

        from stages.onednn import linear_through_onednn

        vision.be_deterministic(self.config.threads)
        device = vision.device_for(self.config.device, self.ref.where)
        precision = vision.precision_for(self.config.precision, device)
        model, tokenizer = vision.load_open_clip(self.ref, device, precision)
        encode_texts, running = text_encoder(model, tokenizer, device), linear_through_onednn(device, precision)

        @torch.inference_mode()
        def run(images: Sequence[Pixels], captions: Sequence[str]) -> Scores:
            with running():
                features = _unit(model.encode_image(vision.to_tensor(images, preprocess, device, precision)))
                similarity = _similarity(features, encode_texts, captions)
            scores = {"vlm_score": (features @ prompt).cpu().numpy(), "caption_similarity": similarity}
            return scores | ({COLUMN: features.cpu().numpy()} if self.with_features else {})

        with torch.inference_mode():
            prompt = _unit(_unit(encode_texts(self.prompts())).mean(dim=0, keepdim=True))[0]
        return run


class DetectorScorer(Scorer):
    """Probability that an image is remote sensing, and its log-odds, which do not saturate."""

    name: ClassVar[str] = "detector"
    columns: ClassVar[tuple[str, ...]] = ("detector_score", "detector_logit")
    reads_captions: ClassVar[bool] = False
    config: DetectorConfig

    def __init__(self, config: DetectorConfig) -> None:
        model = str(vision.shipped_model("detector")) if config.model == BUILTIN else config.model
        super().__init__(config, ModelRef(library="timm", where="stages.outliers.detector", model=model))

    def check(self) -> None:
        """The model, and which of its classes is the positive one."""
        super().check()
        if self.ref.folder:
            self.positive()

    def semantics(self) -> list[Any]:
        """The positive class and precision."""
        return [self.config.positive_label, self.config.precision]

    def positive(self) -> int:
        """The output that means remote sensing.

        Raises:
            UserError: the config's label names do not tell.
        """
        labels = vision.label_names(self.ref)
        wanted = [self.config.positive_label] if self.config.positive_label else ["rs", "remote_sensing"]
        found = [index for index, label in enumerate(labels) if label.lower() in [str(w).lower() for w in wanted]]
        if len(found) != 1:
            raise UserError(
                f"{self.ref.where}.positive_label: one of the model's label_names must be "
                f"{' or '.join(map(repr, wanted))}; it has {labels or 'none'}"
            )
        return found[0]

    def load(self, preprocess: Preprocess) -> Run:
        """The classifier."""
        import torch

        from stages.onednn import linear_through_onednn

        vision.be_deterministic(self.config.threads)
        device = vision.device_for(self.config.device, self.ref.where)
        precision = vision.precision_for(self.config.precision, device)
        model = vision.load_timm(self.ref, device, precision)
        positive, running = self.positive(), linear_through_onednn(device, precision)

        @torch.inference_mode()
        def run(images: Sequence[Pixels], captions: Sequence[str]) -> Scores:
            with running():
                outputs = model(vision.to_tensor(images, preprocess, device, precision)).double()
            others = outputs[:, [index for index in range(outputs.shape[1]) if index != positive]]
            logit = outputs[:, positive] - others.logsumexp(dim=1) if others.shape[1] else outputs[:, 0]
            return {
                "detector_score": torch.sigmoid(logit).float().cpu().numpy(),
                "detector_logit": logit.float().cpu().numpy(),
            }

        return run


def _similarity(
    features: Any, encode_texts: Callable[[Sequence[str]], Any], captions: Sequence[str]
) -> NDArray[np.float32]:
    """(n,) cosines of image features and those of their captions; NaN where there is none."""
    if not any(captions):
        return np.full(len(captions), np.nan, np.float32)
    similarity: NDArray[np.float32] = (features * _unit(encode_texts(captions))).sum(dim=1).cpu().numpy()
    similarity[[not caption for caption in captions]] = np.nan
    return similarity


def _unit(features: Any) -> Any:
    """float32 vectors of length 1."""
    from torch.nn.functional import normalize

    return normalize(features.float(), dim=-1)


def score_batches(
    run: Run, batch_size: int, images: Sequence[Pixels], captions: Sequence[str], columns: Sequence[str]
) -> dict[str, pa.Array]:
    """Scores of any number of images by batches of one fixed shape: the last is filled up, and cut again.

    What is not finite becomes null. Features come as `features.vector_array`, where the scorer returns any.
    """
    parts: list[Scores] = []
    for start in range(0, len(images), batch_size):
        batch, texts = list(images[start : start + batch_size]), list(captions[start : start + batch_size])
        real, missing = len(batch), batch_size - len(batch)
        scored = run(batch + [np.zeros_like(batch[0])] * missing, texts + [""] * missing)
        parts.append({name: values[:real] for name, values in scored.items()})
    scores = {name: np.concatenate([part[name] for part in parts] or [np.empty(0, np.float32)]) for name in columns}
    found = {name: pa.array(values, pa.float32(), mask=~np.isfinite(values)) for name, values in scores.items()}
    if parts and COLUMN in parts[0]:
        found[COLUMN] = vector_array(np.concatenate([part[COLUMN] for part in parts]))
    return found


class Batches(Fitted[Run]):
    """A loaded model, and the batch size that it has memory for."""

    def score(self, images: Sequence[Pixels], captions: Sequence[str], columns: Sequence[str]) -> dict[str, pa.Array]:
        """`score_batches` of what fits; raises `UnitError` when not even one image does."""
        return self.fit(lambda size: score_batches(self.run, size, images, captions, columns))
