"""Thumbnails of one picture agree, those of others do not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.images import inspect
from stages.likeness import TEXTURE, Greys, is_plain, likeness, oriented
from stages.phash import orientation_hashes
from tests.e2e.world import jpeg, picture


def thumbnails(*images: Image.Image) -> Greys:
    greys = [np.frombuffer(inspect(jpeg(image)).thumbnail or b"", np.uint8).reshape(32, 32) for image in images]
    return np.stack(greys)


def waves(seed: int, spread: float) -> NDArray[np.float64]:
    """A smooth random picture of the given standard deviation."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 9), np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    levels = np.asarray(coarse, np.float64)
    return 100 + (levels - levels.mean()) * spread / levels.std()


def test_copies_agree_whatever_their_brightness_size_and_quality() -> None:
    image = picture(3, 256)
    small = image.resize((90, 90))
    dark = Image.eval(image, lambda level: int(level * 0.6 + 20))
    found = likeness(thumbnails(image)[0], thumbnails(image, small, dark))
    assert found[0] == 1.0
    assert found.min() > 0.95


def test_other_pictures_do_not_agree() -> None:
    greys = thumbnails(*(picture(number, 256) for number in range(8)))
    assert all((likeness(greys[n], np.delete(greys, n, axis=0)) < 0.5).all() for n in range(len(greys)))


@pytest.mark.parametrize("view", range(8))
def test_turned_and_mirrored_copies_agree_in_one_of_eight_orientations(view: int) -> None:
    grey = np.clip(waves(1, 30), 0, 255).astype(np.uint8)
    turned = oriented(grey)[view]
    assert likeness(grey, turned[None], orientations=8)[0] == 1.0
    assert (likeness(grey, turned[None])[0] == 1.0) == (view == 0)


def test_orientations_come_in_the_order_of_the_hashes() -> None:
    grey = np.clip(waves(2, 40), 0, 255).astype(np.uint8)
    assert orientation_hashes(oriented(grey))[:, 0].tolist() == orientation_hashes(grey[None])[0].tolist()


@pytest.mark.parametrize(("spread", "plain"), [(TEXTURE - 1, True), (TEXTURE + 1, False)])
def test_texture_is_the_spread_of_grey_levels(spread: float, plain: bool) -> None:
    assert is_plain(np.rint(waves(4, spread)).astype(np.uint8)[None])[0] == plain


def test_a_uniform_picture_is_like_nothing() -> None:
    uniform = np.full((1, 32, 32), 90, np.uint8)
    assert likeness(uniform[0], uniform)[0] == 0.0
