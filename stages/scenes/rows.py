"""From entries of a listing to rows of the table, each with its reason if it is dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import pyarrow as pa

from stages import schema
from stages.base import DROPPED, KEPT
from stages.blocklist import Blocklist
from stages.errors import UnitError
from stages.geo.facts import derived
from stages.geo.ground import is_on_earth
from stages.images import Limits
from stages.keys import make_key
from stages.scenes import READERS
from stages.scenes.base import BadScene, Entry, Scene
from stages.scenes.cuts import of_tile, scaled, told_of_tile, zooms
from stages.scenes.options import Tile
from stages.scenes.options import tile as tile_option
from stages.scenes.shots import Camera, Shot
from stages.sources import Source, SourceFile
from stages.storage import Store

FOOTPRINT = pa.struct([(side, pa.float64()) for side in ("west", "south", "east", "north")])
ROWS = schema.extend(schema.COMMON, schema.INGEST, pa.schema([("footprint", FOOTPRINT), ("touching", pa.float64())]))
"""The stage's columns, and what says which rows show one location."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the rows of a source depend on beside it."""

    tile: Mapping[str, Any] | None
    max_pixels: int
    place_km: float


class RowMaker:
    """Makes the rows of a source's entries. A row with an image to be stored carries it as `data`."""

    def __init__(self, source: Source, settings: Settings, blocked: Blocklist) -> None:
        self.source, self.settings, self.blocked = source, settings, blocked
        self.reader = READERS[source.format](source)
        self.camera = Camera(
            options=self.reader.options,
            tile=self._tile(),
            limits=Limits(max_pixels=settings.max_pixels),
            access=source.storage_options,
        )

    def _tile(self) -> Tile | None:
        if "tile" in self.source.options:
            return self.reader.options.tile
        return tile_option(self.settings.tile, "stages.ingest.tile")

    def rows(self, entries: Iterable[Entry]) -> Iterator[Row]:
        """The rows of entries; those that lie in one file are read through it one after another."""
        for path, group in groupby(entries, key=lambda entry: entry.path):
            file = _Pieces(Store(path, self.source.storage_options), path)
            try:
                for entry in group:
                    yield from self._of_entry(entry, file)
            finally:
                file.close()

    def _of_entry(self, entry: Entry, file: _Pieces) -> Iterator[Row]:
        if not self._is_wanted(entry):
            yield self.dropped(entry, "filtered")
            return
        try:
            scene = self._scene(entry, {name: file.read(*at) for name, at in self.reader.parts(entry).items()})
        except BadScene as bad:
            yield self.dropped(entry, bad.reason)
            return
        made = 0
        try:
            data = None if scene.is_raster else file.read(entry.offset, entry.size)
            for shot in self.camera.shots(entry, scene, data):
                made += 1
                yield self._row(entry, scene, shot)
        except BadScene as bad:
            if not made:
                yield self.dropped(entry, bad.reason, scene)
            else:  # the tiles so far are whole
                yield self.dropped(_rest(entry, made), bad.reason, scene)

    def _scene(self, entry: Entry, parts: Mapping[str, bytes]) -> Scene:
        """What the reader says; a record can hold anything where a number, a text or a list is expected."""
        try:
            return self.reader.scene(entry, parts)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise BadScene("bad_metadata") from error

    def _is_wanted(self, entry: Entry) -> bool:
        names = self.reader.ids(entry)
        if self.source.only and self._only.isdisjoint(names):
            return False
        return not self.source.except_ or self._except.isdisjoint(names)

    @cached_property
    def _only(self) -> frozenset[str]:
        return _ids(self.source.only, self.source)

    @cached_property
    def _except(self) -> frozenset[str]:
        return _ids(self.source.except_, self.source)

    def dropped(self, entry: Entry, reason: str, scene: Scene | None = None) -> Row:
        """The row of an entry that gave no image."""
        facts = scene.facts if scene else {}
        url = facts.get("url") or entry.url
        caption = scene.captions[0][0] if scene and scene.captions else None
        row = self._common(url, caption, reason) | {"path": entry.path}
        return row | {name: facts[name] for name in ("labels", "licence") if name in facts}

    def _common(self, url: str, caption: str | None, reason: str | None) -> Row:
        name = self.source.name
        return {
            "key": make_key(name, url, caption),
            "source": name,
            "url": url,
            "caption": caption,
            "status": KEPT if reason is None else DROPPED,
            "reason": reason,
            "licence": self.source.licence,
        }

    def _row(self, entry: Entry, scene: Scene, shot: Shot) -> Row:
        facts = _of_image(scene, shot)
        url = facts.pop("url", None) or entry.url
        captions = _captions(scene, facts.pop("captions", None) or [], self.source.name)
        if shot.window:
            captions, facts["caption_parts"] = told_of_tile(captions, facts.get("caption_parts") or [])
        caption = captions[0]["text"] if captions else None
        if shot.window:
            url += "#xywh={},{},{},{}".format(*shot.window)
            facts["window"] = dict(zip(("x", "y", "width", "height"), shot.window, strict=True))
        if shot.window or (self.reader.locates and shot.footprint):
            facts.setdefault("location", f"{self.source.name}/{entry.url}")
        reason = shot.verdict.reason or shot.reason or self._fault(url, facts, shot)
        row = self._common(url, caption, reason) | {"captions": captions, "path": entry.path}
        if reason != "bad_metadata":
            row |= derived(
                facts.get("latitude"), facts.get("longitude"), facts.get("acquired_at"), self.settings.place_km
            )
        row |= {name: value for name, value in facts.items() if value is not None}
        row |= _image_columns(shot, entry)
        if scene.is_raster and not shot.window:
            row["native"] = [{"path": path, "size": size} for path, size in scene.native or ((entry.path, entry.size),)]
        footprint = shot.footprint or scene.footprint
        if footprint:
            row["footprint"] = dict(zip(("west", "south", "east", "north"), footprint, strict=True))
        return row | {"touching": self.reader.touching, "data": shot.data}

    def _fault(self, url: str, facts: Mapping[str, Any], shot: Shot) -> str | None:
        latitude, longitude = facts.get("latitude"), facts.get("longitude")
        if (latitude is None) != (longitude is None):
            return "bad_metadata"
        if latitude is not None and longitude is not None and not is_on_earth(latitude, longitude):
            return "bad_metadata"
        blocked = self.blocked
        listed = shot.verdict.sha256 in blocked.sha256 or shot.verdict.phash in blocked.phash or blocked.blocks_url(url)
        return "blocklisted" if listed else None


class _Pieces:
    """A file that is opened when it is first read."""

    def __init__(self, store: Store, path: str) -> None:
        self.store, self.path = store, path
        self.file: Any = None

    def read(self, offset: int, size: int) -> bytes:
        """Raise `BadScene` when the file is gone, or ends before."""
        try:
            self.file = self.file or self.store.open(self.path)
            self.file.seek(offset)
            data: bytes = self.file.read(size)
        except FileNotFoundError as error:
            raise BadScene("empty_body") from error
        if len(data) < size:
            raise BadScene("truncated")
        return data

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _rest(entry: Entry, made: int) -> Entry:
    """What stands for the tiles of a scene that could not be read to its end."""
    return Entry(url=f"{entry.url}#tiles={made}-", path=entry.path)


def _of_image(scene: Scene, shot: Shot) -> dict[str, Any]:
    """The facts of one image: its own, under what its source states; boxes and spacing are per pixel of this image.

    Where a record and the file itself both say where the scene is, the file is right about its pixels.
    """
    facts = shot.facts | {name: value for name, value in scene.facts.items() if value is not None}
    facts |= {name: shot.facts[name] for name in _OF_FILE if name in shot.facts}
    width, height = shot.whole or (shot.verdict.width, shot.verdict.height)
    if not width or not height:
        return facts
    size = scene.record_size or (width, height)
    across, down = width / size[0], height / size[1]
    if size != (1, 1) and (across, down) != (1, 1):
        facts["objects"] = [scaled(box, across, down) for box in facts.get("objects") or []]
    zoom = zooms(shot)
    if "pixel_x_m" not in shot.facts and facts.get("pixel_x_m"):
        facts["pixel_x_m"], facts["pixel_y_m"] = (
            facts["pixel_x_m"] / across / zoom[0],
            facts["pixel_y_m"] / down / zoom[1],
        )
    return of_tile(facts, shot) if shot.window else facts


_OF_FILE = ("crs", "bounds", "latitude", "longitude", "pixel_x_m", "pixel_y_m", "bands", "stretch")


def _captions(scene: Scene, said: Sequence[dict[str, str]], source: str) -> list[dict[str, str]]:
    """The sample's caption first, then every other text that is known of it, each once."""
    own = [{"text": text, "source": source, "origin": origin} for text, origin in scene.captions]
    known = {entry["text"]: entry for entry in reversed([*own, *said])}
    if own and said:
        known[own[0]["text"]] = next((entry for entry in said if entry["text"] == own[0]["text"]), own[0])
    order = dict.fromkeys(entry["text"] for entry in [*own, *said])
    return [known[text] for text in order]


def _image_columns(shot: Shot, entry: Entry) -> Row:
    verdict = shot.verdict
    row = {
        name: getattr(verdict, name)
        for name in ("width", "height", "format", "bytes", "sha256", "phash", "thumbnail")
        if getattr(verdict, name) is not None
    }
    if verdict.reason is None and shot.data is None:
        row["image"] = {"tar": entry.path, "offset": entry.offset, "size": verdict.bytes}
    return row


def _ids(files: Sequence[SourceFile], source: Source) -> frozenset[str]:
    """The ids in list files, one a line."""
    found: set[str] = set()
    for file in files:
        try:
            text = Store(file.url, source.storage_options).read(file.url).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UnitError(f"{file.url} cannot be read: {error}") from error
        found.update(line.strip() for line in text.splitlines())
    return frozenset(found - {""})


def table_of(rows: Sequence[Row]) -> pa.Table:
    """Rows in the columns of `ROWS`."""
    return pa.Table.from_pylist([{name: row.get(name) for name in ROWS.names} for row in rows], schema=ROWS)
