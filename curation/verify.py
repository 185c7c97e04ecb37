"""`python -m curation.verify --root DIR`: re-read what the manifests promise.

Rows, bytes and sha256 of every output; the sums within and between stages, recounted from the tables; the
digest of the outputs; and each sample of the shards where the index says it lies.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation import finished, manifest
from curation.console import exit_code
from curation.funnel import ConservationError, check
from curation.manifest import Manifest
from curation.recipe import root_store
from curation.workspace import arrow_filesystem
from stages.base import Ledger, OutputFile
from stages.errors import UserError
from stages.storage import Store
from stages.tar import BLOCK

COUNTED_ONLY = frozenset({"keywords"})
"""Stages whose dropped rows are counted and not written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check a root; 0 with a summary line, or 1 with a line per mismatch."""
    parser = argparse.ArgumentParser(
        prog="python -m curation.verify", description="Re-read what a run's manifests promise."
    )
    parser.add_argument("--root", required=True, metavar="DIR", help="the run's folder or fsspec URL")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(root_store(args.root)), debug=args.debug)


def run(store: Store) -> int:
    """Print what does not hold, or one line that all does."""
    found, unreadable = manifests(store)
    if not found and not unreadable:
        raise UserError(f"--root {store.url} holds no finished stage")
    count = 0
    for problem in itertools.chain(unreadable, mismatches(store, found)):
        print(problem, flush=True)
        count += 1
    if count:
        return 1
    print(summary(found))
    return 0


def manifests(store: Store) -> tuple[dict[str, Manifest], list[str]]:
    """The manifests of the recipe's stages, and a line for each that cannot be read."""
    found, problems = {}, []
    for stage in finished.planned(store)[1]:
        try:
            written = manifest.load(store, stage)
        except UserError as error:
            problems.append(str(error))
            continue
        if written is not None:
            found[stage] = written
    return found, problems


def mismatches(store: Store, found: dict[str, Manifest]) -> Iterator[str]:
    """A line per promise that does not hold."""
    before: list[Manifest] = []
    yield from _gaps(store, list(found))
    for stage, written in found.items():
        where = manifest.path(stage)
        if manifest.is_edited(store, stage):
            yield f"{where}: edited since it was written"
        if manifest.output_digest(written.outputs) != written.output_digest:
            yield f"{where}: output_digest is not that of its outputs"
        if not finished.follows(written, before):
            yield f"{where}: made from another output of {before[-1].stage} than the one that is there"
        for file in written.outputs:
            yield from _file_mismatches(store, file)
        yield from _count_mismatches(store, stage, written)
        before.append(written)
    try:
        check({stage: asdict(written) for stage, written in found.items()})
    except ConservationError as error:
        yield str(error)
    if "shards" in found:
        yield from _shard_mismatches(store, found["shards"])


def _gaps(store: Store, found: list[str]) -> Iterator[str]:
    """Stages without a manifest before one that has one, if the root's recipe names them."""
    recipe, names = finished.planned(store)
    last = max((names.index(stage) for stage in found), default=0)
    for stage in names[:last] if recipe else ():
        if stage not in found and not store.exists(manifest.path(stage)):
            yield f"{manifest.path(stage)}: missing"


def summary(found: dict[str, Manifest]) -> str:
    """One line on what was checked."""
    files = [file for written in found.values() for file in written.outputs]
    size = sum(file.bytes for file in files)
    return f"ok: {len(found)} stages ({', '.join(found)}), {len(files)} files, {size:,} bytes, every sum holds"


def _file_mismatches(store: Store, file: OutputFile) -> Iterator[str]:
    if not store.exists(file.path):
        yield f"{file.path}: missing"
        return
    size = store.size(file.path)
    if size != file.bytes:
        yield f"{file.path}: {size} bytes, the manifest says {file.bytes}"
    elif store.sha256(file.path) != file.sha256:
        yield f"{file.path}: its sha256 is not the manifest's"
    elif file.path.endswith(".parquet"):
        rows = pq.read_metadata(store.full(file.path), filesystem=arrow_filesystem(store)).num_rows
        if rows != file.rows:
            yield f"{file.path}: {rows} rows, the manifest says {file.rows}"


def _count_mismatches(store: Store, stage: str, written: Manifest) -> Iterator[str]:
    """Rows per source and reason, counted again from the table."""
    parts = [file for file in written.outputs if file.kind == "part"]
    if not parts:
        return
    ledger = Ledger()
    try:
        for file in parts:
            for _, batch in finished.batches(store, file, ["source", "status", "reason"]):
                ledger.add_table(pa.table(batch))
    except (OSError, pa.ArrowException, KeyError) as error:
        yield f"{manifest.path(stage)}: its table cannot be read: {' '.join(str(error).split())}"
        return
    counted = ledger.to_json()
    for source in sorted({*counted, *written.counts}):
        for name, rows, promised in _compared(stage, counted.get(source, {}), written.counts.get(source, {})):
            if rows != promised:
                yield f"{manifest.path(stage)}: source {source}, {name}: {promised} promised, {rows} in the table"


def _compared(stage: str, counted: dict[str, Any], promised: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """(what, rows in the table, rows promised)."""
    yield "kept", counted.get("kept", 0), promised.get("kept", 0)
    if stage not in COUNTED_ONLY:
        seen, told = counted.get("dropped", {}), promised.get("dropped", {})
        for reason in sorted({*seen, *told}):
            yield reason, seen.get(reason, 0), told.get(reason, 0)


def _shard_mismatches(store: Store, written: Manifest) -> Iterator[str]:
    """Every sample lies in its tar where the index says, back to back, and `sizes.json` counts them."""
    index = next((file for file in written.outputs if file.kind == "index"), None)
    if index is None or not store.exists(index.path):
        yield "shards/manifest.json: names no index.parquet"
        return
    counted: dict[str, int] = {}
    expected: dict[str, int] = {}
    try:
        for _, batch in finished.batches(
            store, index, ["tar", "key", "offset", "size", "image_offset", "image_size", "sha256"], 4_096
        ):
            for name in dict.fromkeys(batch.column("tar").to_pylist()):
                entries = [entry for entry in batch.to_pylist() if entry["tar"] == name]
                counted[name] = counted.get(name, 0) + len(entries)
                yield from _sample_mismatches(store, name, entries, expected.get(name, 0))
                expected[name] = entries[-1]["offset"] + entries[-1]["size"]
    except (OSError, pa.ArrowException, KeyError) as error:
        yield f"{index.path}: cannot be checked: {' '.join(str(error).split())}"
        return
    yield from _size_mismatches(store, written, counted)


def _sample_mismatches(store: Store, tar: str, entries: list[dict[str, Any]], start: int) -> Iterator[str]:
    headers = store.read_ranges(tar, [(entry["offset"], BLOCK) for entry in entries])
    images = store.read_ranges(tar, [(entry["image_offset"], entry["image_size"]) for entry in entries])
    for entry, header, image in zip(entries, headers, images, strict=True):
        key = entry["key"]
        if entry["offset"] != start:
            yield f"{tar}: sample {key} begins at {start}, the index says {entry['offset']}"
        if not _names(header, key):
            yield f"{tar}: no header of sample {key} at {entry['offset']}"
        if hashlib.sha256(image).hexdigest() != entry["sha256"]:
            yield f"{tar}: the image of {key} at {entry['image_offset']} has another sha256 than the index says"
        start = entry["offset"] + entry["size"]


def _names(header: bytes, key: str) -> bool:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name.startswith(f"{key}.")
    except tarfile.HeaderError:
        return False


def _size_mismatches(store: Store, written: Manifest, counted: dict[str, int]) -> Iterator[str]:
    """`sizes.json` of each split against the index, and the index against the manifest."""
    for file in written.outputs:
        if file.kind == "tar" and counted.get(file.path, 0) != file.rows:
            yield f"{file.path}: {file.rows} samples promised, {counted.get(file.path, 0)} in the index"
        if file.kind == "sizes" and store.exists(file.path):
            folder = file.path.rpartition("/")[0]
            try:
                sizes = json.loads(store.read(file.path))
            except ValueError:
                sizes = {}
            mine = {t.path.rpartition("/")[2]: t.rows for t in written.outputs if t.path.startswith(f"{folder}/")}
            mine.pop("sizes.json")
            if sizes != mine:
                yield f"{file.path}: does not count the samples of its tars"


if __name__ == "__main__":
    raise SystemExit(main())
