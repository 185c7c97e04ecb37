"""The narrow columns that dedup decides by: 71 bytes a row, whatever the length of its URL and caption.

56 more hold the hashes of the turned and mirrored image where they are asked for, 24 the place and view of rows
that have a location.

URLs and digests are only ever compared for equality, so 128 bits of each are kept: two different ones among
n are taken for equal with a chance of n²/2¹²⁹, 10⁻²¹ at a billion rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.base import KEPT, OutputFile, Unit, Workspace, group_files
from stages.errors import UnitError
from stages.likeness import Greys, is_plain
from stages.phash import ORIENTATIONS, SIDE, orientation_hashes
from stages.schema import extend
from stages.urls import canonical_url
from stages.views import place_texts, view_texts

PLAIN_URL = r"^[a-z][a-z0-9+.\-]*://[a-z0-9._\-]*(?:[/?]|$)"
"""How URLs begin that already are as `canonical_url` would write them, if they have no fragment."""
ABSOLUTE_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//")
ROWS_PER_UNIT = 200_000
UNITS = 1000
"""Beyond so many units they grow: each sends captions to each other one."""
WANTED = ("key", "source", "url", "caption", "status", "sha256", "phash", "width", "height")
"""Columns of the input that `narrow` needs."""
OPTIONAL = ("thumbnail", "location", "acquired_at", "modality")
"""Those that it uses where they are."""
HAS_URL, HAS_CONTENT, HAS_PHASH, HAS_PLACE = 1, 2, 4, 8
HAS_THUMBNAIL, IS_PLAIN, IS_TESTED = 16, 32, 64
NARROW = pa.schema(
    [
        *((f"{name}_{half}", pa.uint64()) for name in ("key", "url", "content") for half in ("high", "low")),
        ("phash", pa.uint64()),
        ("known", pa.uint8()),
        ("source", pa.int16()),
        ("pixels", pa.int64()),
        ("caption_length", pa.int32()),
    ]
)
"""`known` holds the flags HAS_… and IS_…: what is not known is 0; `source` is the position in the recipe's order."""
TURNED = pa.schema([(f"turned_{view}", pa.uint64()) for view in range(1, ORIENTATIONS)])
PLACE = pa.schema([(name, pa.uint64()) for name in ("place_high", "place_low", "view")])
ALL = extend(NARROW, TURNED, PLACE)
GREYS = 1024
"""Thumbnails looked at together."""

ODD = np.uint64(0x9E3779B97F4A7C15)
"""Multiplying by an odd number loses nothing, so a folded digest differs where either half does."""

Hashes = NDArray[np.uint64]
Halves = tuple[Hashes, Hashes]
"""The higher and the lower 64 bits of 128-bit values."""


def row_units(ws: Workspace) -> list[Unit]:
    """Groups of input parts."""
    return group_files(ws.input_files(), max(ROWS_PER_UNIT, input_rows(ws) // UNITS))


def input_rows(ws: Workspace) -> int:
    """Rows of the input's parts, dropped ones among them."""
    return sum(file.rows for file in ws.input_files())


def narrow_files(ws: Workspace) -> list[OutputFile]:
    """One for each unit of rows."""
    records = ws.phase_records("narrow")
    return [file for record in records for file in record.files if file.path == record.meta["narrow"]]


def read_rows(ws: Workspace, unit: Unit, columns: Sequence[str]) -> pa.Table:
    """Some columns of the unit's kept rows.

    Raises:
        UnitError: they are not those that were decided on.
    """
    table = read_kept(ws, unit.spec["files"], columns)
    decided = narrow_files(ws)[int(unit.id)].rows
    if table.num_rows != decided:
        raise UnitError(f"{table.num_rows} rows, but {decided} were decided on")
    return table


def read_kept(ws: Workspace, paths: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Those of some columns that the input has, of some parts' kept rows."""
    present = [name for name in columns if name in ws.input_columns().names]
    tables = (ws.read_table(path, columns=present) for path in paths)
    return pa.concat_tables(table.filter(pc.equal(table["status"], KEPT)) for table in tables)


def narrow(table: pa.Table, sources: Sequence[str], orientations: int = 1) -> pa.Table:
    """The narrow columns of rows that have the columns WANTED: NARROW, and TURNED and PLACE where they apply.

    Raises:
        UnitError: a key or sha256 is not of 32 or 64 hex digits.
    """
    narrowed = _narrow(table, sources)
    known = narrowed["known"].to_numpy().copy()
    if "thumbnail" in table.column_names:
        flags, turned = _looks(table["thumbnail"], orientations)
        known |= flags
        for name, values in zip(TURNED.names, turned.T, strict=False):
            narrowed = narrowed.append_column(name, pa.array(values))
    if "location" in table.column_names:
        places = place_texts(table)
        known |= places.is_valid().to_numpy().astype(np.uint8) * np.uint8(HAS_PLACE)
        views = _text_halves(view_texts(table))[0]
        for name, values in zip(PLACE.names, (*_text_halves(places), views), strict=True):
            narrowed = narrowed.append_column(name, pa.array(values))
    return with_flags(narrowed, known)


def with_flags(narrowed: pa.Table, known: NDArray[np.uint8]) -> pa.Table:
    """The narrow columns with other flags."""
    place = narrowed.schema.get_field_index("known")
    return narrowed.set_column(place, narrowed.schema.field(place), pa.array(known))


def _looks(stored: pa.ChunkedArray, orientations: int) -> tuple[NDArray[np.uint8], Hashes]:
    """Flags of (n,) stored thumbnails, and (n, orientations − 1) hashes of their other views; 0 without one."""
    flags = np.zeros(len(stored), np.uint8)
    turned = np.zeros((len(stored), orientations - 1), np.uint64)
    for start in range(0, len(stored), GREYS):
        piece = stored.slice(start, GREYS)
        here = start + np.flatnonzero(piece.is_valid().to_numpy())
        greys = greys_of(piece.drop_null())
        flags[here] = HAS_THUMBNAIL + is_plain(greys) * IS_PLAIN
        if orientations > 1 and len(here):
            turned[here] = orientation_hashes(greys)[:, 1:]
    return flags, turned


def greys_of(stored: pa.ChunkedArray) -> Greys:
    """(n, 32, 32) grey levels of stored thumbnails."""
    return np.frombuffer(b"".join(stored.to_pylist()), np.uint8).reshape(-1, SIDE, SIDE)


def _narrow(table: pa.Table, sources: Sequence[str]) -> pa.Table:
    """The NARROW columns of rows that have the columns WANTED.

    Raises:
        UnitError: a key or sha256 is not of 32 or 64 hex digits.
    """
    urls, digests = comparable_urls(table["url"], table["source"]), _known_text(table["sha256"])
    has_phash = table["phash"].is_valid().to_numpy()
    pixels = pc.multiply(pc.cast(table["width"], pa.int64()), pc.cast(table["height"], pa.int64()))
    known = urls.is_valid().to_numpy() * HAS_URL + digests.is_valid().to_numpy() * HAS_CONTENT + has_phash * HAS_PHASH
    columns: list[Any] = [
        *key_halves(table["key"]),
        *_text_halves(urls),
        *content_halves(digests),
        table["phash"].fill_null(0),
        known.astype(np.uint8),
        source_numbers(table["source"], sources),
        pixels.fill_null(0),
        pc.utf8_length(table["caption"]).fill_null(0),
    ]
    return pa.table(
        [pa.chunked_array([column]) if isinstance(column, np.ndarray) else column for column in columns],
        names=NARROW.names,
    ).cast(NARROW)


def key_halves(keys: pa.ChunkedArray) -> Halves:
    """Keys (32 hex digits) as numbers, whose order is that of the text."""
    octets = _octets(keys, 16)
    return octets[:, 0], octets[:, 1]


def content_halves(digests: pa.ChunkedArray) -> Halves:
    """Digests (64 hex digits) folded to 128 bits; null gives 0."""
    octets = _octets(digests, 32)
    return octets[:, 0] + octets[:, 2] * ODD, octets[:, 1] + octets[:, 3] * ODD


def key_texts(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> pa.Array:
    """The inverse of `key_halves`."""
    octets = np.stack([high, low], axis=1).astype(">u8").view(np.uint8)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)[np.stack([octets >> 4, octets & 15], axis=2)]
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(high), [None, pa.py_buffer(digits.tobytes())])
    return fixed.cast(pa.binary()).cast(pa.string())


def source_numbers(column: pa.ChunkedArray, sources: Sequence[str]) -> NDArray[np.int16]:
    """Each source's place in the recipe's order; those it does not name share the place after the last."""
    precedence = {name: number for number, name in enumerate(sources)}
    encoded = column.combine_chunks().dictionary_encode()
    numbers = [precedence.get(name, len(sources)) for name in encoded.dictionary.to_pylist()]
    return np.array(numbers, np.int16)[encoded.indices.to_numpy()]


def _octets(column: pa.ChunkedArray, size: int) -> NDArray[np.uint64]:
    """(n, size / 8) big-endian numbers that hex texts of 2·size digits spell; 0 for null."""
    texts = column.fill_null("0" * (2 * size)).combine_chunks()
    fixed = texts.cast(pa.large_binary())
    ends = np.frombuffer(fixed.buffers()[1], np.int64)[fixed.offset : fixed.offset + len(fixed) + 1]
    if not (np.diff(ends) == 2 * size).all():
        odd = texts[int(np.flatnonzero(np.diff(ends) != 2 * size)[0])].as_py()
        raise UnitError(f"{odd[:80]!r} is not of {2 * size} hex digits")
    if not len(fixed):
        return np.empty((0, size // 8), np.uint64)
    digits = np.frombuffer(fixed.buffers()[2], np.uint8)[ends[0] : ends[-1]]
    nibbles = _NIBBLES[digits].reshape(-1, 2)
    octets = nibbles[:, 0] << 4 | nibbles[:, 1]
    return octets.view(">u8").reshape(len(fixed), -1).astype(np.uint64)


def _nibbles() -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    table[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
    return table


_NIBBLES = _nibbles()


def _text_halves(texts: pa.ChunkedArray) -> Halves:
    """128 bits of each text, 0 for null."""
    digests = (
        bytes(16) if text is None else blake2b(text, digest_size=16).digest()
        for text in texts.cast(pa.binary()).to_pylist()
    )
    octets = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)
    return octets[:, 0], octets[:, 1]


def _known_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(column, ""), None, column)


def comparable_urls(urls: pa.ChunkedArray, sources: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings that are equal where URLs are: canonical, and a path of one's own files with its source's name."""
    has_fragment = pc.match_substring(urls, "#")
    plain = pc.and_not(pc.match_substring_regex(urls, PLAIN_URL), has_fragment).fill_null(True)
    rest = pc.invert(plain)
    odd = zip(urls.filter(rest).to_pylist(), sources.filter(rest).to_pylist(), strict=True)
    written = [canonical_url(url) if ABSOLUTE_URL.match(url) else f"{source}\0{url}" for url, source in odd]
    found = pc.replace_with_mask(urls.combine_chunks(), rest.combine_chunks(), pa.array(written, urls.type))
    return pa.chunked_array([found])


class NarrowRows:
    """The narrow columns of all rows, in the order of the input, each read from its files when asked for."""

    def __init__(self, ws: Workspace, files: Sequence[OutputFile]) -> None:
        self._ws = ws
        self._files = files
        self.ends = np.cumsum([0, *(file.rows for file in files)])
        """First row of each file, and the number of all rows."""

    def __len__(self) -> int:
        return int(self.ends[-1])

    def column(self, name: str) -> NDArray[Any]:
        """One column of every row."""
        values = np.empty(len(self), ALL.field(name).type.to_pandas_dtype())
        for file, start in zip(self._files, self.ends, strict=False):
            values[start : start + file.rows] = self._ws.read_table(file.path, columns=[name])[name].to_numpy()
        return values
