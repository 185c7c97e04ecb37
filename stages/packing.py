"""What a sample is in a tar: its members by layout, and its row of the index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from stages.base import NewFile
from stages.passport import caption_of, passport
from stages.tar import TarWriter

Row = Mapping[str, Any]
Member = tuple[str, bytes]
Native = Callable[[Row], Iterable[tuple[str, bytes]]]

ORIGINAL_EXTENSIONS = {"jpeg": "jpg", "jpg": "jpg", "mpo": "jpg", "png": "png", "webp": "webp"}
"""Formats that go into the `webdataset` layout as they are; any other becomes PNG."""

INDEX = pa.schema(
    [
        ("tar", pa.string()),
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("sha256", pa.string()),
    ]
)
"""`index.parquet`: `tar` is a path below the run's root; `offset` is that of the sample's first header, `size`
reaches through its last padded block; `sha256` is of the image's bytes as they lie in the tar."""


def write_tar(
    file: NewFile, samples: Iterable[tuple[Row, bytes]], name: str, layout: str, native: Native | None = None
) -> list[dict[str, Any]]:
    """Write samples in the order given; returns their rows of the index, where `name` is the tar.

    `native` gives the untouched files that stand beside each image, as (path, its bytes).
    """
    tar = TarWriter(file)
    index = []
    for row, data in samples:
        start = tar.offset
        (image_name, image), *others = members(row, data, layout)
        image_offset = tar.add(image_name, image)
        for other_name, content in others:
            tar.add(other_name, content)
        for other_name, content in native_members(row, native(row) if native else ()):
            tar.add(other_name, content)
        index.append(
            {
                "tar": name,
                "key": row["key"],
                "offset": start,
                "size": tar.offset - start,
                "image_offset": image_offset,
                "image_size": len(image),
                "sha256": row["sha256"] if image is data else hashlib.sha256(image).hexdigest(),
            }
        )
    tar.close()
    return index


def members(row: Row, data: bytes, layout: str) -> list[Member]:
    """The files of one sample, the image first."""
    key, caption = row["key"], caption_of(row).encode("utf-8", "replace")
    if layout == "rs5m":
        return [(f"{key}.img_content", data), (f"{key}.img_name", key.encode()), (f"{key}.caption", caption)]
    extension, image = _webdataset_image(row, data)
    text = json.dumps(passport(row), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return [
        (f"{key}.{extension}", image),
        (f"{key}.txt", caption),
        (f"{key}.json", text.encode("utf-8", "replace")),
    ]


def _webdataset_image(row: Row, data: bytes) -> Member:
    """(extension, bytes): original ones for jpg, png and webp, else PNG."""
    extension = ORIGINAL_EXTENSIONS.get(str(row["format"]).lower())
    if extension is not None:
        return extension, data
    from stages.images import to_png

    return "png", to_png(data)


def native_members(row: Row, files: Iterable[tuple[str, bytes]]) -> Iterator[Member]:
    """Untouched files beside the view made of them: `{key}.tif`, or of several `{key}.{what tells them apart}.tif`."""
    found = list(files)
    for path, data in found:
        stem, _, ending = path.rpartition("/")[2].rpartition(".")
        part = f".{stem.rpartition('_')[2]}" if len(found) > 1 else ""
        yield f"{row['key']}{part}.{ending}", data
