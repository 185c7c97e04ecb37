"""Options of sources of images: bands, stretch, tiles, constant facts; each mistake is one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.errors import UserError, did_you_mean, listing
from stages.sources import Source

RASTER = frozenset({"bands", "stretch", "tile", "facts", "keep"})
"""Names of the options that every format of images takes."""
FACTS = (
    "sensor",
    "platform",
    "modality",
    "processing_level",
    "official_split",
    "gsd_m",
)
"""Facts that may be stated for a whole source."""
KEEPABLE = ("official_test", "snow", "cloud")
MOST_TILE = 16_384


@dataclass(frozen=True, slots=True)
class Stretch:
    """How samples become 8 bits: `none`, `auto`, `range` (two values) or `percentiles` (two per cents)."""

    kind: str = "auto"
    low: float = 2.0
    high: float = 98.0


@dataclass(frozen=True, slots=True)
class Tile:
    """How a scene is cut."""

    size: int = 512
    """Side in pixels of the image that is made."""
    overlap: int = 0
    """Pixels that neighbours share."""
    max_nodata: float = 0.2
    """Share of pixels without data beyond which a tile is dropped."""
    target_gsd: float | None = None
    """Metres a pixel that tiles are resampled to; None keeps the scene's own."""


@dataclass(frozen=True, slots=True)
class RasterOptions:
    """What a recipe says about the images of a source."""

    bands: tuple[int | str, ...] | None = None
    """Numbers from 1, or the names that the file gives its bands: one for grey, or three for red, green and blue."""
    stretch: Stretch = Stretch()
    tile: Tile | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    keep: frozenset[str] = frozenset()
    """Reasons for which rows are not dropped after all."""


def raster_options(source: Source) -> RasterOptions:
    """The options of a source.

    Raises:
        UserError: naming the source, the option, what it holds and what is accepted.
    """
    where = f"source {source.name!r}: options"
    options = source.options
    keep = options.get("keep", [])
    if not isinstance(keep, list) or not set(keep) <= set(KEEPABLE):
        raise UserError(f"{where}.keep is {keep!r}; a list of {listing(KEEPABLE)} is needed")
    return RasterOptions(
        bands=_bands(options.get("bands"), where),
        stretch=stretch(options.get("stretch", "auto"), f"{where}.stretch"),
        tile=tile(options.get("tile"), f"{where}.tile"),
        facts=_facts(options.get("facts") or {}, where),
        keep=frozenset(keep),
    )


def stretch(value: Any, where: str) -> Stretch:
    """`auto`, `none`, `{range: [low, high]}` or `{percentiles: [low, high]}`.

    Raises:
        UserError: it is none of these.
    """
    if value in ("auto", "none"):
        return Stretch(kind=value)
    if isinstance(value, Mapping) and len(value) == 1:
        [(kind, ends)] = value.items()
        if (
            kind in ("range", "percentiles")
            and _are_ordered(ends)
            and (kind == "range" or 0 <= ends[0] < ends[1] <= 100)
        ):
            return Stretch(kind, float(ends[0]), float(ends[1]))
    raise UserError(
        f"{where} is {value!r}; accepted are auto, none, {{range: [low, high]}} and {{percentiles: [low, high]}}"
    )


def tile(value: Any, where: str) -> Tile | None:
    """How scenes are cut, from a mapping of `Tile`'s fields; None for null.

    Raises:
        UserError: an unknown field, or a value that makes no sense.
    """
    if value is None:
        return None
    known = ("size", "overlap", "max_nodata", "target_gsd")
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {value!r}; a mapping with {listing(known)} is needed")
    for name in value:
        if name not in known:
            raise UserError(f"{where}: unknown key {name!r}{did_you_mean(name, known)}; accepted are {listing(known)}")
    made = Tile(**value)
    if not _is_whole(made.size) or not 16 <= made.size <= MOST_TILE:
        raise UserError(f"{where}.size is {made.size!r}; a whole number from 16 to {MOST_TILE} is needed")
    if not _is_whole(made.overlap) or not 0 <= made.overlap < made.size:
        raise UserError(f"{where}.overlap is {made.overlap!r}; a whole number from 0 to below size is needed")
    if not _is_number(made.max_nodata) or not 0 <= made.max_nodata <= 1:
        raise UserError(f"{where}.max_nodata is {made.max_nodata!r}; a number from 0 to 1 is needed")
    if made.target_gsd is not None and not (_is_number(made.target_gsd) and made.target_gsd > 0):
        raise UserError(f"{where}.target_gsd is {made.target_gsd!r}; metres above 0 or null are needed")
    return made


def _bands(value: Any, where: str) -> tuple[int | str, ...] | None:
    if value is None:
        return None
    is_list = isinstance(value, list) and len(value) in (1, 3)
    if not is_list or not all(isinstance(item, str) or (_is_whole(item) and item > 0) for item in value):
        raise UserError(f"{where}.bands is {value!r}; a list of one or three band numbers (from 1) or names is needed")
    return tuple(value)


def _facts(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}.facts is {value!r}; a mapping with any of {listing(FACTS)} is needed")
    for name, fact in value.items():
        if name not in FACTS:
            raise UserError(
                f"{where}.facts: unknown key {name!r}{did_you_mean(name, FACTS)}; accepted are {listing(FACTS)}"
            )
        if not (_is_number(fact) and fact > 0 if name == "gsd_m" else isinstance(fact, str)):
            raise UserError(
                f"{where}.facts.{name} is {fact!r}; {'a number above 0' if name == 'gsd_m' else 'a text'} is needed"
            )
    return dict(value)


def choice(source: Source, name: str, accepted: Iterable[Any], default: Any) -> Any:
    """An option that holds one of a few values.

    Raises:
        UserError: it holds another one.
    """
    value = source.options.get(name, default)
    accepted = tuple(accepted)
    if value not in accepted or isinstance(value, bool):
        raise UserError(f"source {source.name!r}: options.{name} is {value!r}; accepted are {listing(accepted)}")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_ordered(ends: Any) -> bool:
    return isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends)) and ends[0] < ends[1]
