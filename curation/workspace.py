"""The workspace of one unit: reading what is committed, writing under attempt-unique names."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from curation import commit, manifest
from stages.base import OutputFile, Record, Result, Unit
from stages.errors import UnitError
from stages.storage import Store

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One execution of a stage under one fingerprint: what every task needs to know. Small and picklable."""

    store: Store
    stage: str
    fingerprint: str
    generation: int = 0
    input_stage: str | None = None
    input_schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    seed: int = 0
    subset: str = ""
    sources: tuple[str, ...] = ()
    adopt: bool = True
    """Whether results of other runs of this stage may stand in; `--force` says no."""
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Distinguishes drivers, so that caches of long-lived worker processes never outlive one."""

    @property
    def run(self) -> str:
        """The name under which records are kept."""
        return f"{self.fingerprint}.{self.generation}" if self.generation else self.fingerprint

    @cached_property
    def input_files(self) -> tuple[OutputFile, ...]:
        """Outputs of the input stage's manifest."""
        if self.input_stage is None:
            return ()
        return _manifest_outputs(self.session, self.store.url, self.input_stage, _Uncompared(self.store))

    def records(self, phase: str) -> tuple[Record, ...]:
        """Records of a finished phase of this run."""
        return _phase_records(self.session, self.stage, self.run, phase, _Uncompared(self.store))

    def earlier(self, phase: str) -> list[Record]:
        """Records of the phase from every other run of this stage, oldest name first."""
        found: list[Record] = []
        if not self.adopt:
            return found
        for run in _other_runs(self.session, self.stage, self.run, _Uncompared(self.store)):
            found.extend(_phase_records(self.session, self.stage, run, phase, _Uncompared(self.store)))
        return found


@dataclass(frozen=True)
class _Uncompared:
    """Lets a store be an argument of a cached function without being part of its key."""

    store: Store = field(compare=False)


@lru_cache(maxsize=32)
def _manifest_outputs(session: str, url: str, stage: str, at: _Uncompared) -> tuple[OutputFile, ...]:
    found = manifest.load(at.store, stage)
    if found is None:
        raise UnitError(f"stage {stage} has no manifest")
    return found.outputs


@lru_cache(maxsize=256)
def _phase_records(session: str, stage: str, run: str, phase: str, at: _Uncompared) -> tuple[Record, ...]:
    return tuple(commit.records(at.store, stage, run, phase))


@lru_cache(maxsize=32)
def _other_runs(session: str, stage: str, run: str, at: _Uncompared) -> tuple[str, ...]:
    return tuple(other for other in commit.runs(at.store, stage) if other != run)


class UnitWorkspace:
    """A `stages.base.Workspace`: see there for what each method promises."""

    def __init__(
        self, run: StageRun, phase: str, unit: Unit, *, progress: Progress | None = None, careful: bool = False
    ) -> None:
        self.run = run
        self.phase = phase
        self.unit = unit
        self.careful = careful
        self.seed = run.seed
        self.subset = run.subset
        self.sources: Sequence[str] = run.sources
        self._progress = progress
        self._attempt = uuid.uuid4().hex[:8]
        self._files: list[OutputFile] = []
        self._refers: dict[str, OutputFile] = {}
        self._started: list[str] = []
        self._began = time.monotonic()

    # Reading what is committed

    def input_files(self, kind: str = "part") -> list[OutputFile]:
        return [file for file in self.run.input_files if file.kind == kind]

    def input_columns(self) -> pa.Schema:
        files = self.input_files()
        if not files:
            return self.run.input_schema
        source, filesystem = self._parquet(files[0].path)
        with pq.ParquetFile(source, filesystem=filesystem) as file:
            return file.schema_arrow

    def phase_records(self, phase: str) -> list[Record]:
        return list(self.run.records(phase))

    def phase_files(self, phase: str, kind: str) -> list[OutputFile]:
        return [file for record in self.run.records(phase) for file in record.files if file.kind == kind]

    def earlier_records(self, phase: str) -> list[Record]:
        return self.run.earlier(phase)

    def read_table(
        self, path: str, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None
    ) -> pa.Table:
        source, filesystem = self._parquet(path)
        wanted = list(columns) if columns is not None else None
        with pq.ParquetFile(source, filesystem=filesystem) as file:
            if row_groups is None:
                return file.read(columns=wanted)
            return file.read_row_groups(list(row_groups), columns=wanted)

    def _parquet(self, path: str) -> tuple[str, pa.fs.FileSystem]:
        return self.run.store.full(path), arrow_filesystem(self.run.store, path)

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        return self.run.store.read_ranges(path, ranges)

    def exists(self, path: str) -> bool:
        return self.run.store.exists(path)

    def sha256(self, path: str) -> str:
        return self.run.store.sha256(path)

    # Writing what may become committed

    def _new_path(self, name: str, suffix: str, kind: str) -> str:
        hidden = ".side/" if kind == "side" else ""
        return f"{self.run.stage}/{hidden}{name}-{self.unit.id}-{self._attempt}{suffix}"

    def write_table(self, name: str, tables: pa.Table | Iterable[pa.Table], kind: str = "part") -> OutputFile:
        suffix = f"-{len(self._started)}.parquet" if self._started else ".parquet"
        with self.create(name, suffix, kind) as file:
            if isinstance(tables, pa.Table):
                pq.write_table(tables, file, compression="zstd")
                file.rows = tables.num_rows
            else:
                file.rows = _write_row_groups(file, tables)
        return self._files[-1]

    @contextlib.contextmanager
    def create(self, name: str, suffix: str, kind: str, rows: int = 0) -> Iterator[DigestingFile]:
        path = self._new_path(name, suffix, kind)
        self._started.append(path)
        file = DigestingFile(self.run.store.open_new(path), path, rows)
        try:
            yield file
            file.flush_to_disk()
        finally:
            file.close()
        self._files.append(OutputFile(path=path, rows=file.rows, bytes=file.tell(), sha256=file.sha256(), kind=kind))

    def refer(self, files: Iterable[OutputFile]) -> None:
        self._refers.update({file.path: file for file in files})

    def progress(self, rows: int = 0, kept: int = 0, dropped: int = 0) -> None:
        if self._progress:
            self._progress(rows, kept, dropped)

    def move(self, path: str, target: str) -> None:
        self.run.store.move(path, target)

    def write_bytes(self, path: str, data: bytes) -> None:
        self.run.store.write(path, data)

    # What the spine does with it

    def commit(self, result: Result) -> Record:
        """Publish the unit's record; if another attempt was first, its record is the one that counts.

        Raises:
            UnitError: the unit's rows in are not its rows kept and dropped.
        """
        imbalance = result.ledger.imbalance()
        if imbalance:
            raise UnitError(f"rows were lost or invented: {imbalance}")
        mine = Record(
            phase=self.phase,
            unit=self.unit.id,
            digest=self.unit.digest,
            files=tuple(self._files),
            counts=result.ledger.to_json(),
            meta=dict(result.meta),
            seconds=round(time.monotonic() - self._began, 3),
            refers=tuple(self._refers.values()),
        )
        record = commit.publish(self.run.store, self.run.stage, self.run.run, mine)
        if record.files != mine.files:
            self.discard()
        return record

    def adopt(self, record: Record) -> Record:
        """Commit this unit with the files of an equal one."""
        mine = replace(record, phase=self.phase, unit=self.unit.id, digest=self.unit.digest)
        return commit.publish(self.run.store, self.run.stage, self.run.run, mine)

    def discard(self) -> None:
        """Remove what this attempt wrote."""
        for path in self._started:
            self.run.store.remove(path)
        self._started.clear()
        self._files.clear()


class DigestingFile:
    """A binary file for writing that counts and hashes what goes through it."""

    def __init__(self, file: IO[bytes], path: str, rows: int = 0) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0
        self.path = path
        self.rows = rows
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._digest.update(view)
        self._file.write(view)
        self._size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Buffers are the underlying file's affair; `flush_to_disk` is what makes bytes durable."""

    def flush_to_disk(self) -> None:
        """Survive a power cut, where the file system lets one ask for it."""
        self._file.flush()
        if hasattr(self._file, "fileno"):
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._file.close()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def _write_row_groups(file: DigestingFile, tables: Iterable[pa.Table]) -> int:
    """Each table becomes one row group, empty ones too; returns the rows written."""
    writer: pq.ParquetWriter | None = None
    rows = 0
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
            rows += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows


def arrow_filesystem(store: Store, path: str = "") -> pa.fs.FileSystem:
    """The file system of `path`, as Arrow sees it."""
    home = store.home(path)
    return (
        pa.fs.LocalFileSystem() if isinstance(home, LocalFileSystem) else pa.fs.PyFileSystem(pa.fs.FSSpecHandler(home))
    )
