"""What a root holds: its recipe, and the manifests of its finished stages. Report, explain and verify read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from curation import manifest
from curation.manifest import Manifest
from curation.workspace import arrow_filesystem
from stages.base import OutputFile
from stages.errors import UserError
from stages.storage import Store

STAGES = ("keywords", "ingest", "download", "dedup", "outliers", "captions", "shards")
"""The order in which stages can run, for a root whose recipe is gone."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The finished stages of a root that follow from one another, in order."""

    store: Store
    recipe: Mapping[str, Any]
    manifests: Mapping[str, Manifest]

    @property
    def sources(self) -> list[str]:
        """Names of the recipe's sources, in order."""
        return [str(entry["name"]) for entry in self.recipe.get("sources") or [] if "name" in entry]

    @property
    def plain(self) -> dict[str, dict[str, Any]]:
        """The manifests as JSON values."""
        return {stage: asdict(found) for stage, found in self.manifests.items()}

    @property
    def table_stage(self) -> str | None:
        """The last finished stage that has a table."""
        names = [stage for stage in self.manifests if self.parts(stage)]
        return names[-1] if names else None

    def parts(self, stage: str) -> list[OutputFile]:
        """The files of a stage's table."""
        found = self.manifests.get(stage)
        return [file for file in found.outputs if file.kind == "part"] if found else []


def planned(store: Store) -> tuple[dict[str, Any], list[str]]:
    """The root's effective recipe (empty when it is gone), and the names of its stages in order.

    Raises:
        UserError: `recipe.yaml` is no recipe.
    """
    try:
        recipe = yaml.safe_load(store.read("recipe.yaml"))
    except FileNotFoundError:
        return {}, list(STAGES)
    except yaml.YAMLError as error:
        raise UserError(f"{store.url}/recipe.yaml cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), dict):
        raise UserError(f"{store.url}/recipe.yaml is no recipe: it has no mapping of stages")
    return recipe, list(recipe["stages"])


def load(store: Store) -> Finished:
    """The finished stages, up to the first that is missing or was made from another input.

    Raises:
        UserError: a manifest or the recipe is damaged, or the root holds no run.
    """
    recipe, names = planned(store)
    found: dict[str, Manifest] = {}
    for name in names:
        written = manifest.load(store, name)
        if written is None and not recipe:
            continue
        if written is None or not follows(written, list(found.values())):
            break
        found[name] = written
    if not found and not recipe:
        raise UserError(f"--root {store.url} holds no run: no recipe.yaml and no finished stage")
    return Finished(store=store, recipe=recipe, manifests=found)


def follows(written: Manifest, before: Sequence[Manifest]) -> bool:
    """Whether the stage was made from what the stage before it made."""
    if not before:
        return True
    expected = {entry["stage"]: entry["output_digest"] for entry in written.inputs if "stage" in entry}
    return expected.get(before[-1].stage) == before[-1].output_digest


def batches(
    store: Store, file: OutputFile, columns: Sequence[str], rows: int = 65_536
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of the first row, rows) of a parquet file, only those of `columns` that it has."""
    with pq.ParquetFile(store.full(file.path), filesystem=arrow_filesystem(store)) as table:
        present = [name for name in columns if name in table.schema_arrow.names]
        start = 0
        for batch in table.iter_batches(rows, columns=present):
            yield start, batch
            start += batch.num_rows


def rows_at(
    store: Store, file: OutputFile, numbers: Sequence[int], columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Rows of a parquet file by number, ascending, reading only the row groups that hold them."""
    found = []
    with pq.ParquetFile(store.full(file.path), filesystem=arrow_filesystem(store)) as table:
        present = [name for name in columns or table.schema_arrow.names if name in table.schema_arrow.names]
        start = 0
        for group in range(table.metadata.num_row_groups):
            length = table.metadata.row_group(group).num_rows
            mine = [number - start for number in sorted(numbers) if start <= number < start + length]
            if mine:
                found += table.read_row_group(group, columns=present).take(mine).to_pylist()
            start += length
    return found
