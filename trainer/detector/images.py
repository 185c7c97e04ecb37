"""Reading sources into memory: RGB uint8 arrays; copies of a picture stay on one side of the split."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector.config import LABELS, Config, Source, Split
from trainer.errors import UserError

Pixels = NDArray[np.uint8]
"""(height, width, 3)."""
SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"])
SHORTEST = 256
"""Images are kept in memory with a shorter side of at most so many pixels: twice the input."""
FLAT = 3.0
"""An image whose grey values deviate less (standard deviation, of 255) shows nothing of either class."""
COMPOSITES = (
    ("B04", "B03", "B02"),
    ("B08", "B04", "B03"),
    ("B12", "B8A", "B04"),
    ("B08", "B08", "B08"),
    ("B03", "B02", "B04"),
    ("B11", "B08", "B02"),
    ("B08", "B11", "B04"),
    ("B02", "B02", "B02"),
    ("B12", "B12", "B12"),
)
"""True colour of Sentinel-2; near infrared, short-wave infrared, grey bands and other mixtures, stretched."""
NODATA = 0.5
"""A raster's picture is left out if a larger share of it is nodata."""
RASTERS = SUFFIXES | {".img", ".jp2", ".j2k", ".ntf"}
"""What is taken for a raster, in lower case."""
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image in memory."""

    source: str
    label: int
    split: str
    name: str
    pixels: Pixels


def read_sources(config: Config, data: Path) -> list[Picture]:
    """The pictures of every source, in the order of the config and of their names.

    Raises:
        UserError: a source's folder is missing or holds no image.
    """
    pictures: list[Picture] = []
    for name, source in config.sources.items():
        found = list(_read_source(name, source, data, config.split, config.seed))
        if not found:
            raise UserError(f"sources.{name}.folder: no image was found in {data / source.folder}")
        pictures += found
    return pictures


def _read_source(name: str, source: Source, data: Path, split: Split, seed: int) -> Iterator[Picture]:
    folder = data / source.folder
    if not folder.is_dir():
        raise UserError(f"sources.{name}.folder: {folder} is not a folder")
    read = {"images": _read_files, "sentinel2": _read_patches, "raster": _read_rasters}[source.format]
    seen: set[str] = set()
    label = LABELS.index(source.label)
    for path, group, pixels in _tiles(read(folder, source), source.tile):
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        if digest in seen or pixels.mean(2).std() < FLAT:
            continue
        if source.format == "raster" and (pixels == 0).all(2).mean() > NODATA:
            continue
        seen.add(digest)
        if source.group == "folder":
            group = str(path.parent.relative_to(folder))
        part = "test" if source.use == "test" else split_of(group, split, seed)
        yield Picture(source=name, label=label, split=part, name=str(path.relative_to(folder)), pixels=pixels)


def _tiles(found: Iterator[tuple[Path, str, Pixels]], side: int) -> Iterator[tuple[Path, str, Pixels]]:
    """Images that are larger than `side` px both ways, cut into squares of it; all others as they are."""
    for path, group, pixels in found:
        height, width = pixels.shape[:2]
        if not side or min(height, width) < 2 * side:
            yield path, group, pixels
            continue
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                at = path.with_name(f"{path.name}@{left},{top}")
                yield at, group, pixels[top : top + side, left : left + side]


def split_of(group: str, split: Split, seed: int) -> str:
    """The part of a group, by a digest of its name: the same whatever else lies beside it."""
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    if at < split.train:
        return "train"
    return "validation" if at < split.train + split.validation else "test"


def _read_files(folder: Path, source: Source) -> Iterator[tuple[Path, str, Pixels]]:
    """(path, sha256 of the file, pixels) of each image file that decodes; byte copies come once."""
    for path, digest in _files(folder, source, SUFFIXES):
        pixels = read_image(path, whole=bool(source.tile), opaque=source.opaque)
        if pixels is not None:
            yield path, digest, pixels


def _files(folder: Path, source: Source, suffixes: Collection[str]) -> Iterator[tuple[Path, str]]:
    """(path, sha256) of the source's files; byte copies come once."""
    found = {path for pattern in source.files for path in folder.glob(pattern)}
    paths = sorted(path for path in found if path.suffix.lower() in suffixes)
    if source.limit:
        chosen = sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())
        paths = sorted(chosen[: source.limit])
    seen: set[str] = set()
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            yield path, digest


def read_image(path: Path, whole: bool = False, opaque: bool = False) -> Pixels | None:
    """An image as RGB, its shorter side `SHORTEST` at most unless `whole`; None when it does not decode.

    Transparency is composited on white, as the pipeline does, unless the image is `opaque`.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            if not whole:
                opened.draft("RGB", (2 * SHORTEST, 2 * SHORTEST))
            upright = ImageOps.exif_transpose(opened)
            image = upright.convert("RGB") if opaque else _on_white(upright)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return np.asarray(image if whole else _reduced(image))


def _on_white(image: Any) -> Any:
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _reduced(image: Any) -> Any:
    from PIL import Image

    factor = SHORTEST / min(image.size)
    if factor >= 1:
        return image
    return image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)


def _read_rasters(folder: Path, source: Source) -> Iterator[tuple[Path, str, Pixels]]:
    """The pictures of each raster: `bands` as channels, each stretched over the whole file; nodata is black."""
    import rasterio
    from PIL import Image

    for path, digest in _files(folder, source, RASTERS):
        try:
            with rasterio.open(path) as raster:
                for number, bands in enumerate(source.bands):
                    if max(bands) <= raster.count:
                        planes = raster.read(list(bands), masked=True)
                        pixels = _stretched_within(np.moveaxis(planes, 0, 2))
                        at = path.with_name(f"{path.name}@bands{number}")
                        yield at, digest, pixels if source.tile else np.asarray(_reduced(Image.fromarray(pixels)))
        except rasterio.errors.RasterioError:
            continue


def _stretched_within(values: Any) -> Pixels:
    """A masked array (height, width, 1 or 3) as RGB: where valid and not 0, 1 to 255 from 2nd to 98th percentile."""
    magnitude = np.abs(values.filled(0)) if np.iscomplexobj(values) else values.filled(0)
    plain = np.nan_to_num(magnitude.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    out = np.zeros(plain.shape, np.uint8)
    for channel in range(plain.shape[2]):
        valid = plain[..., channel] != 0
        if valid.any():
            low, high = np.percentile(plain[..., channel][valid], [2, 98])
            grey = (plain[..., channel] - low) / max(high - low, 1e-6) * 254 + 1
            out[..., channel] = np.where(valid, np.clip(grey, 1, 255), 0)
    return np.repeat(out, 3, axis=2) if out.shape[2] == 1 else out


def _read_patches(folder: Path, source: Source) -> Iterator[tuple[Path, str, Pixels]]:
    """The composites of each Sentinel-2 patch: a folder of TIFFs whose names end in the band's name."""
    patches = sorted({path.parent for path in folder.rglob("*_B04.tif")})
    for patch in patches[: source.limit or None]:
        bands = {path.stem.rsplit("_", 1)[-1]: path for path in patch.glob("*.tif")}
        for number, composite in enumerate(COMPOSITES):
            if all(band in bands for band in composite):
                yield patch / f"composite{number}", patch.name, _composite(composite, bands)


def _composite(composite: Sequence[str], bands: dict[str, Path]) -> Pixels:
    planes = [_band(bands[band]) for band in composite]
    height, width = max(plane.shape for plane in planes)
    stacked = np.stack([_enlarged(plane, height, width) for plane in planes], axis=2)
    return reflectance_to_rgb(stacked) if composite == COMPOSITES[0] else stretched(stacked)


def _band(path: Path) -> NDArray[np.float32]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image, dtype=np.float32)


def _enlarged(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    from PIL import Image

    if plane.shape == (height, width):
        return plane
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def reflectance_to_rgb(values: NDArray[np.float32]) -> Pixels:
    """Sentinel-2 level-2A values (10,000 = reflectance 1) as RGB: x / 2000 · 255, cut to 0–255 (BigEarthNet's rule)."""
    return np.clip(values / 2000.0 * 255.0, 0, 255).astype(np.uint8)


def stretched(values: NDArray[np.float32]) -> Pixels:
    """Each channel from its 2nd to its 98th percentile."""
    low, high = np.percentile(values, [2, 98], axis=(0, 1))
    return np.clip((values - low) / np.maximum(high - low, 1e-6) * 255.0, 0, 255).astype(np.uint8)
