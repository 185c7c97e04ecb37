"""What a training is made of: named presets, a YAML file, single values; every one checked."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from trainer.adapters.options import PeftOptions
from trainer.data.captions import CaptionOptions
from trainer.data.images import NORMALISATIONS, Augment
from trainer.errors import UserError

PRESETS = Path(__file__).with_name("presets")
FREEZE = ("none", "image", "text")
PRECISIONS = ("fp32", "bf16", "fp16")
SAME_TEXT = ("negative", "positive")
SELECT = ("retrieval", "loss")
OWN = "model"
"""The normalisation that the model's own config records."""


def operational(default: Any) -> Any:
    """A field that changes neither samples nor steps: a run may go on with another value."""
    return field(default=default, metadata={"operational": True})


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that the weights depend on, and how the work is done; names are those of YAML and `--set`."""

    model: str = "ViT-B-32"
    """An open_clip name, a hub id (`org/name`), or an open_clip folder."""
    pretrained: str | None = None
    """open_clip's tag of weights; without it and `checkpoint` a named model begins untrained."""
    checkpoint: str | None = None
    """A state dict: open_clip's, GeoRSCLIP's or ITRA's."""
    quick_gelu: bool | None = None
    """The activation, where nothing records it."""
    freeze: str = "none"
    """The tower that stays as it is: `none`, `image` or `text`."""
    peft: PeftOptions = field(default_factory=PeftOptions)
    """Parts that are trained instead of the model's own weights."""
    epochs: int = 10
    samples: int = 0
    """Samples seen in all, in place of whole epochs; 0: `epochs` count."""
    batch_size: int = 256
    """Samples of a step, over all ranks."""
    lr: float = 1e-5
    warmup: int = 100
    """Steps in which the rate rises to `lr`; half a cosine to 0 follows."""
    weight_decay: float = 0.2
    """Of matrices alone: gains, biases and the logit scale are spared."""
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    clip: float = 0.0
    """Largest norm of the gradient; 0: any."""
    ema: float = 0.0
    """Decay of the averaged weights, which then are what is validated and saved; 0: none."""
    precision: str = "fp32"
    """Of products: `bf16` and `fp16` are mixed precision, weights and loss stay in fp32."""
    same_text: str = "negative"
    """What a sample with the same caption is to another: `negative`, as in CLIP, or `positive`."""
    normalisation: str = OWN
    """Statistics of the pixels: `model` for those of its config, or a name of `trainer.data.NORMALISATIONS`."""
    augment: Augment | None = field(default_factory=Augment)
    captions: CaptionOptions = field(default_factory=CaptionOptions)
    run: int = 1
    """Neighbours in a tar that stay together in the order."""
    seed: int = 0
    damage_limit: float = operational(0.01)
    """Share of the samples that may be damaged."""
    chunk: int = operational(0)
    """Samples of a rank that go through the model at once (GradCache); 0: all of a step."""
    recompute: bool = operational(False)
    """Compute activations again in the backward pass instead of holding them."""
    select: str = operational("retrieval")
    """What the best weights are best in, on `--val-data`: `retrieval` (mean recall) or `loss`."""
    validation_samples: int = operational(5000)
    """At most so many, the same every time."""
    validate_every: int = operational(0)
    """Steps; 0: an epoch."""
    checkpoint_every: int = operational(1000)
    """Steps; one is written after each validation, too."""
    keep: int = operational(2)
    """Checkpoints that stay."""

    def __post_init__(self) -> None:
        _check(self)

    def plain(self) -> dict[str, Any]:
        """As nested plain values."""
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on, as plain values."""
        spared = {each.name for each in fields(self) if each.metadata.get("operational")}
        return {name: value for name, value in self.plain().items() if name not in spared}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training on its data, for its folder."""

    config: Config
    data: tuple[str, ...]
    val_data: tuple[str, ...] = ()
    out: Path
    resume: bool = False
    device: str = "auto"
    workers: int = 2
    """Processes a rank that read and decode."""


def _check(config: Config) -> None:
    accepted = {
        "freeze": FREEZE,
        "precision": PRECISIONS,
        "same_text": SAME_TEXT,
        "select": SELECT,
        "normalisation": (OWN, *NORMALISATIONS),
    }
    for name, values in accepted.items():
        if getattr(config, name) not in values:
            raise UserError(f"{name} is {getattr(config, name)!r}; accepted: {', '.join(values)}")
    for name in ("epochs", "batch_size", "run", "validation_samples", "checkpoint_every", "keep"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; at least 1 is wanted")
    for name in ("samples", "warmup", "weight_decay", "clip", "damage_limit", "chunk", "validate_every", "seed"):
        if not getattr(config, name) >= 0:
            raise UserError(f"{name} is {getattr(config, name)}; at least 0 is wanted")
    for name in ("lr", "epsilon"):
        if not getattr(config, name) > 0:
            raise UserError(f"{name} is {getattr(config, name)}; more than 0 is wanted")
    for name in ("beta1", "beta2", "ema"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; 0 or more and less than 1 is wanted")


def presets() -> list[str]:
    """Names of the shipped ones."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load(preset: str | None = None, said: Mapping[str, Any] | None = None, sets: Sequence[str] = ()) -> Config:
    """The defaults, over them a preset, then single values.

    Args:
        preset: a shipped name, or a YAML file of one's own.
        said: values by key.
        sets: `key=value` texts, the value in YAML; a dot leads into `augment`, `captions` and `peft`.

    Raises:
        UserError: an unknown key or a value that is not accepted; it names them.
    """
    values = _read(preset) if preset else {}
    values |= said or {}
    for text in sets:
        _put(values, text)
    return _built(Config, values, "")


def _read(preset: str) -> dict[str, Any]:
    import yaml

    path = PRESETS / f"{preset}.yaml" if preset in presets() else Path(preset)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        shipped = ", ".join(presets())
        raise UserError(f"--preset {preset}: no such file; accepted: {shipped}, or a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--preset {preset}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise UserError(f"--preset {preset}: a mapping of options is wanted, found {found!r}")
    return found


def _put(values: dict[str, Any], text: str) -> None:
    import yaml

    name, sign, value = text.partition("=")
    if not (name and sign):
        raise UserError(f"--set {text}: KEY=VALUE is wanted")
    *path, last = name.split(".")
    for part in path:
        inner = values.get(part)
        values[part] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[part]
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value cannot be read as YAML") from error


def _built(kind: type, found: Any, where: str) -> Any:
    """A dataclass from a mapping, every value of its field's type."""
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: a mapping is wanted, found {found!r}")
    hints = get_type_hints(kind)
    known = [each.name for each in fields(kind)]
    unknown = [name for name in found if name not in known]
    if unknown:
        raise UserError(f"{_joined(where, unknown[0])}: unknown key; accepted: {', '.join(known)}")
    return kind(**{name: _value(hints[name], value, _joined(where, name)) for name, value in found.items()})


def _joined(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _value(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else _value(get_args(kind)[0], value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        return _built(kind, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(get_args(kind)):
            raise UserError(f"{where}: {len(get_args(kind))} numbers are wanted, found {value!r}")
        return tuple(_value(float, each, where) for each in value)
    if get_origin(kind) is not None:
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: a mapping of names to numbers is wanted, found {value!r}")
        return {str(name): _value(float, each, _joined(where, name)) for name, each in value.items()}
    return _single(kind, value, where)


def _single(kind: type, value: Any, where: str) -> Any:
    """A bool, int, float or str; YAML reads `1e-6` as a text, which is taken as the number it is."""
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    raise UserError(f"{where}: {names[kind]} is wanted, found {value!r}")
