"""Models' own resizing and cropping, and what their folders say of it, without the libraries they come from.

Processes that only decode images need Pillow then, not torch: they start in a fraction of a second. Pixels are those
of torchvision's `Resize` and `CenterCrop` on Pillow images, which the libraries use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPEN_CLIP: dict[str, Any] = {
    "size": 224,
    "mode": "RGB",
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
"""What open_clip takes for what a folder's `preprocess_cfg` does not say."""
TIMM: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}
"""What timm takes for what a folder's `pretrained_cfg` does not say."""

Size = tuple[int, int]
"""(height, width), if nothing else is said."""
LONGEST = 16
"""Resizing the shorter side of a 1 × 50,000 image to 224 would make 2.5 gigapixels."""
MARGIN = 2
"""Pixels that resizing must find for each that it makes, where a JPEG is decoded at a smaller scale."""


def open_clip_folder(config: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing by an `open_clip_config.json`; an image size of the model's own goes before any other."""
    said = {name: value for name, value in config.get("preprocess_cfg", {}).items() if value is not None}
    options = OPEN_CLIP | {name: value for name, value in said.items() if name in OPEN_CLIP}
    return options | {"size": config["model_cfg"]["vision_cfg"].get("image_size", options["size"])}


def timm_folder(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Preprocessing by a classifier's `config.json`; None where it is of a form that timm alone knows."""
    said = config.get("pretrained_cfg")
    if not isinstance(said, Mapping):
        return None
    return TIMM | {name: said[name] for name in TIMM if said.get(name)}


@dataclass(frozen=True, kw_only=True)
class PlainResize:
    """Resizing and cropping from an image to a model's input."""

    scale: Size
    """What is resized to; its height alone, for the shorter side, unless `squash`."""
    crop: Size
    squash: bool
    resample: str

    def __call__(self, image: Any, box: tuple[float, float] | None = None) -> Any:
        """The image, or as much of it from the upper left corner on as `box` (width, height) says."""
        from PIL.Image import Resampling

        wanted = self._resized(box or image.size)
        if wanted != image.size or box:
            image = image.resize(wanted, Resampling[self.resample], box=(0, 0, *(box or image.size)))
        left, top = (round((had - kept) / 2) for had, kept in zip(image.size, self.crop[::-1], strict=True))
        return image.crop((left, top, left + self.crop[1], top + self.crop[0]))

    def _resized(self, size: tuple[float, float]) -> tuple[int, int]:
        """(width, height)."""
        (width, height), side = size, self.scale[0]
        if self.squash:
            return self.scale[1], self.scale[0]
        return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)

    def least(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) that a JPEG of a size must be decoded at: `MARGIN` times what is resized to."""
        if max(size) > LONGEST * min(size):
            return size
        width, height = self._resized(size)
        return MARGIN * width, MARGIN * height


def plain_resize(library: str, options: Mapping[str, Any]) -> PlainResize | None:
    """The model's own; None for ways of resizing that are left to the library."""
    height, width = crop = input_size(library, options)
    if library == "open_clip":
        squash, scale = options["resize_mode"] == "squash", crop
        is_plain = options["resize_mode"] in (None, "shortest", "squash")
        filters = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "random": "BICUBIC"}
    else:
        share = options["crop_pct"]
        squash, scale = options["crop_mode"] == "squash", (math.floor(height / share), math.floor(width / share))
        is_plain = options["crop_mode"] in ("center", "squash") and share <= 1
        filters = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}
    resample = filters.get(options["interpolation"])
    if not is_plain or resample is None or (scale[0] != scale[1] and not squash):
        return None
    return PlainResize(scale=scale, crop=crop, squash=squash, resample=resample)


def input_size(library: str, options: Mapping[str, Any]) -> Size:
    """Of the model."""
    size = options["size"] if library == "open_clip" else options["input_size"][1:]
    return (size, size) if isinstance(size, int) else (size[0], size[1])
