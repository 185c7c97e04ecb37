"""What every reader of images one already has gives: entries of a listing, and the scene that each one is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from stages.scenes.options import RasterOptions
from stages.sources import Source

LISTING = pa.schema(
    [
        ("url", pa.string()),
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("note", pa.string()),
    ]
)
"""A row per image, scene or patch: what it is called, the file it lies in and where, and what its reader noted."""
WEB_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "avif"})
RASTER_SUFFIXES = frozenset({"tif", "tiff", "jp2"})
"""Files that are shown through an RGB view; those of `WEB_SUFFIXES` stay where they are."""


class BadScene(Exception):
    """A scene that cannot be taken, with the reason its row is dropped for."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An image, scene or patch as the listing names it."""

    url: str
    path: str
    """The file (or the patch's folder), in full."""
    offset: int = 0
    size: int = 0
    note: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for the reader that wrote them."""
    version: str = ""
    """Changes with the content; not kept in the listing."""

    def row(self) -> dict[str, Any]:
        """As `LISTING` has it."""
        note = json.dumps(self.note, ensure_ascii=True, separators=(",", ":"))
        return {"url": self.url, "path": self.path, "offset": self.offset, "size": self.size, "note": note}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Entry:
        """The inverse of `row`."""
        return cls(**{**row, "note": json.loads(row["note"])})


@dataclass(frozen=True, slots=True)
class Bands:
    """The files and band numbers (from 1) that an RGB view is made of: one pair for grey, or three."""

    files: tuple[tuple[str, int], ...]
    names: tuple[str, ...]
    offset: float = 0.0
    """Added to every value before it is stretched."""


@dataclass(kw_only=True, slots=True)
class Scene:
    """What an entry says about itself."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Columns of `schema.INGEST` by name, as far as the source states them."""
    captions: list[tuple[str, str]] = field(default_factory=list)
    """(text, origin), the sample's caption first."""
    is_raster: bool = False
    """Shown through an RGB view; else its bytes are a web image already."""
    bands: Bands | None = None
    """Of a raster whose bands lie in several files; None: the entry's own file, with the bands of the options."""
    native: tuple[tuple[str, int], ...] = ()
    """(path, size) of the files of a raster whose bands lie in several, those too that the view has no use for."""
    footprint: tuple[float, float, float, float] | None = None
    """West, south, east, north in degrees, where metadata gives it."""
    record_size: tuple[int, int] | None = None
    """Width and height that `facts["objects"]` are measured in, where they may differ from the image's."""


class Reader(Protocol):
    """A format's way to list and read a source. It is made in the task that uses it, from the source alone."""

    touching: float
    """Footprints that overlap by more than this share of the smaller one show one location."""
    locates: bool
    """A georeferenced file is a location by itself, to which others that overlap it belong."""
    options: RasterOptions

    def __init__(self, source: Source) -> None:
        """Raise `UserError` for options that make no sense."""

    def entries(self) -> Iterator[Entry]:
        """Every entry of the source, in an order that depends on names alone.

        Raises:
            UnitError: the source's own lists or tables cannot be read.
        """

    def notes(self) -> Sequence[str]:
        """Sentences about the whole source that its user should know."""

    def parts(self, entry: Entry) -> Mapping[str, tuple[int, int]]:
        """(offset, size) of what `scene` wants beside the image from the entry's file, by name."""

    def scene(self, entry: Entry, parts: Mapping[str, bytes]) -> Scene:
        """What an entry says about itself.

        Raises:
            BadScene: with the reason for which its row is dropped.
        """

    def ids(self, entry: Entry) -> tuple[str, ...]:
        """The names under which `only:` and `except:` lists may know the entry."""
