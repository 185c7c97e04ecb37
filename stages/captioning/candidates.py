"""Candidates: which images have none yet, and the writing of those, stored for good in `captions/candidates/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.base import OutputFile, Phase, Result, Unit, Workspace, group_files
from stages.captioning.generator import Captioner, Inputs, Options, Write, pack, unpack
from stages.errors import UnitError
from stages.images import open_rgb
from stages.schema import IMAGE
from stages.scoring import SUSPICIOUS, image_bytes, kept_rows
from stages.vision import without_excess

ROWS_PER_UNIT = 20_000
"""Rows that are composed in one task; images are captioned in the same order, group by group, by key within."""
UNIT_IMAGES = 64
"""Images whose candidates one commit holds: what a kill costs a worker."""
WANTED = pa.schema([("id", pa.string()), ("image", IMAGE)])
STORED = pa.schema([("id", pa.string()), ("texts", pa.list_(pa.string()))])
"""Candidates in the order of their numbers, by the image's sha256; null where it cannot be decoded."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What has to be captioned, and the stored candidates that spare the rest."""

    missing: pa.Table
    """WANTED."""
    stored: list[OutputFile]
    digest: str


def wanted(ws: Workspace, captioner: Captioner, options: Options) -> Wanted:
    """Compare the input's images with the candidates that earlier runs stored for the same model and options."""
    digest = captioner.digest(ws.sha256, options)
    once = distinct(ws)
    records = [record for record in ws.earlier_records(Generate.name) if record.meta.get("digest") == digest]
    files = [file for record in records for file in record.files if ws.exists(file.path)]
    found = pa.concat_tables([_numbered(ws, file, number) for number, file in enumerate(files)] or [_NUMBERED])
    places = pc.index_in(once["id"], found["id"].combine_chunks())
    used = pc.unique(found["file"].combine_chunks().take(places.drop_null())).to_pylist()
    return Wanted(
        missing=once.filter(places.is_null()), stored=[files[number] for number in sorted(used)], digest=digest
    )


_NUMBERED = pa.table({"id": pa.array([], pa.string()), "file": pa.array([], pa.int64())})


def _numbered(ws: Workspace, file: OutputFile, number: int) -> pa.Table:
    ids = ws.read_table(file.path, columns=["id"])["id"]
    return pa.table({"id": ids, "file": pa.array(np.full(len(ids), number), pa.int64())})


def distinct(ws: Workspace) -> pa.Table:
    """WANTED of the input: group after group, by key within a group, the first row of each image."""
    tables = [WANTED.empty_table()]
    for unit in row_groups(ws):
        rows = pa.concat_tables([narrow(ws, path, ["sha256", "image"]) for path in unit.spec["files"]])
        rows = rows.sort_by("key")
        tables.append(pa.table([rows["sha256"], rows["image"]], schema=WANTED))
    everything = pa.concat_tables(tables)
    numbered = pa.table({"id": everything["id"], "row": np.arange(everything.num_rows)})
    first = numbered.group_by("id").aggregate([("row", "min")])["row_min"].to_numpy()
    return everything.take(pa.array(np.sort(first)))


def row_groups(ws: Workspace) -> list[Unit]:
    """The input's parts in groups that are composed together."""
    return group_files(ws.input_files(), ROWS_PER_UNIT)


def narrow(ws: Workspace, path: str, columns: Sequence[str]) -> pa.Table:
    """Kept rows of a part: `key` and the columns named."""
    return kept_rows(ws.read_table(path, columns=["key", "status", *columns])).drop_columns("status")


class PlanCandidates(Phase):
    """Lists the images to be captioned: one row group for each unit of `Generate`."""

    name: ClassVar[str] = "plan"

    def __init__(self, captioner: Captioner, options: Options, batch_size: int) -> None:
        self.captioner = captioner
        self.options = options
        self.size = -(-UNIT_IMAGES // batch_size) * batch_size

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all", rows=sum(file.rows for file in ws.input_files()))]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the list, and name the stored candidates that are used again."""
        found = wanted(ws, self.captioner, with_seed(self.options, ws))
        ws.refer(found.stored)
        total = found.missing.num_rows
        starts = range(0, total, self.size)
        if total:
            ws.write_table("wanted", (found.missing.slice(start, self.size) for start in starts), kind="side")
        return Result(meta={"digest": found.digest, "units": [min(self.size, total - start) for start in starts]})


class Generate(Phase):
    """Writes the candidates of one unit's images and stores them."""

    name: ClassVar[str] = "generate"
    uses_model = True

    def __init__(self, captioner: Captioner, options: Options, batch_size: int) -> None:
        self.captioner = captioner
        self.options = options
        self.batch_size = batch_size
        self.gpus = 0.0 if captioner.device == "cpu" else 1.0

    def cut(self, ws: Workspace) -> list[Unit]:
        """A row group of the plan each."""
        sizes = ws.phase_records(PlanCandidates.name)[0].meta["units"]
        return [Unit(id=f"{n:06d}", spec={"row_group": n}, rows=size) for n, size in enumerate(sizes)]

    def setup(self, ws: Workspace) -> Write:
        """The model, loaded once an actor."""
        return self.captioner.load(with_seed(self.options, ws))

    def prepare(self, unit: Unit, ws: Workspace) -> pa.Table:
        """The model's inputs, made on the CPU: `id, inputs` (null where they cannot be)."""
        file = ws.phase_files(PlanCandidates.name, "side")[0]
        table = ws.read_table(file.path, row_groups=[unit.spec["row_group"]])
        process = self.captioner.processor(self.options.prompt)
        inputs = [_processed(data, process) for data in image_bytes(ws, table["image"].to_pylist())]
        if len(inputs) >= SUSPICIOUS and not any(inputs):
            ref = self.captioner.ref
            raise UnitError(f"{ref.where}: the processor of {ref.model!r} takes none of {len(inputs)} images")
        return pa.table({"id": table["id"], "inputs": pa.array(inputs, pa.large_binary())})

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Caption the unit in batches of one shape."""
        assert prepared is not None, "the spine prepares the units of a model phase"
        decodable = prepared.filter(prepared["inputs"].is_valid())
        ids = decodable["id"].to_pylist()
        inputs = [unpack(data.as_buffer()) for data in decodable["inputs"]]
        texts = dict(zip(ids, write_batches(state, self.batch_size, inputs, ids), strict=True))
        rows = [{"id": name, "texts": texts.get(name)} for name in prepared["id"].to_pylist()]
        ws.write_table("candidates/candidates", pa.Table.from_pylist(rows, schema=STORED), kind="scores")
        digest = ws.phase_records(PlanCandidates.name)[0].meta["digest"]
        return Result(meta={"digest": digest, "images": prepared.num_rows})


def with_seed(options: Options, ws: Workspace) -> Options:
    """The options with the run's seed."""
    return replace(options, seed=ws.seed)


def write_batches(write: Write, batch_size: int, inputs: Sequence[Inputs], ids: Sequence[str]) -> list[list[str]]:
    """Candidates of any number of images, by batches of one shape: the last of a shape is filled up, and cut again."""
    found: dict[int, list[str]] = {}
    for members in _of_one_shape(inputs):
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            filled = batch + batch[:1] * (batch_size - len(batch))
            texts = write([inputs[n] for n in filled], [ids[n] for n in filled])
            found |= zip(batch, texts, strict=False)
    return [found[number] for number in range(len(inputs))]


def _of_one_shape(inputs: Sequence[Inputs]) -> list[list[int]]:
    """Places of the inputs that can be one batch, in their order; many models have but one shape."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, each in enumerate(inputs):
        groups.setdefault(tuple((name, value.shape) for name, value in each.items()), []).append(number)
    return list(groups.values())


def _processed(data: bytes, process: Callable[[Any], Inputs]) -> bytes | None:
    try:
        return pack(process(without_excess(open_rgb(data))))
    except (TypeError, ValueError):  # undecodable, or of a shape that the processor misreads (3 × 1 pixels)
        return None
