"""Rasters through GDAL: bands, what is known of their place, and 8-bit RGB views of windows."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.geo.ground import chord_m, is_on_earth
from stages.scenes.base import BadScene, Bands
from stages.scenes.options import RasterOptions, Stretch
from stages.storage import file_system, is_local

if TYPE_CHECKING:
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
}
"""What is opened, by how it begins: formats that are one file, and name no others."""
STRIP_ROWS = 1024
"""Rows that are rendered at once."""
MOST_FETCHED = 256 << 20
"""Bytes of a file on an object store that is fetched whole; of larger ones, GDAL reads what it needs."""
CACHE_MB = 256
"""Of decoded blocks, which neighbouring windows share."""
PREVIEW_SIDE = 1024
"""Percentiles are of a view no larger than this: a stride over larger scenes."""

Grid = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Raster:
    """The bands of an RGB view, open: (dataset, band number) of one band for grey, or of three."""

    layers: tuple[tuple[DatasetReader, int], ...]
    names: tuple[str, ...]
    offset: float

    @property
    def first(self) -> DatasetReader:
        """The dataset whose size and place count."""
        return self.layers[0][0]

    def read(self, window: Window, shape: tuple[int, int]) -> tuple[Grid, NDArray[np.bool_]]:
        """(bands × height × width values, offset added; where there is data) of a window, resampled to a shape.

        Without a declared nodata value or mask, pixels that are 0 in every band of the view hold no data.
        """
        from rasterio.enums import Resampling

        how = Resampling.average if shape[0] < window.height or shape[1] < window.width else Resampling.bilinear
        values = np.stack(
            [data.read(band, window=window, out_shape=shape, resampling=how) for data, band in self.layers]
        ).astype(np.float64)
        valid = np.isfinite(values).all(axis=0)
        if self._has_mask():
            valid &= self.first.dataset_mask(window=window, out_shape=shape) > 0
        else:
            valid &= (values != 0).any(axis=0)
        return np.where(np.isfinite(values), values, 0.0) + self.offset, valid

    def _has_mask(self) -> bool:
        from rasterio.enums import MaskFlags

        return any(MaskFlags.all_valid not in flags for flags in self.first.mask_flag_enums)


@contextlib.contextmanager
def open_raster(
    path: str, bands: Bands | None, options: RasterOptions, access: Mapping[str, Any], data: bytes | None = None
) -> Iterator[Raster]:
    """The bands that a view of `path` is made of; `bands` names them where they lie in several files.

    Args:
        path: the raster.
        bands: of several files; None: the bands that the options name, else those that the file calls red, green and
            blue, else its first three, or its first one.
        options: of the source.
        access: fsspec's options.
        data: the raster's bytes, where `path` is a tar that has them among others.

    Raises:
        BadScene: a file that is empty, no raster, cut short or damaged, or has no such band.
    """
    with contextlib.ExitStack() as stack, _damage():
        if bands is None:
            dataset = stack.enter_context(_open(path, access, data))
            numbers = _chosen(dataset, options)
            yield Raster(tuple((dataset, number) for number in numbers), _names(dataset, numbers), 0.0)
            return
        files = {file: stack.enter_context(_open(file, access)) for file, _ in bands.files}
        if len({dataset.shape for dataset in files.values()}) > 1:
            raise BadScene("corrupt")
        yield Raster(tuple((files[file], number) for file, number in bands.files), bands.names, bands.offset)


@contextlib.contextmanager
def _open(path: str, access: Mapping[str, Any], data: bytes | None = None) -> Iterator[DatasetReader]:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    filesystem = file_system(path, access)
    start, data = (data[:12], data) if data is not None else _start(filesystem, path)
    driver = next((name for magic, name in DRIVERS.items() if start.startswith(magic)), None)
    if driver is None:
        raise BadScene("not_an_image" if start else "empty_body")
    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_CACHEMAX=CACHE_MB, CPL_LOG="/dev/null"),
        warnings.catch_warnings(),
        contextlib.ExitStack() as stack,
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            if data is not None:
                dataset = stack.enter_context(rasterio.MemoryFile(data)).open(driver=driver)
            else:
                dataset = rasterio.open(path, driver=driver, **({} if is_local(path) else {"opener": filesystem}))
        except RasterioIOError as error:
            raise BadScene(_damage_of(error)) from error
        yield stack.enter_context(dataset)


def _start(filesystem: Any, path: str) -> tuple[bytes, bytes | None]:
    """(how a file begins, all of it if it is small and lies on an object store).

    What is read here fails as the store does, and is tried again; what GDAL reads by itself would look damaged.
    """
    try:
        with filesystem.open(path, "rb") as file:
            if is_local(path) or file.size > MOST_FETCHED:
                return file.read(12), None
            data = file.read()
            return data[:12], data
    except FileNotFoundError as error:
        raise BadScene("empty_body") from error


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """What GDAL says about a file it cannot read further, as a reason."""
    from rasterio._err import CPLE_BaseError  # what GDAL says that rasterio has no class of its own for
    from rasterio.errors import RasterioError, RasterioIOError

    try:
        yield
    except RasterioIOError as error:
        raise BadScene(_damage_of(error)) from error
    except (RasterioError, CPLE_BaseError) as error:
        raise BadScene("corrupt") from error
    except MemoryError as error:
        raise BadScene("decoder_crash") from error


def _damage_of(error: BaseException) -> str:
    said = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(str(cause).lower())
        cause = cause.__cause__ or cause.__context__
    text = " ".join(said)
    short = (
        "truncated",
        "got ",
        "read error",
        "unexpected end",
        "not enough",
        "premature",
        "beyond end",
        "cannot read",
    )
    return "truncated" if any(sign in text for sign in short) else "corrupt"


def _chosen(dataset: DatasetReader, options: RasterOptions) -> tuple[int, ...]:
    if options.bands is not None:
        return tuple(_number(dataset, band) for band in options.bands)
    colours = [colour.name for colour in dataset.colorinterp]
    if {"red", "green", "blue"} <= set(colours):
        return tuple(colours.index(name) + 1 for name in ("red", "green", "blue"))
    return (1, 2, 3) if dataset.count >= 3 else (1,)


def _number(dataset: DatasetReader, band: int | str) -> int:
    if isinstance(band, str):
        if band not in dataset.descriptions:
            raise BadScene("bad_metadata")
        return int(dataset.descriptions.index(band)) + 1
    if band > dataset.count:
        raise BadScene("bad_metadata")
    return band


def _names(dataset: DatasetReader, numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(dataset.descriptions[number - 1] or str(number) for number in numbers)


def ends(raster: Raster, stretch: Stretch) -> tuple[list[tuple[float, float]] | None, str]:
    """(what becomes black and white, band by band; None where samples stay; what is written of it in the row)."""
    kind = stretch.kind
    if kind == "auto":
        kind = "none" if raster.first.dtypes[raster.layers[0][1] - 1] == "uint8" else "percentiles"
    note = f", offset {raster.offset:g}" if raster.offset else ""
    if kind == "none":
        return None, f"none{note}"
    if kind == "range":
        return [(stretch.low, stretch.high)] * len(raster.layers), f"range {stretch.low:g} to {stretch.high:g}{note}"
    found = _percentiles(raster, stretch)
    values = ", ".join(f"{low:g} to {high:g}" for low, high in found)
    return found, f"percentiles {stretch.low:g} to {stretch.high:g}: {values}{note}"


def _percentiles(raster: Raster, stretch: Stretch) -> list[tuple[float, float]]:
    from rasterio.windows import Window

    height, width = raster.first.shape
    scale = max(1.0, max(height, width) / PREVIEW_SIDE)
    shape = max(1, round(height / scale)), max(1, round(width / scale))
    values, valid = raster.read(Window(0, 0, width, height), shape)
    if not valid.any():
        return [(0.0, 1.0)] * len(values)
    pairs = [np.percentile(band[valid], [stretch.low, stretch.high]) for band in values]
    return [(float(low), float(high) if high > low else float(low) + 1.0) for low, high in pairs]


def render(
    raster: Raster, limits: Sequence[tuple[float, float]] | None, window: Window, shape: tuple[int, int]
) -> tuple[NDArray[np.uint8], float]:
    """(height × width × 3 view of a window, share of it without data, which is black)."""
    if shape != (window.height, window.width) or window.height <= STRIP_ROWS:
        return _rendered(raster, limits, window, shape)
    from rasterio.windows import Window as Strip

    strips, lost = [], 0.0
    for top in range(0, int(window.height), STRIP_ROWS):
        rows = min(STRIP_ROWS, int(window.height) - top)
        strip = Strip(window.col_off, window.row_off + top, window.width, rows)
        view, share = _rendered(raster, limits, strip, (rows, shape[1]))
        strips.append(view)
        lost += share * rows
    return np.concatenate(strips), lost / float(window.height)


def _rendered(
    raster: Raster, limits: Sequence[tuple[float, float]] | None, window: Window, shape: tuple[int, int]
) -> tuple[NDArray[np.uint8], float]:
    values, valid = raster.read(window, shape)
    if limits is not None:
        for band, (low, high) in zip(values, limits, strict=True):
            band -= low
            band *= 255.0 / (high - low)
    view = np.clip(values, 0, 255).astype(np.uint8)
    view[:, ~valid] = 0
    view = np.moveaxis(view if len(view) == 3 else view[[0, 0, 0]], 0, -1)
    return np.ascontiguousarray(view), 1.0 - float(valid.mean())


@dataclass(frozen=True, slots=True)
class Place:
    """Where a window of a raster lies."""

    facts: dict[str, Any]
    """`crs, bounds, latitude, longitude` (of the centre), `pixel_x_m, pixel_y_m`; empty when not georeferenced."""
    footprint: tuple[float, float, float, float] | None
    """West, south, east, north in degrees."""


NOWHERE = Place({}, None)
TRUE_WITHIN = 0.01
"""A projection whose metres are as true as this on the ground is taken at its word."""
_Side = tuple[float, float]


def place(dataset: DatasetReader, window: Window, shape: tuple[int, int]) -> Place:
    """Where a window lies that is shown in `shape` (height, width)."""
    from affine import Affine

    if dataset.crs is None or dataset.transform.is_identity:
        return NOWHERE
    at = dataset.transform @ Affine.translation(window.col_off, window.row_off)
    across, down = (at.a * window.width, at.d * window.width), (at.b * window.height, at.e * window.height)
    xs, ys = (
        [start, start + one, start + two, start + one + two]
        for start, one, two in zip((at.c, at.f), across, down, strict=True)
    )
    return place_of(dataset.crs, (min(xs), min(ys), max(xs), max(ys)), shape, (across, down))


def place_of(
    crs: Any,
    bounds: tuple[float, float, float, float],
    shape: tuple[int, int],
    sides: tuple[_Side, _Side] | None = None,
) -> Place:
    """Where an image lies; nowhere, if its reference system is of no place on Earth.

    Args:
        crs: reference system.
        bounds: left, bottom, right, top in its units.
        shape: (height, width) that the image is shown in.
        sides: the image's upper and left side as vectors, where it may be turned against the system.

    Raises:
        BadScene: the system is none, or the image is not on Earth.
    """
    from rasterio.crs import CRS
    from rasterio.warp import transform_bounds

    left, bottom, right, top = map(float, bounds)
    try:
        system = CRS.from_user_input(crs)
        if not (system.is_geographic or system.is_projected):
            return NOWHERE
        middle = (left + right) / 2, (bottom + top) / 2
        [(longitude, latitude)] = _degrees(system, [middle])
        west, south, east, north = map(float, transform_bounds(system, CRS.from_epsg(4326), left, bottom, right, top))
        across, down = sides or ((right - left, 0.0), (0.0, bottom - top))
        width_m, height_m = (_length_m(system, middle, side) for side in (across, down))
    except Exception as error:  # GDAL's own errors have no public class
        raise BadScene("bad_metadata") from error
    if not is_on_earth(latitude, longitude):
        raise BadScene("bad_metadata")
    facts: dict[str, Any] = {
        "crs": system.to_string(),
        "bounds": {"left": left, "bottom": bottom, "right": right, "top": top},
        "latitude": latitude,
        "longitude": longitude,
        "pixel_x_m": width_m / shape[1],
        "pixel_y_m": height_m / shape[0],
    }
    west, east = (west - 360, east - 360) if west > 180 else (west, east)
    east += 360 if east < west else 0  # across the date line
    return Place(facts, (west, south, east, north) if all(map(math.isfinite, (west, south, east, north))) else None)


def _degrees(system: Any, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(longitude, latitude) of points; longitudes that are counted to 360 are counted to 180."""
    from rasterio.crs import CRS
    from rasterio.warp import transform

    xs, ys = zip(*points, strict=True)
    found = zip(*transform(system, CRS.from_epsg(4326), xs, ys)[:2], strict=True)
    return [(lon - 360 if 180 < lon <= 360 else lon, lat) for lon, lat in found]


def _length_m(system: Any, middle: tuple[float, float], side: _Side) -> float:
    """Metres on the ground of a side through the middle, by the scale at the middle.

    Web Mercator's metres are twice too long at 60° north; those of UTM are true to a thousandth, and are kept.
    """
    step = side[0] / 200, side[1] / 200
    ends = [(middle[0] + sign * step[0], middle[1] + sign * step[1]) for sign in (-1, 1)]
    (west, south), (east, north) = _degrees(system, ends)
    true = 100 * chord_m(south, west, north, east)
    if system.is_geographic:
        return true
    stated = math.hypot(*side) * float(system.linear_units_factor[1])
    return stated if abs(stated - true) <= TRUE_WITHIN * true else true
