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

from stages.geo.ground import is_on_earth, metres_per_degree
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
    from rasterio.errors import RasterioError, RasterioIOError

    try:
        yield
    except RasterioIOError as error:
        raise BadScene(_damage_of(error)) from error
    except RasterioError as error:
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


def place(dataset: DatasetReader, window: Window, shape: tuple[int, int]) -> Place:
    """Where a window lies that is shown in `shape` (height, width)."""
    if dataset.crs is None or dataset.transform.is_identity:
        return NOWHERE
    left, bottom, right, top = dataset.window_bounds(window)
    return place_of(dataset.crs, (left, bottom, right, top), shape)


def place_of(crs: Any, bounds: tuple[float, float, float, float], shape: tuple[int, int]) -> Place:
    """Where an image of `shape` lies that fills `bounds` (left, bottom, right, top) of a reference system."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError
    from rasterio.warp import transform, transform_bounds

    try:
        system = CRS.from_user_input(crs)
        wgs84 = CRS.from_epsg(4326)
        centre = ([(bounds[0] + bounds[2]) / 2], [(bounds[1] + bounds[3]) / 2])
        [longitude], [latitude] = transform(system, wgs84, *centre)[:2]
        footprint = transform_bounds(system, wgs84, *bounds)
    except (CRSError, ValueError, RuntimeError) as error:
        raise BadScene("bad_metadata") from error
    if not is_on_earth(latitude, longitude):
        raise BadScene("bad_metadata")
    width_m, height_m = _extent_m(system, bounds, latitude)
    facts: dict[str, Any] = {
        "crs": system.to_string(),
        "bounds": dict(zip(("left", "bottom", "right", "top"), map(float, bounds), strict=True)),
        "latitude": float(latitude),
        "longitude": float(longitude),
        "pixel_x_m": width_m / shape[1],
        "pixel_y_m": height_m / shape[0],
    }
    west, south, east, north = map(float, footprint)
    east += 360 if east < west else 0  # across the date line
    return Place(facts, (west, south, east, north) if all(map(math.isfinite, footprint)) else None)


def _extent_m(system: Any, bounds: tuple[float, float, float, float], latitude: float) -> tuple[float, float]:
    """(width, height) of bounds on the ground, in metres."""
    width, height = abs(bounds[2] - bounds[0]), abs(bounds[3] - bounds[1])
    if system.is_geographic:
        east, north = metres_per_degree(latitude)
        return width * east, height * north
    factor = system.linear_units_factor[1]
    return width * factor, height * factor
