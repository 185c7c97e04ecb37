"""Which rows show one place, and which of those show it in different views.

A scene is published as several images: the same place on other dates, in other modalities, or rendered from other
bands (fMoW has `…_rgb` and `…_msrgb` of every scene). They may look alike, yet none is a copy of another.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

RENDERINGS = "rgb|msrgb|ms|mul|pan|ps|psh|pansharpened|nir|swir|ir|tir|fcc|ndvi|sar|vv|vh|dsm"
RENDERING = rf"(?i)_(?P<rendering>{RENDERINGS})\.[a-z]+$"
"""How the name of a file tells what it was rendered from."""


def place_texts(table: pa.Table) -> pa.ChunkedArray:
    """The location of each row, null where none is known."""
    return pc.if_else(pc.equal(table["location"], ""), None, table["location"])


def view_texts(table: pa.Table) -> pa.ChunkedArray:
    """Texts that differ where rows of one place are different views: date, modality, rendering by the file's name."""
    found = pc.struct_field(pc.extract_regex(table["url"], RENDERING), "rendering")
    parts = [pc.utf8_lower(found)]
    for name in ("acquired_at", "modality"):
        if name in table.column_names:
            parts.append(table[name].cast(pa.string()))
    return pc.binary_join_element_wise(*(pc.fill_null(part, "") for part in parts), "\0")
