"""Tars of samples: jpg/txt/json as webdataset writes them, and RS5M's `img_content`, `img_name` and `caption`.

Images stay where they are: rows point into the tar. Only headers are read to list one; captions and JSON are read
with the image. What a sample's JSON says under the names of this project's columns (a passport) is taken over.
"""

from __future__ import annotations

import math
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pyarrow as pa

from stages import schema
from stages.errors import UnitError
from stages.scenes import tables
from stages.scenes.base import WEB_SUFFIXES, Entry, Scene
from stages.scenes.cuts import joined
from stages.scenes.options import raster_options
from stages.scenes.tree import common_folder, relative
from stages.sources import ORIGINS, Source, SourceFile
from stages.storage import Store
from stages.tar import BLOCK

ROLES: dict[str, str] = {
    **dict.fromkeys(WEB_SUFFIXES | {"tif", "tiff", "img_content", "input.image", "image"}, "image"),
    **dict.fromkeys(("txt", "caption", "input.caption", "text"), "caption"),
    **dict.fromkeys(("img_name", "input.name", "name"), "name"),
    "json": "json",
}
"""What a member is, by what stands behind the first dot of its name."""
TAKEN_OVER = frozenset(schema.INGEST.names) - frozenset(
    [*schema.DOWNLOAD.names, "captions", "licence", "path", "window", "bands", "stretch"]
)
"""Columns that a sample's JSON may state."""
SAMPLED_TARS = 4
"""Of more tars than these, the first few say how many samples the others may have."""


class WebdatasetReader:
    """Reads `format: webdataset`."""

    touching = 0.5
    locates = False

    def __init__(self, source: Source) -> None:
        self.source = source
        self.options = raster_options(source)
        self.files = source.files["data"]
        self.base = common_folder([file.url.rpartition("/")[0] for file in self.files])

    def entries(self) -> Iterator[Entry]:
        for file in self.files:
            yield from self.of_tar(file)

    def of_tar(self, file: SourceFile) -> Iterator[Entry]:
        """The samples of one tar: neighbouring members of one name, until one kind of member comes again.

        Raises:
            UnitError: it is no tar, is compressed, or ends early (unless the source's `on_bad_file` is drop).
        """
        name = relative(file.url, self.base)
        sample: dict[str, tuple[int, int]] = {}
        key = None
        for stem, role, offset, size in self._members(file):
            if stem != key or role in sample:
                yield from self._entry(file, name, key, sample)
                key, sample = stem, {}
            sample[role] = (offset, size)
        yield from self._entry(file, name, key, sample)

    def _entry(
        self, file: SourceFile, name: str, key: str | None, sample: Mapping[str, tuple[int, int]]
    ) -> Iterator[Entry]:
        if "image" not in sample:
            return
        offset, size = sample["image"]
        others = {role: list(place) for role, place in sample.items() if role != "image"}
        yield Entry(
            url=f"{name}/{key}", path=file.url, offset=offset, size=size, note={"parts": others}, version=file.version
        )

    def _members(self, file: SourceFile) -> Iterator[tuple[str, str, int, int]]:
        """(sample's name, role, offset, size) of every member that has a role."""
        try:
            with (
                Store(file.url, self.source.storage_options).open(file.url) as opened,
                tarfile.open(fileobj=opened, mode="r:") as tar,
            ):
                while (member := tar.next()) is not None:
                    cast(Any, tar).members = []  # or it keeps every header
                    folder, slash, base = member.name.rpartition("/")
                    stem, _, ending = base.partition(".")
                    role = ROLES.get(ending.lower())
                    if role and member.isfile():
                        yield f"{folder}{slash}{stem}", role, member.offset_data, member.size
                opened.seek(tar.offset)
                if opened.read(BLOCK) != bytes(BLOCK):  # tarfile takes what it cannot read for the end
                    raise tarfile.ReadError(f"no end of archive at byte {tar.offset}")
        except (tarfile.TarError, OSError) as error:
            if self.source.on_bad_file == "fail":
                raise UnitError(
                    f"{file.url} is no whole, uncompressed tar ({error}); on_bad_file: drop takes what can be read"
                ) from error

    def notes(self) -> tuple[str, ...]:
        return ()

    def parts(self, entry: Entry) -> Mapping[str, tuple[int, int]]:
        return {role: (offset, size) for role, (offset, size) in entry.note["parts"].items()}

    def ids(self, entry: Entry) -> tuple[str, ...]:
        return entry.url, entry.url.rpartition("/")[2]

    def scene(self, entry: Entry, parts: Mapping[str, bytes]) -> Scene:
        said = _json(parts.get("json"))
        caption = _text(parts.get("caption")) or _text_of(said.get("caption"))
        facts = {**taken_over(said), **self.options.facts}
        name = _text(parts.get("name"))
        facts["url"] = _url(said) or name or entry.url
        facts["licence"] = _text_of(said.get("licence")) or _text_of(said.get("license")) or self.source.licence
        facts["captions"] = _captions(said.get("captions"), self.source.name)
        made_of = _parts(facts.pop("caption_parts", None), caption)
        facts["caption_parts"] = made_of or None
        captions = [(caption, made_of[0]["origin"] if made_of else "user")] if caption else []
        return Scene(facts=facts, captions=captions)


def _parts(value: Any, caption: str | None) -> list[dict[str, Any]]:
    """What a passport says that the caption is made of; nothing, if the caption is another by now."""
    found = [part for part in value or [] if part and part.get("text") and part.get("origin") in ORIGINS]
    return found if found and joined(found) == caption else []


def _url(said: Mapping[str, Any]) -> str | None:
    """What a passport calls the sample; names that only its source makes unique have the source before them."""
    url, source = _text_of(said.get("url")), _text_of(said.get("source"))
    return f"{source}/{url}" if url and source and "://" not in url else url


def estimate(reader: WebdatasetReader) -> int:
    """Samples, counted in a few tars and scaled by the bytes of all."""
    counted = reader.files[:SAMPLED_TARS]
    samples = sum(1 for file in counted for _ in reader.of_tar(file))
    total, seen = sum(file.size for file in reader.files), sum(file.size for file in counted)
    return round(samples * total / seen) if seen else 0


def taken_over(said: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a passport that have the type of their column, and all that they need; others are left out."""
    facts: dict[str, Any] = {}
    for name in sorted(TAKEN_OVER & said.keys()):
        value = tables.moment(said[name]) if name == "acquired_at" else _typed(said[name], name)
        if value is not None:
            facts[name] = value
    if "objects" in facts:
        facts["objects"] = [box for box in facts["objects"] if box and None not in (box[side] for side in _SIDES)]
    if "bounds" in facts and None in facts["bounds"].values():
        del facts["bounds"]
    if not {"pixel_x_m", "pixel_y_m"} <= facts.keys():
        facts = {name: value for name, value in facts.items() if name not in ("pixel_x_m", "pixel_y_m")}
    return facts


_SIDES = ("x", "y", "width", "height")


def _typed(value: Any, name: str) -> Any:
    """A value as its column holds it; None when it does not fit, or is no finite number."""
    try:
        [found] = pa.array([value], schema.INGEST.field(name).type).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return None
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _captions(value: Any, source: str) -> list[dict[str, str]]:
    """A passport's captions: texts with their source and origin."""
    found = []
    for item in value if isinstance(value, list) else []:
        entry = {"text": item} if isinstance(item, str) else item
        if isinstance(entry, dict) and _text_of(entry.get("text")):
            origin = entry.get("origin") if entry.get("origin") in ORIGINS else "user"
            found.append({"text": entry["text"], "source": _text_of(entry.get("source")) or source, "origin": origin})
    return found


def _json(data: bytes | None) -> dict[str, Any]:
    """A sample's JSON; what is none says nothing."""
    try:
        said = tables.parsed(data) if data else {}
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _text(data: bytes | None) -> str | None:
    return data.decode("utf-8", "replace").strip() or None if data else None


def _text_of(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
