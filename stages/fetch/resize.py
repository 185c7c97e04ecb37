"""img2dataset's resizer, for those who want images resized as it does."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

OPTIONS = frozenset(
    [
        "image_size",
        "resize_mode",
        "resize_only_if_bigger",
        "upscale_interpolation",
        "downscale_interpolation",
        "encode_quality",
        "encode_format",
        "skip_reencode",
    ]
)
MODES = ("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest")


class Resize:
    """Resizes and encodes one image; options and defaults are img2dataset's."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = {"image_size": 256, "resize_mode": "border", "resize_only_if_bigger": False, **options}

    @cached_property
    def _resizer(self) -> Any:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network
        from img2dataset.resizer import Resizer

        return Resizer(**self.options)

    def __call__(self, data: bytes) -> bytes:
        """The resized image's bytes; no bytes when the resizer gives up on it."""
        resized: bytes | None = self._resizer(io.BytesIO(data))[0]
        return resized or b""


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError, in a sentence, for an unknown option or mode."""
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise ValueError(f"resize.{unknown[0]} is unknown; accepted: {', '.join(sorted(OPTIONS))}")
    for name, least, most in (("image_size", 1, 100_000), ("encode_quality", 0, 100)):
        value = options.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"resize.{name} is {value!r}; accepted: a whole number from {least} to {most}")
    mode = options.get("resize_mode", "border")
    if mode not in MODES:
        raise ValueError(f"resize.resize_mode is {mode!r}; accepted: {', '.join(MODES)}")
    encoding = options.get("encode_format", "jpg")
    if encoding not in ("jpg", "png", "webp"):
        raise ValueError(f"resize.encode_format is {encoding!r}; accepted: jpg, png, webp")
