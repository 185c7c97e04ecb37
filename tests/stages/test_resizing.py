"""Resizing without the libraries gives the libraries' pixels; folders are read as the libraries read them."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.models import make_detector, make_open_clip
from stages import resizing, vision
from stages.images import open_reduced
from stages.models import ModelRef
from stages.vision import Preprocess

SIZES = [(64, 64), (65, 64), (97, 331), (500, 375), (31, 40), (224, 900)]


def pictures() -> list[Any]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def other_sizes(library: str, options: dict[str, Any], steps: list[Any]) -> list[Any]:
    """Sizes of the pictures whose pixels are not those of the library's steps."""
    plain = resizing.plain_resize(library, options)
    assert plain is not None
    found = []
    for image in pictures():
        expected = image
        for step in steps:
            expected = step(expected)
        if not np.array_equal(np.asarray(plain(image)), np.asarray(expected)):
            found.append(image.size)
    return found


@pytest.mark.parametrize("change", [{}, {"resize_mode": "squash"}, {"interpolation": "bilinear"}, {"size": (64, 64)}])
def test_open_clip_pixels(change: dict[str, Any]) -> None:
    options = resizing.OPEN_CLIP | {"size": 64} | change
    assert other_sizes("open_clip", options, vision._open_clip_steps(options)) == []


@pytest.mark.parametrize(
    "change",
    [{}, {"crop_pct": 1.0}, {"crop_mode": "squash"}, {"interpolation": "bilinear"}, {"interpolation": "lanczos"}],
)
def test_timm_pixels(change: dict[str, Any]) -> None:
    options = resizing.TIMM | {"input_size": [3, 64, 64]} | change
    assert other_sizes("timm", options, vision._timm_steps(options)) == []


@pytest.mark.parametrize(
    ("library", "change"),
    [
        ("open_clip", {"resize_mode": "longest"}),
        ("open_clip", {"size": (64, 48)}),
        ("timm", {"crop_mode": "border"}),
        ("timm", {"input_size": (3, 64, 48)}),
        ("timm", {"interpolation": "nearest"}),
    ],
)
def test_the_rest_is_left_to_the_libraries(library: str, change: dict[str, Any]) -> None:
    options = (resizing.OPEN_CLIP if library == "open_clip" else resizing.TIMM) | change
    assert resizing.plain_resize(library, options) is None
    size = resizing.input_size(library, options)
    preprocess = Preprocess(library=library, options=options)
    assert preprocess.transform()(pictures()[2]).shape == (*size, 3)


def test_folders_are_read_as_the_libraries_read_them(tmp_path: Path) -> None:
    from dataclasses import asdict

    from open_clip.transform import PreprocessCfg
    from timm.data import resolve_data_config
    from timm.models._hub import load_model_config_from_path

    assert asdict(PreprocessCfg()) == resizing.OPEN_CLIP
    assert resolve_data_config({}, pretrained_cfg={"num_classes": 2}) == resizing.TIMM
    folder = make_detector(tmp_path / "detector")
    found = vision.preprocess_of(ModelRef(library="timm", where="here", model=str(folder))).options
    expected = resolve_data_config({}, pretrained_cfg=load_model_config_from_path(str(folder))[0])
    assert {name: list(v) if isinstance(v, list | tuple) else v for name, v in found.items()} == {
        name: list(v) if isinstance(v, list | tuple) else v for name, v in expected.items()
    }


def test_decoding_needs_no_torch(tmp_path: Path) -> None:
    make_open_clip(tmp_path / "clip")
    make_detector(tmp_path / "detector")
    program = f"""
import sys
import numpy as np
from PIL import Image
from stages import scoring, vision
from stages.images import open_reduced
from stages.models import ModelRef
for library, name in (("open_clip", "clip"), ("timm", "detector")):
    ref = ModelRef(library=library, where="here", model={str(tmp_path)!r} + "/" + name)
    assert vision.preprocess_of(ref).transform()(Image.new("RGB", (90, 70))).shape == (64, 64, 3)
assert not {{"torch", "timm", "open_clip"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_reduced_decoding_changes_pixels_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    detail = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(detail).resize((1001, 701), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    options = resizing.OPEN_CLIP | {"size": 64}
    opened: list[Any] = []

    def noted(data: bytes, least: Any) -> Any:
        opened.append(open_reduced(data, least))
        return opened[-1]

    monkeypatch.setattr(vision, "open_reduced", noted)
    full = Preprocess(library="open_clip", options=options).read()(buffer.getvalue())
    reduced = Preprocess(library="open_clip", options=options, reduced=True).read()(buffer.getvalue())
    assert [(image.size, box) for image, box in opened] == [((251, 176), (250.25, 175.25))]
    assert 0 < np.abs(full.astype(int) - reduced).mean() < 1.5  # levels, of noise: the worst there is


@pytest.mark.parametrize(
    ("change", "least"),
    [({}, (184, 128)), ({"resize_mode": "squash"}, (128, 128)), ({"size": 224}, (648, 448))],
)
def test_the_least_size_is_twice_the_models(change: dict[str, Any], least: tuple[int, int]) -> None:
    plain = resizing.plain_resize("open_clip", resizing.OPEN_CLIP | {"size": 64} | change)
    assert plain is not None
    assert plain.least((1450, 1000)) == least
    assert plain.least((100, 1601)) == (100, 1601)
