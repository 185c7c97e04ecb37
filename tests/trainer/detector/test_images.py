from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.trainer.detector.conftest import toy_picture
from trainer.detector.config import Config, Source, Split, load
from trainer.detector.images import COMPOSITES, SHORTEST, read_image, read_sources, reflectance_to_rgb, split_of
from trainer.errors import UserError


def with_source(config: Config, **options: Any) -> Config:
    return replace(config, sources={"one": Source(folder="one", label="rs", **options)})


def test_copies_of_a_file_come_once_whatever_their_folder(tmp_path: Path, toy: Config) -> None:
    folder = tmp_path / "one" / "train"
    folder.mkdir(parents=True)
    for number in range(6):
        toy_picture(True, np.random.default_rng(number)).save(folder / f"{number}.png")
    shutil.copytree(folder, tmp_path / "one" / "test")
    Image.open(folder / "0.png").save(tmp_path / "one" / "0.bmp")
    pictures = read_sources(with_source(toy), tmp_path)
    assert len(pictures) == 6
    assert len({picture.pixels.tobytes() for picture in pictures}) == 6


def test_flat_and_broken_files_are_left_out(tmp_path: Path, toy: Config) -> None:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (40, 40), (0, 0, 0)).save(tmp_path / "one" / "black.png")
    (tmp_path / "one" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    toy_picture(True, np.random.default_rng(0)).save(tmp_path / "one" / "good.png")
    assert [picture.name for picture in read_sources(with_source(toy), tmp_path)] == ["good.png"]


def test_a_group_by_folder_does_not_cross_the_split(tmp_path: Path, toy: Config) -> None:
    for place in "abcdefgh":
        (tmp_path / "one" / place).mkdir(parents=True)
        for number in range(4):
            rng = np.random.default_rng([ord(place), number])
            toy_picture(True, rng).save(tmp_path / "one" / place / f"{number}.png")
    pictures = read_sources(with_source(toy, group="folder"), tmp_path)
    parts: dict[str, set[str]] = {}
    for picture in pictures:
        parts.setdefault(picture.name.split("/")[0], set()).add(picture.split)
    assert all(len(found) == 1 for found in parts.values())
    assert len(set.union(*parts.values())) > 1


def test_a_test_source_is_never_trained_on(toy_data: Path, toy: Config) -> None:
    config = replace(toy, sources={"fields": replace(toy.sources["fields"], use="test")})
    assert {picture.split for picture in read_sources(config, toy_data)} == {"test"}


def test_the_split_has_about_its_shares_and_does_not_depend_on_neighbours() -> None:
    split = Split(train=0.7, validation=0.1, test=0.2)
    parts = [split_of(str(number), split, 0) for number in range(5000)]
    assert [parts.count(name) / 5000 for name in ("train", "validation", "test")] == pytest.approx(
        [0.7, 0.1, 0.2], abs=0.02
    )
    assert parts != [split_of(str(number), split, 1) for number in range(5000)]


def test_an_empty_or_missing_folder_is_named(tmp_path: Path, toy: Config) -> None:
    with pytest.raises(UserError, match=r"sources.one.folder: .*one is not a folder"):
        read_sources(with_source(toy), tmp_path)
    (tmp_path / "one").mkdir()
    with pytest.raises(UserError, match="no image was found"):
        read_sources(with_source(toy), tmp_path)


def test_large_images_are_held_at_twice_the_input(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    pixels = read_image(tmp_path / "a.jpg")
    assert pixels is not None
    assert pixels.shape == (SHORTEST, round(SHORTEST * 4 / 3), 3)


def test_transparency_becomes_white_unless_the_source_is_opaque(tmp_path: Path, toy: Config) -> None:
    (tmp_path / "one").mkdir()
    pixels = np.random.default_rng(0).integers(0, 200, (40, 40, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:10, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "one" / "a.png")
    (seen,) = read_sources(with_source(toy), tmp_path)
    assert (seen.pixels[:10] == 255).all()
    assert (seen.pixels[10:] == pixels[10:, :, :3]).all()
    (opaque,) = read_sources(with_source(toy, opaque=True), tmp_path)
    assert (opaque.pixels == pixels[..., :3]).all()


def test_a_large_image_becomes_tiles_of_one_side_of_the_split(tmp_path: Path, toy: Config) -> None:
    (tmp_path / "one").mkdir()
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (700, 1000, 3), dtype=np.uint8)
    Image.fromarray(scene).save(tmp_path / "one" / "scene.png")
    Image.fromarray(scene[:300, :300]).save(tmp_path / "one" / "small.png")
    pictures = read_sources(with_source(toy, tile=320), tmp_path)
    assert [picture.name for picture in pictures[:2]] == ["scene.png@0,0", "scene.png@320,0"]
    assert (pictures[4].pixels == scene[320:640, 320:640]).all()
    assert len({picture.split for picture in pictures if "@" in picture.name}) == 1
    assert pictures[-1].name == "small.png"
    assert len(pictures) == 7


def test_a_pattern_of_names_chooses_the_files(tmp_path: Path, toy: Config) -> None:
    (tmp_path / "one" / "below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "below/c.png")):
        toy_picture(True, np.random.default_rng(number)).save(tmp_path / "one" / name)
    found = {
        pattern: [picture.name for picture in read_sources(with_source(toy, files=(pattern,)), tmp_path)]
        for pattern in ("**/*", "*.png", "**/[bc].png")
    }
    assert found == {"**/*": ["a.png", "b.png", "below/c.png"], "*.png": ["a.png", "b.png"]} | {
        "**/[bc].png": ["b.png", "below/c.png"]
    }


def test_reflectances_become_rgb_by_the_published_rule() -> None:
    values = np.array([[[0, 1000, 2000], [4000, -50, 500]]], dtype=np.float32)
    assert reflectance_to_rgb(values).tolist() == [[[0, 127, 255], [255, 0, 63]]]


def test_a_patch_gives_the_composites_of_its_bands_as_one_group(tmp_path: Path, toy: Config) -> None:
    patch = tmp_path / "one" / "S2A_1"
    patch.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for band, side in (("B02", 24), ("B03", 24), ("B04", 24), ("B08", 24), ("B12", 12), ("B8A", 12)):
        Image.fromarray(rng.integers(100, 3000, (side, side)).astype(np.uint16)).save(patch / f"S2A_1_{band}.tif")
    pictures = read_sources(with_source(toy, format="sentinel2"), tmp_path)
    assert [picture.pixels.shape for picture in pictures] == [(24, 24, 3)] * 6 + [(12, 12, 3)]
    assert len({picture.split for picture in pictures}) == 1
    with Image.open(patch / "S2A_1_B04.tif") as red:
        expected = np.clip(np.asarray(red, dtype=np.float32) / 2000 * 255, 0, 255).astype(np.uint8)
    assert (pictures[0].pixels[..., 0] == expected).all()


def write_raster(path: Path, values: NDArray[Any], **profile: Any) -> None:
    import rasterio

    bands, height, width = values.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": bands, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as made:
        made.write(values)


def raster_source(config: Config, **options: Any) -> Config:
    return with_source(config, **{"format": "raster", "bands": ((3, 2, 1), (4, 3, 2), (2,))} | options)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_gives_a_picture_for_each_choice_of_bands(tmp_path: Path, toy: Config) -> None:
    values = np.random.default_rng(0).integers(200, 9000, (4, 40, 60)).astype(np.uint16)
    values[:, :, :10] = 0
    write_raster(tmp_path / "one" / "scene.tif", values)
    write_raster(tmp_path / "one" / "two.tif", values[:2] + 1)
    (tmp_path / "one" / "broken.tif").write_bytes(b"II*\0 nothing")
    pictures = read_sources(raster_source(toy), tmp_path)
    names = ["scene.tif@bands0", "scene.tif@bands1", "scene.tif@bands2", "two.tif@bands2"]
    assert [picture.name for picture in pictures] == names
    assert {picture.pixels.shape for picture in pictures} == {(40, 60, 3)}
    assert len({picture.split for picture in pictures[:3]}) == 1
    true = pictures[0].pixels
    assert (true[:, :10] == 0).all(), "nodata is black"
    assert true[:, 10:].min() == 1, "and nothing else is"
    low, high = np.percentile(values[2, :, 10:], [2, 98])
    expected = np.clip((values[2, :, 10:] - low) / (high - low) * 254 + 1, 1, 255)
    assert np.abs(true[:, 10:, 0] - expected).max() <= 1
    assert (pictures[2].pixels.std(2) == 0).all(), "one band is grey"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_tiles_of_a_raster_that_are_mostly_nodata_are_left_out(tmp_path: Path, toy: Config) -> None:
    values = np.random.default_rng(0).normal(5, 1, (1, 60, 60)).astype(np.float32)
    values[0, :30, :30] = np.nan
    values[0, 30:, :18] = -9999
    write_raster(tmp_path / "one" / "scene.tif", values, nodata=-9999)
    pictures = read_sources(raster_source(toy, bands=((1,),), tile=30), tmp_path)
    assert [picture.name.split("@")[-1] for picture in pictures] == ["30,0", "30,30"]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_complex_radar_is_read_as_its_amplitude(tmp_path: Path, toy: Config) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(1, 40, 40)) + 1j * rng.normal(size=(1, 40, 40))).astype(np.complex64)
    write_raster(tmp_path / "one" / "radar.tif", values)
    (picture,) = read_sources(raster_source(toy, bands=((1,),)), tmp_path)
    brightest, darkest = np.abs(values[0]).argmax(), np.abs(values[0]).argmin()
    assert picture.pixels[..., 0].flat[brightest] == 255
    assert picture.pixels[..., 0].flat[darkest] == 1


@pytest.mark.skipif("CURATION_REAL_DATA" not in os.environ, reason="real images are not at hand")
def test_real_patches_read_as_they_should() -> None:
    config = load(None)
    config = replace(config, sources={"bigearthnet": config.sources["bigearthnet"]})
    pictures = read_sources(config, Path(os.environ["CURATION_REAL_DATA"]))
    assert len(pictures) == 7 * len(COMPOSITES)
    assert {picture.pixels.shape for picture in pictures} == {(120, 120, 3), (60, 60, 3)}
