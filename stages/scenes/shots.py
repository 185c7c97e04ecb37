"""From a scene to its images: the file as it is, an RGB view of it, or a tile after the other."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from stages.images import Limits, Verdict, inspect
from stages.scenes import raster
from stages.scenes.base import BadScene, Entry, Scene
from stages.scenes.options import RasterOptions, Tile
from stages.scenes.raster import NOWHERE, Place, Raster
from stages.scenes.tiles import Box, shown, sides, windows

if TYPE_CHECKING:
    from rasterio.windows import Window

TILED = frozenset({"jpeg", "png", "tiff"})
"""Images that can be read window by window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """One image of a scene."""

    verdict: Verdict
    reason: str | None = None
    """Why it is dropped though it is an image."""
    data: bytes | None = None
    """The view as PNG; None when the image stays where it is."""
    facts: dict[str, Any] = field(default_factory=dict)
    footprint: tuple[float, float, float, float] | None = None
    window: tuple[int, int, int, int] | None = None
    """x, y, width, height in pixels of the scene, when it is a tile."""
    whole: tuple[int, int] | None = None
    """Width and height of the file that a view is of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """How images are made of a source's scenes."""

    options: RasterOptions
    tile: Tile | None
    limits: Limits
    access: Mapping[str, Any]
    """fsspec's options."""

    def shots(self, entry: Entry, scene: Scene, data: bytes | None) -> Iterator[Shot]:
        """The images of a scene.

        Args:
            entry: the scene's.
            scene: what is known of it.
            data: the file's bytes; None for rasters, which are read window by window.

        Raises:
            BadScene: it cannot be read.
        """
        if scene.is_raster or data is None:
            yield from self._views(entry, scene)
            return
        verdict = inspect(data, self.limits)
        if self.tile and verdict.format in TILED and max(verdict.width or 0, verdict.height or 0) > self.tile.size:
            yield from self._views(entry, scene, data)
        else:
            yield Shot(verdict=verdict)

    def _views(self, entry: Entry, scene: Scene, data: bytes | None = None) -> Iterator[Shot]:
        with raster.open_raster(entry.path, scene.bands, self.options, self.access, data) as opened:
            height, width = opened.first.shape
            if self.tile is None and height * width > self.limits.max_pixels:
                raise BadScene("too_many_pixels")
            limits, note = raster.ends(opened, self.options.stretch)
            facts = _stated(opened, note)
            for box, shape in _boxes(opened, scene, self.tile):
                place = _place(opened, scene, box, shape)
                yield self._shot(opened, limits, facts, place, box, shape)

    def _shot(
        self, opened: Raster, limits: Any, facts: dict[str, Any], place: Place, box: Box, shape: tuple[int, int]
    ) -> Shot:
        is_tile = box[2:] != (opened.first.width, opened.first.height)
        view, nodata = raster.render(opened, limits, _window(box), shape)
        data = to_png(view)
        return Shot(
            verdict=inspect(data, Limits(max_pixels=shape[0] * shape[1])),
            reason="nodata" if self.tile and nodata > self.tile.max_nodata else None,
            data=data,
            facts=facts | place.facts,
            footprint=place.footprint,
            window=box if is_tile else None,
            whole=(opened.first.width, opened.first.height),
        )


def _boxes(opened: Raster, scene: Scene, tile: Tile | None) -> Iterator[tuple[Box, tuple[int, int]]]:
    """(window, (height, width) it is shown in) of every image of a scene.

    Raises:
        BadScene: tiles of a ground size are wanted of a scene that states none.
    """
    height, width = opened.first.shape
    if tile is None:
        yield (0, 0, width, height), (height, width)
        return
    whole = _place(opened, scene, (0, 0, width, height), (height, width))
    pixel = None if whole == NOWHERE else (whole.facts["pixel_x_m"], whole.facts["pixel_y_m"])
    if tile.target_gsd is not None and pixel is None:
        raise BadScene("bad_metadata")
    side, overlap = sides(tile, pixel)
    for box in windows(width, height, side, overlap):
        yield box, shown(box, side, tile)


def _place(opened: Raster, scene: Scene, box: Box, shape: tuple[int, int]) -> Place:
    """Where a window lies, as the file says, or else as what is stated of the whole scene."""
    found = raster.place(opened.first, _window(box), shape)
    crs, bounds = scene.facts.get("crs"), scene.facts.get("bounds")
    if found != NOWHERE or not crs or not bounds or None in bounds.values():
        return found
    height, width = opened.first.shape
    across, down = (bounds["right"] - bounds["left"]) / width, (bounds["top"] - bounds["bottom"]) / height
    left, top = bounds["left"] + box[0] * across, bounds["top"] - box[1] * down
    return raster.place_of(crs, (left, top - box[3] * down, left + box[2] * across, top), shape)


def _window(box: Box) -> Window:
    from rasterio.windows import Window

    return Window(*box)


def _stated(opened: Raster, note: str) -> dict[str, Any]:
    """What the file says of itself: bands, stretch, and GDAL's tags of an acquisition."""
    from stages.scenes.tables import moment

    tags = opened.first.tags(ns="IMAGERY")
    facts: dict[str, Any] = {"bands": list(opened.names), "stretch": note}
    if acquired := moment(tags.get("ACQUISITIONDATETIME")):
        facts["acquired_at"] = acquired
    if tags.get("SATELLITEID"):
        facts["platform"] = tags["SATELLITEID"]
    return facts


def to_png(view: NDArray[Any]) -> bytes:
    """An 8-bit RGB array as PNG; the same array always gives the same bytes."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(view).save(out, "PNG", compress_level=6)
    return out.getvalue()
