"""What a stage is: the contract between the work on rows (`stages/`) and the spine (`curation/`).

A stage is a list of phases. A phase cuts its input into bounded units, and does the work of one unit
at a time through a `Workspace`. The spine schedules units on Ray, names and commits their files,
counts rows, resumes and reports; a stage knows none of that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.compute as pc

KEPT, DROPPED = "kept", "dropped"


def semantic(default: Any = ..., *, help: str) -> Any:
    """A config option that changes results, and so is part of the fingerprint."""
    return _option(default, help, is_semantic=True)


def operational(default: Any = ..., *, help: str) -> Any:
    """A config option that changes how the work is done, never what comes out."""
    return _option(default, help, is_semantic=False)


def _option(default: Any, help: str, *, is_semantic: bool) -> Any:
    metadata = {"help": help, "semantic": is_semantic}
    if default is ...:
        return field(metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """One committed file; `path` is relative to the run's root and is unique to the attempt that wrote it."""

    path: str
    rows: int
    bytes: int
    sha256: str
    kind: str = "part"
    """`part` (rows of the stage's table), `images`, `tar`, `index`, `side` (work between phases), `scores`,
    `features`, `facts`."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A bounded piece of a phase's input, numbered from the input alone."""

    id: str
    """Sortable and unique within the phase; it becomes part of file names."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: what `work` needs to find its slice of the input."""
    rows: int = 0
    """Estimate, for progress."""
    lane: str | None = None
    """Units of one lane run one after another in one task and share what `setup` returned."""
    digest: str | None = None
    """When given: any committed unit of this stage with the same digest stands in for this one."""


class Ledger:
    """Rows in, kept and dropped by reason, per source. Conservation: `in = kept + Σ dropped`."""

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()
        self.dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.rows_in: Counter[str] = Counter()

    def add(self, source: str, reason: str | None, rows: int = 1) -> None:
        """Count `rows` of `source` as seen, and as kept (`reason` None) or dropped for `reason`."""
        self.rows_in[source] += rows
        self.settle(source, reason, rows)

    def settle(self, source: str, reason: str | None, rows: int) -> None:
        """Count an outcome for rows whose arrival was counted elsewhere (`see`)."""
        if rows == 0:
            return
        if reason is None:
            self.kept[source] += rows
        else:
            self.dropped[source][reason] += rows

    def see(self, source: str, rows: int) -> None:
        """Count rows that arrived; their outcome must be settled."""
        self.rows_in[source] += rows

    def add_table(self, table: pa.Table) -> None:
        """Count every row of a table that has `source`, `status` and `reason`."""
        if table.num_rows == 0:
            return
        groups = table.select(["source", "reason"]).group_by(["source", "reason"]).aggregate([([], "count_all")])
        for row in groups.to_pylist():
            self.add(row["source"], row["reason"], row["count_all"])

    def to_json(self) -> dict[str, dict[str, Any]]:
        """`{source: {"in", "kept", "dropped": {reason: rows}}}`, sorted, without zeros."""
        sources = sorted(set(self.rows_in) | set(self.kept) | set(self.dropped))
        return {
            source: {
                "in": self.rows_in[source],
                "kept": self.kept[source],
                "dropped": {r: n for r, n in sorted(self.dropped[source].items()) if n},
            }
            for source in sources
        }

    @classmethod
    def from_json(cls, counts: Mapping[str, Mapping[str, Any]]) -> Ledger:
        """The inverse of `to_json`."""
        ledger = cls()
        ledger.merge(counts)
        return ledger

    def merge(self, counts: Mapping[str, Mapping[str, Any]]) -> None:
        """Add counts in `to_json`'s form."""
        for source, entry in counts.items():
            self.see(source, entry["in"])
            self.settle(source, None, entry["kept"])
            for reason, rows in entry["dropped"].items():
                self.settle(source, reason, rows)

    def imbalance(self) -> str | None:
        """A sentence naming the first source whose sums do not hold, else None."""
        for source, entry in self.to_json().items():
            settled = entry["kept"] + sum(entry["dropped"].values())
            if settled != entry["in"]:
                return f"source {source!r}: {entry['in']} rows in, but {settled} kept or dropped"
        return None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the work of one unit returns; its files were written through the workspace."""

    ledger: Ledger = field(default_factory=Ledger)
    meta: Mapping[str, Any] = field(default_factory=dict)
    """JSON values kept in the commit record, for later phases and the report."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A committed unit: what later phases, resume and adoption trust."""

    phase: str
    unit: str
    digest: str | None
    files: tuple[OutputFile, ...]
    counts: Mapping[str, Any]
    meta: Mapping[str, Any]
    seconds: float
    refers: tuple[OutputFile, ...] = ()
    """Files of earlier records that this unit's rows point at."""


class Workspace(Protocol):
    """All that a unit's work may touch. Paths are relative to the run's root, or full URLs."""

    seed: int
    subset: str
    sources: Sequence[str]
    """Names in the recipe's order, which is precedence."""
    careful: bool
    """Earlier attempts at this unit killed their worker: decode in child processes, row by row."""

    def input_files(self, kind: str = "part") -> list[OutputFile]:
        """The committed files of the stage before this one, in unit order."""

    def input_columns(self) -> pa.Schema:
        """The schema of the input stage's parts."""

    def phase_records(self, phase: str) -> list[Record]:
        """Records of an earlier phase of this very run, in unit order."""

    def phase_files(self, phase: str, kind: str) -> list[OutputFile]:
        """Files of one kind that an earlier phase of this very run committed, in unit order."""

    def earlier_records(self, phase: str) -> list[Record]:
        """Records of the phase committed under other fingerprints of this stage: what can be adopted."""

    def read_table(
        self, path: str, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None
    ) -> pa.Table:
        """Rows of one parquet file."""

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each (offset, size), in the order given; neighbouring ranges share a read."""

    def write_table(self, name: str, tables: pa.Table | Iterable[pa.Table], kind: str = "part") -> OutputFile:
        """Write parquet (zstd); each table of an iterable becomes a row group. `name` like "part" or "side"."""

    def create(self, name: str, suffix: str, kind: str, rows: int = 0) -> AbstractContextManager[NewFile]:
        """A new file to write bytes to; set `rows` on it before it closes. Committed with the unit."""

    def refer(self, files: Iterable[OutputFile]) -> None:
        """Name files of earlier records that this unit's rows still point at."""

    def progress(self, rows: int = 0, kept: int = 0, dropped: int = 0) -> None:
        """Tell the user about rows done so far."""

    def exists(self, path: str) -> bool:
        """Whether a file is there."""

    def sha256(self, path: str) -> str:
        """Digest of a file's bytes."""

    def move(self, path: str, target: str) -> None:
        """Rename a file, replacing `target`: for `Stage.publish` alone."""

    def write_bytes(self, path: str, data: bytes) -> None:
        """Replace a small file atomically: for `Stage.publish` alone."""


class NewFile(Protocol):
    """A file being written by a unit."""

    path: str
    """Relative to the root: what a row may point at once the unit commits."""
    rows: int

    def write(self, data: bytes) -> int:
        """Append bytes."""

    def tell(self) -> int:
        """Bytes written so far."""


class Phase(ABC):
    """One pass over units. Instances are pickled into tasks: keep them small and plain."""

    name: ClassVar[str]
    cpus: float = 1.0
    gpus: float = 0.0
    risky: bool = False
    """The work decodes untrusted bytes: after two worker deaths a unit runs with `careful` True."""
    uses_model: bool = False
    """Two operators: `prepare` in CPU tasks, `work` on an actor pool, whose actors keep `setup`'s result."""

    @abstractmethod
    def cut(self, ws: Workspace) -> list[Unit]:
        """The phase's units, from its input alone; called on the driver, so it reads footers at most."""

    @abstractmethod
    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Do one unit: read, write files through `ws`, return the counts."""

    def setup(self, ws: Workspace) -> Any:
        """State shared by the units of a lane (or of an actor): a session, a model."""
        return None

    def close(self, state: Any) -> None:
        """Release what `setup` made."""

    def prepare(self, unit: Unit, ws: Workspace) -> pa.Table:
        """With `uses_model`: the unit's input, decoded on the CPU."""
        raise TypeError(f"{type(self).__name__} has no prepare")


class Stage(ABC):
    """A stage of the recipe: its config, what it needs, adds and may say, and its phases."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised by hand when results change."""
    config_class: ClassVar[type]
    reasons: ClassVar[frozenset[str]]
    requires: ClassVar[frozenset[str]] = frozenset()
    """Columns of the input without which the stage cannot run."""
    adds: ClassVar[pa.Schema] = pa.schema([])
    reads_sources: ClassVar[bool] = False
    """The first stage: its input is the recipe's sources."""
    keeps_results: ClassVar[bool] = False
    """Expensive: files of every fingerprint stay, to be adopted."""
    uses_seed: ClassVar[bool] = False
    uses_source_order: ClassVar[bool] = False

    def __init__(self, config: Any, sources: Sequence[Any] = ()) -> None:
        self.config = config
        self.sources = sources
        """Resolved sources (`stages.sources.Source`), for stages that read them."""

    @abstractmethod
    def phases(self) -> list[Phase]:
        """In order; the files of the last phase (kinds other than `side`) are the stage's output."""

    def named_files(self) -> list[str]:
        """Files that options name, whose sha256 belongs to the fingerprint (packs, prompts, weights)."""
        return []

    def check(self) -> None:
        """Raise `UserError` for what is wrong with the config, before anything runs."""

    def publish(self, ws: Workspace, records: Mapping[str, Sequence[Record]]) -> list[OutputFile] | None:
        """Give output files their final names, repeatably; None leaves the committed names.

        Called once all units are committed and the old manifest is gone; a kill half-way means that it
        is called again with the same records.
        """
        return None

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """Extra entries for the manifest, from the records of each phase (thresholds, yields…)."""
        return {}

    def preview(self, ws: Workspace) -> tuple[int, int] | None:
        """(rows to adopt, rows to do) for `--plan`, or None when it cannot be said cheaply."""
        return None

    def estimate(self, ws: Workspace) -> str | None:
        """What `--plan` says about the cost of this stage, where it is known to vary: a clause without a full stop."""
        return None


def group_files(files: Sequence[OutputFile], rows: int, name: str = "") -> list[Unit]:
    """Units of consecutive files with about `rows` rows each; `spec["files"]` holds their paths."""
    groups: list[list[OutputFile]] = []
    size = 0
    for file in files:
        if not groups or size + file.rows > rows or len(groups[-1]) >= 256:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.rows
    return [
        Unit(
            id=f"{name}{number:05d}",
            spec={"files": [file.path for file in group]},
            rows=sum(file.rows for file in group),
        )
        for number, group in enumerate(groups)
    ]


def status_column(reasons: pa.Array) -> pa.Array:
    """`kept` where the reason is null, else `dropped`."""
    return pc.if_else(pc.is_null(reasons), pa.scalar(KEPT), pa.scalar(DROPPED))
