"""What each source added: the rows that dedup kept of it, and whose images stood for the others."""

from __future__ import annotations

from typing import Any

from curation.finished import Finished

SHADES = 5


def collect(root: Finished) -> dict[str, Any] | None:
    """`{names, rows: [{source, kept, twins_of: [rows of each name], shades}]}`, or None before dedup.

    A shade is 0 to SHADES: how much of the source's rows those are.
    """
    between = root.manifests["dedup"].summary.get("between") if "dedup" in root.manifests else None
    if not between:
        return None
    names = [
        *(name for name in root.sources if name in between),
        *(name for name in between if name not in root.sources),
    ]
    return {"names": names, "rows": [_row(name, between[name], names) for name in names]}


def _row(source: str, entry: dict[str, Any], names: list[str]) -> dict[str, Any]:
    twins_of = [entry["twins_of"].get(name, 0) for name in names]
    rows = max(1, entry["kept"] + sum(twins_of))
    return {
        "source": source,
        "kept": entry["kept"],
        "twins_of": twins_of,
        "shades": [-(-SHADES * count // rows) for count in twins_of],
    }
