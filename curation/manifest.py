"""Stage manifests: what a finished stage promises about its files, and the fingerprints that decide a rerun."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stages.base import OutputFile
from stages.errors import UserError
from stages.storage import Store

SCHEMA_VERSION = 1
SEAL = "digest"
"""The manifest's own digest, by which `verify` sees edits that leave all sums whole."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`STAGE/manifest.json`, written last: a stage without one is unfinished."""

    stage: str
    fingerprint: str
    config: Mapping[str, Any]
    stage_version: int
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[OutputFile, ...]
    output_digest: str
    counts: Mapping[str, Any]
    started_at: str
    seconds: float
    rows_per_second: float
    device: str
    versions: Mapping[str, str]
    generation: int = 0
    """Raised by `--force` and `--retry-failed`, which redo a stage under the same fingerprint."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    status: str = "complete"

    @property
    def kept(self) -> int:
        """Rows that go on to the next stage."""
        return sum(entry["kept"] for entry in self.counts.values())

    @property
    def rows_in(self) -> int:
        """Rows that came in."""
        return sum(entry["in"] for entry in self.counts.values())


def path(stage: str) -> str:
    """Where a stage's manifest lies, relative to the root."""
    return f"{stage}/manifest.json"


def load(store: Store, stage: str) -> Manifest | None:
    """The manifest of a finished stage, or None when the stage is unfinished.

    Raises:
        UserError: it cannot be read, or another version of this program wrote it.
    """
    try:
        text = store.read(path(stage))
    except FileNotFoundError:
        return None
    where = f"{store.url}/{path(stage)}"
    try:
        data = json.loads(text)
        data.pop(SEAL, None)
        version = data["schema_version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is no manifest ({error}); delete it to run the stage again") from error
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where} has schema_version {version!r}, this program reads {SCHEMA_VERSION}: "
            "use the release that wrote it, or another --root"
        )
    try:
        data["outputs"] = tuple(OutputFile(**entry) for entry in data["outputs"])
        data["inputs"] = tuple(data["inputs"])
        _check_counts(data["counts"])
        if data["status"] != "complete":
            raise ValueError(f"status is {data['status']!r}")
        return Manifest(**data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} is damaged ({error}); delete it to run the stage again") from error


def _check_counts(counts: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError or AttributeError unless every count is a whole number."""
    for source, entry in counts.items():
        for number in (entry["in"], entry["kept"], *entry["dropped"].values()):
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"counts of {source} hold {number!r}")


def is_edited(store: Store, stage: str) -> bool:
    """Whether a stage's manifest is no longer what `save` wrote; one without a seal counts as unedited."""
    data = json.loads(store.read(path(stage)))
    return bool(data.pop(SEAL, None) not in (None, digest(data)))


def save(store: Store, manifest: Manifest) -> None:
    """Write a manifest atomically."""
    data = json.loads(json.dumps(asdict(manifest)))
    store.write(path(manifest.stage), json.dumps(data | {SEAL: digest(data)}, indent=1, sort_keys=True).encode())


def output_digest(outputs: Iterable[OutputFile]) -> str:
    """Identity of what a stage made: the content of its files in order, whatever their names."""
    return digest([[file.kind, file.rows, file.sha256] for file in outputs])


def digest(value: Any) -> str:
    """32 hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]
