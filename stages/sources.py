"""A source of rows, resolved: where its files are and how they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One input file as the recipe's paths named it; size and version tell whether it changed."""

    url: str
    size: int
    version: str
    """Modification time (ns) of a local file, ETag of an object."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A named source: its descriptor (`manifests/sources/NAME.yaml`) with the recipe's overrides, and its files."""

    name: str
    format: str
    files: Mapping[str, tuple[SourceFile, ...]]
    """By role: `data` for a plain path, else the descriptor's named files (`images`, `regions`…)."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Roles (`url`, `caption`, `licence`, `page`…) to the file's column names or positions."""
    licence: str | None = None
    """Licence of the metadata when no column gives one per row."""
    unsafe: tuple[Mapping[str, Any], ...] = ()
    """Conditions on the source's own columns that drop a row before any fetch."""
    where: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else the format's reader takes (header, quoting, encoding, language…)."""
    only: tuple[SourceFile, ...] = ()
    """Files of ids to keep."""
    except_: tuple[SourceFile, ...] = ()
    """Files of ids to leave out."""
    on_bad_file: str = "fail"
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """For fsspec; may hold secrets, so it is never part of a digest or of anything written."""

    def digest(self) -> str:
        """Identity of how the source is read (not of its files), without secrets."""
        described = asdict(self)
        for name in ("storage_options", "files", "only", "except_", "on_bad_file"):
            described.pop(name)
        described["lists"] = [[f.url, f.size, f.version] for f in (*self.only, *self.except_)]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
