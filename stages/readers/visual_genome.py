"""Visual Genome: image records joined with the region descriptions that speak of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stages.readers.batch import Batch, Piece, records_batch
from stages.readers.json_files import batches, items
from stages.readers.lines import whole_files
from stages.readers.roles import text_names
from stages.sources import Source


def pieces(source: Source) -> Iterator[Piece]:
    """One piece a regions file; the images are few (108,077) and read with each."""
    return whole_files(source.files["regions"], "regions")


def read(source: Source, piece: Piece) -> Iterator[Batch]:
    """A row an image, with the phrases of all its regions, in the order of the region file.

    Images that no region file speaks of come last, with the last file. A region record whose image is unknown
    has no URL.
    """
    files = source.files["regions"]
    images = {record["image_id"]: record for record in _images(source)}
    texts = text_names(source)
    last = piece.file == len(files) - 1
    records = _joined(source, piece, images, with_rest=last)
    for first, batch in batches(records):
        yield records_batch(batch, range(first, first + len(batch)), texts)


def _images(source: Source) -> Iterator[dict[str, Any]]:
    for file in source.files["images"]:
        for record in items(source, file, "item"):
            if isinstance(record, dict) and "image_id" in record:
                yield record


def _joined(
    source: Source, piece: Piece, images: dict[Any, dict[str, Any]], with_rest: bool
) -> Iterator[dict[str, Any] | None]:
    files = source.files["regions"]
    if with_rest:
        spoken_of = {_image_id(record) for file in files[: piece.file] for record in items(source, file, "item")}
    for record in items(source, files[piece.file], "item"):
        image = _image_id(record)
        if with_rest:
            spoken_of.add(image)
        yield _row(image, images.get(image), record) if image is not None else None
    if with_rest:
        for image, about in images.items():
            if image not in spoken_of:
                yield _row(image, about, {})


def _image_id(record: Any) -> Any:
    """`image_id`, or `id` as the first releases called it; None when the record has neither."""
    if not isinstance(record, dict):
        return None
    found = record.get("image_id", record.get("id"))
    if found is None and record.get("regions"):
        first = record["regions"][0]
        found = first.get("image_id") if isinstance(first, dict) else None
    return found if isinstance(found, int | str) else None


def _row(image: Any, about: dict[str, Any] | None, record: dict[str, Any]) -> dict[str, Any]:
    regions = record.get("regions") or []
    phrases = [region.get("phrase") for region in regions if isinstance(region, dict)]
    base = {"url": None, **(about or {})}
    return {**base, "image_id": image, "phrases": [text for text in phrases if isinstance(text, str)]}
