"""The YAML config of a training: sources, split, drawn negatives, model and optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from trainer.errors import UserError

LABELS = ("other", "rs")
"""Names of the two outputs, in order."""
DEFAULT = Path(__file__).with_name("default.yaml")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder of images of one class, under the data folder."""

    folder: str
    label: str
    use: str = "train"
    """`train`: split into train, validation and test; `test`: every image is a test image."""
    format: str = "images"
    """`images`: every image file is one; `sentinel2`: a folder of band TIFFs is one patch; `raster`: any GDAL reads."""
    bands: tuple[tuple[int, ...], ...] = ((1, 2, 3), (1,))
    """Of a raster: the pictures made of it, each of one band or three, from 1 up; those of bands it lacks are not."""
    group: str = "file"
    """What must not cross the split: `file` (byte copies), or `folder` (all that lies in one folder)."""
    files: tuple[str, ...] = ("**/*",)
    """Which files under the folder, by a pattern of names or several."""
    tile: int = 0
    """Larger images are cut into squares of so many pixels, which share a side of the split; 0: images stay whole."""
    limit: int = 0
    """At most so many images, chosen by name's digest; 0: all."""
    weight: float = 1.0
    """How much larger its share of a batch is than by its number of images."""
    opaque: bool = False
    """Whether an alpha channel means something else than transparency, and is ignored."""
    kin: str = ""
    """Sources with one name here show the same places, or come of one sensor: `leave-out` leaves them out together."""
    origin: str = ""
    """Whence the images are, for the card."""
    licence: str = ""
    """Their terms, for the card."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Shares of a source's groups."""

    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures drawn by code: hard negatives, and land seen from above."""

    per_kind: int = 150
    """Pictures of each kind, before the split."""
    share: float = 0.35
    """Of the negatives in a batch."""
    positives: float = 0.0
    """Share that drawn land seen from above has in the positives of a batch; 0: none is drawn."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A timm architecture and its input."""

    architecture: str
    size: int = 128
    drop_path: float = 0.05
    descriptors: bool = False
    """Whether a perceptron over hand-made descriptors is added to the network."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A pretrained network whose features the detector learns to tell, beside the label (Romero et al. 2015)."""

    architecture: str = ""
    """A timm architecture; empty: no teacher."""
    package: str = ""
    """The Python package that holds its weights, one `.pth` file in timm's order of layers."""
    size: int = 0
    """The side, in px, to which pictures are enlarged for it; 0: it sees them as the detector does."""
    weight: float = 4.0
    """Of the features' loss beside the label's."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Optimisation."""

    steps: int = 6000
    batch: int = 64
    lr: float = 0.002
    warmup: int = 300
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    ema: float = 0.998
    prepared: int = 2000
    """Batches of altered pictures that are made before the first step; a step draws from all of them."""
    balance: float = 0.5
    """A source of n images gets a share of its class in proportion to n to this power."""
    harder: float = 0.0
    """Probability of further turns by any angle, and of grey beside the modalities'."""
    plain: float = 0.0
    """Probability that a picture is hardly altered."""
    zoom: float = 1.0
    """Least share of a prepared picture's side that a step's crop of a batch leaves."""
    turn: float = 0.0
    """Probability that a step's batch is turned by an angle of its own, up to 45 degrees."""
    grey: float = 0.0
    """Share of a step's pictures that are made grey, whatever their preparation did."""
    early_share: float = 0.0
    """The first part of the steps, which see pictures of `early_size` px."""
    early_size: int = 96
    checkpoint_every: int = 250


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of a training but the data folder and the seed's use."""

    sources: dict[str, Source]
    model: Model
    seed: int = 0
    split: Split = field(default_factory=Split)
    drawn: Drawn = field(default_factory=Drawn)
    teacher: Teacher = field(default_factory=Teacher)
    training: Training = field(default_factory=Training)

    def plain(self) -> dict[str, Any]:
        """As nested plain values, for JSON."""
        return asdict(self)

    def size_at(self, step: int) -> int:
        """The side of a step's pictures, in px."""
        early = step < self.training.early_share * self.training.steps
        return self.training.early_size if early else self.model.size

    def with_steps(self, steps: int | None) -> Config:
        """The same with another length; the warm-up takes a tenth of it at most."""
        if not steps:
            return self
        warmup = min(self.training.warmup, max(1, steps // 10))
        return replace(self, training=replace(self.training, steps=steps, warmup=warmup))


def load(path: Path | None) -> Config:
    """Read a config file, or the shipped one.

    Raises:
        UserError: the file is missing, is no YAML mapping, or has a key or value that is not accepted.
    """
    import yaml

    path = path or DEFAULT
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    config: Config = _build(Config, found, str(path))
    _check(config, str(path))
    return config


def _build(kind: type, found: Any, where: str) -> Any:
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: a mapping is wanted, found {found!r}")
    types = get_type_hints(kind)
    unknown = sorted(set(found) - set(types))
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; accepted: {', '.join(types)}")
    missing = [f.name for f in fields(kind) if f.name not in found and _required(f)]
    if missing:
        raise UserError(f"{where}: the key {missing[0]!r} is missing")
    return kind(**{name: _value(types[name], value, f"{where}: {name}") for name, value in found.items()})


def _required(of: Any) -> bool:
    from dataclasses import MISSING

    return of.default is MISSING and of.default_factory is MISSING


def _value(wanted: Any, value: Any, where: str) -> Any:
    if wanted == dict[str, Source]:
        if not isinstance(value, Mapping) or not value:
            raise UserError(f"{where}: a mapping of names to sources is wanted, found {value!r}")
        return {str(name): _build(Source, one, f"{where}.{name}") for name, one in value.items()}
    if wanted is bool:
        if not isinstance(value, bool):
            raise UserError(f"{where}: true or false is wanted, found {value!r}")
        return value
    if wanted == tuple[tuple[int, ...], ...]:
        return _bands(value, where)
    if wanted == tuple[str, ...]:
        return _patterns(value, where)
    if wanted in (int, float, str):
        if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
            raise UserError(f"{where}: {wanted.__name__} is wanted, found {value!r}")
        return wanted(value)
    return _build(wanted, value, where)


def _patterns(value: Any, where: str) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one for one in found):
        raise UserError(f"{where}: a pattern or a list of them is wanted, found {value!r}")
    return tuple(found)


def _bands(value: Any, where: str) -> tuple[tuple[int, ...], ...]:
    told = UserError(f"{where}: a list of lists of one or three band numbers is wanted, found {value!r}")
    if not isinstance(value, list) or not value or not all(isinstance(one, list) for one in value):
        raise told
    if any(len(one) not in (1, 3) or not all(type(band) is int and band > 0 for band in one) for one in value):
        raise told
    return tuple(tuple(one) for one in value)


def _check(config: Config, where: str) -> None:
    accepted = {
        "label": LABELS,
        "use": ("train", "test"),
        "format": ("images", "sentinel2", "raster"),
        "group": ("file", "folder"),
    }
    for name, source in config.sources.items():
        for key, values in accepted.items():
            if getattr(source, key) not in values:
                raise UserError(
                    f"{where}: sources.{name}.{key} is {getattr(source, key)!r}; accepted: {', '.join(values)}"
                )
    light = [name for name, source in config.sources.items() if source.weight <= 0]
    if light:
        raise UserError(f"{where}: sources.{light[0]}.weight: a number above 0 is wanted")
    shares = (config.split.train, config.split.validation, config.split.test)
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"{where}: split: three shares that sum to 1 are wanted, found {list(shares)}")
    for key in ("steps", "batch", "prepared", "checkpoint_every"):
        if getattr(config.training, key) < 1:
            raise UserError(f"{where}: training.{key} is {getattr(config.training, key)}; at least 1 is wanted")
    if bool(config.teacher.architecture) != bool(config.teacher.package):
        raise UserError(f"{where}: teacher: architecture and package are wanted together, or neither")
    if "drawn" in config.sources:
        raise UserError(f"{where}: sources.drawn: the name is taken by the negatives that code draws")
