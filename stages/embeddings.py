"""Images whose features are alike: what dedup compares beside hashes, where `outliers` stored features before it.

`Images` numbers the distinct images, sorts their vectors into cells and writes them one after the other; `Alike`
compares each cell's vectors with each other and with those that probe it. Of few images every cell is probed by all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages import cosine
from stages.base import Phase, Result, Unit, Workspace, semantic
from stages.cosine import Pairs
from stages.errors import UnitError
from stages.features import COLUMN, Vectors, read_vectors
from stages.narrow import input_rows, read_rows, row_units
from stages.twins import NONE, Doubts, Graph, Ids, Looks

EXACT_IMAGES = 200_000
"""Images up to which `search: auto` compares all with all."""
IMAGES_PER_CELL = 2000
SAMPLE_PER_CELL = 32
"""Images that the cells are made from."""
IMAGES_PER_UNIT = 8192
"""Whose cells are compared at a time."""
MOST_PAIRS = 200_000_000
"""Beyond which the bound is no bound between copies and other pictures, and memory ends."""
CELLS = pa.schema([("start", pa.int64()), ("end", pa.int64()), ("probed_by", pa.list_(pa.int64()))])
"""A cell's vectors, by their places in the file, and those that are compared with them; null: all that follow."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingsConfig:
    """Options of the comparison by image features."""

    cosine: float = semantic(0.95, help="of two images' features, from which on they count as one image")
    search: Literal["auto", "exact", "cells"] = semantic(
        "auto", help="exact: all images with all; cells: with those in near cells; auto: exact up to 200,000 images"
    )
    probes: int = semantic(8, help="cells that an image is looked for in")
    model: str | None = semantic(None, help="the vlm of stages.outliers, to compare the images of test sets, too")
    pretrained: str | None = semantic(None, help="its tag (or file) of weights")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = semantic("auto", help="its precision")

    def __post_init__(self) -> None:
        if not 0 < self.cosine <= 1:
            raise ValueError(f"cosine: a number above 0 and up to 1 is wanted, found {self.cosine}")
        if self.probes < 1:
            raise ValueError(f"probes: a whole number from 1 on is wanted, found {self.probes}")
        if self.pretrained and not self.model:
            raise ValueError(f"pretrained: {self.pretrained!r} goes with a model, and none is named")

    def is_exact(self, images: int) -> bool:
        """Whether all images are compared with all."""
        return self.search == "exact" or (self.search == "auto" and images <= EXACT_IMAGES)


class Images(Phase):
    """Numbers the distinct images of all rows and writes their vectors cell by cell."""

    name: ClassVar[str] = "images"

    def __init__(self, config: EmbeddingsConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all", rows=input_rows(ws))]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the image of each row, the vectors, and the cells: a row group for each unit of `Alike`."""
        files, image, places = _number(_pointers(ws))
        if not len(places):
            return Result(meta={"images": 0, "units": []})
        vectors = _gather(ws, files, places)
        exact = self.config.is_exact(len(vectors))
        order, cells = _blocks(len(vectors)) if exact else _cells(vectors, self.config.probes)
        units = list(_grouped(cells))
        ws.write_table("image-of-row", pa.table({"image": pa.array(image, pa.int32())}), kind="side")
        ws.write_table("image-order", pa.table({"image": pa.array(order, pa.int32())}), kind="side")
        ws.write_table("cells", units, kind="side")
        with ws.create("vectors", ".bin", kind="side", rows=len(vectors)) as file:
            for start in range(0, len(order), IMAGES_PER_UNIT):
                file.write(vectors[order[start : start + IMAGES_PER_UNIT]].tobytes())
        sizes = [int(pc.sum(pc.subtract(group["end"], group["start"])).as_py()) for group in units]
        return Result(meta={"images": len(vectors), "width": vectors.shape[1], "exact": exact, "units": sizes})


def _pointers(ws: Workspace) -> Iterator[pa.StructArray]:
    """Where the features of every kept row lie, a unit of rows at a time."""
    for unit in row_units(ws):
        yield read_rows(ws, unit, ["status", COLUMN])[COLUMN].combine_chunks()


def _number(pointers: Iterator[pa.StructArray]) -> tuple[list[str], Ids, Ids]:
    """The files in the order of rows; the image of each row, or NONE; and each image's (file number, row)."""
    numbers: dict[str, int] = {}
    spots = [np.empty(0, np.int64)]
    for column in pointers:
        paths = pc.struct_field(column, "file").dictionary_encode()
        known = [numbers.setdefault(path, len(numbers)) for path in paths.dictionary.to_pylist()]
        file = np.array([*known, 0], np.int64)[paths.indices.fill_null(len(known)).to_numpy()]
        spot = file << 32 | pc.struct_field(column, "row").fill_null(0).to_numpy()
        spots.append(np.where(column.is_valid().to_numpy(zero_copy_only=False), spot, NONE))
    everything, image = np.unique(np.concatenate(spots), return_inverse=True)
    missing = int(len(everything) > 0 and everything[0] == NONE)
    places = everything[missing:]
    return list(numbers), image - missing, np.stack([places >> 32, places & 0xFFFFFFFF], axis=1)


def _gather(ws: Workspace, files: Sequence[str], places: Ids) -> Vectors:
    """(images, width) the vectors at places sorted by file.

    Raises:
        UnitError: two models computed them.
    """
    vectors, first = np.empty((0, 0), np.float16), ""
    starts = np.searchsorted(places[:, 0], np.arange(len(files) + 1))
    for number, path in enumerate(files):
        here = slice(starts[number], starts[number + 1])
        some, model = read_vectors(ws, path, places[here, 1])
        if number == 0:
            vectors, first = np.empty((len(places), some.shape[1]), np.float16), model
        if model != first:
            raise UnitError("the rows' features are of two models, and cannot be compared; run outliers again")
        vectors[here] = some
    return vectors


def _blocks(images: int) -> tuple[Ids, pa.Table]:
    """All with all: the vectors as they stand, in blocks each of which is compared with all that follow."""
    starts = np.arange(0, images, IMAGES_PER_UNIT)
    ends = np.minimum(starts + IMAGES_PER_UNIT, images)
    return np.arange(images), pa.table([starts, ends, pa.nulls(len(starts), CELLS.field(2).type)], schema=CELLS)


def _cells(vectors: Vectors, probes: int) -> tuple[Ids, pa.Table]:
    """The vectors' order by cell, and the cells with the vectors that probe them."""
    cells = max(1, len(vectors) // IMAGES_PER_CELL)
    sample = vectors[:: max(1, len(vectors) // (cells * SAMPLE_PER_CELL))]
    probed = cosine.nearest(vectors, cosine.centres(sample, cells), probes)
    order = np.argsort(probed[:, 0], kind="stable")
    probed = probed[order]
    ends = np.searchsorted(probed[:, 0], np.arange(cells + 1))
    visitor, cell = np.repeat(np.arange(len(order)), probed.shape[1] - 1), probed[:, 1:].reshape(-1)
    by_cell = np.argsort(cell, kind="stable")
    offsets = np.searchsorted(cell[by_cell], np.arange(cells + 1))
    visitors = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(visitor[by_cell]))
    return order, pa.table([ends[:-1], ends[1:], visitors], schema=CELLS)


def _grouped(cells: pa.Table) -> Iterator[pa.Table]:
    """Consecutive cells with about `IMAGES_PER_UNIT` vectors."""
    first = np.searchsorted(cells["end"].to_numpy(), np.arange(0, cells["end"][-1].as_py(), IMAGES_PER_UNIT), "right")
    bounds = [*np.unique(first).tolist(), cells.num_rows]
    for start, end in pairwise(bounds):
        yield cells.slice(start, end - start)


class Alike(Phase):
    """Finds the pairs of images whose features are alike, some cells at a time."""

    name: ClassVar[str] = "alike"

    def __init__(self, config: EmbeddingsConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """Groups of cells."""
        sizes = ws.phase_records("images")[0].meta["units"]
        return [Unit(id=f"{n:05d}", spec={"row_group": n}, rows=size) for n, size in enumerate(sizes)]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the pairs of images, the smaller number first."""
        _, order, cells, vectors = ws.phase_files("images", "side")
        meta = ws.phase_records("images")[0].meta
        file = VectorFile(ws, vectors.path, meta["width"])
        here = ws.read_table(cells.path, row_groups=[unit.spec["row_group"]])
        found = [
            pairs
            for start, end, visitors in _read_cells(here, meta["images"])
            for pairs in self._pairs(file, start, end, visitors)
        ]
        image = ws.read_table(order.path)["image"].to_numpy().astype(np.int64)
        left, right = (image[np.concatenate(side)] for side in zip(*found, strict=True))
        least, most = _distinct_pairs(np.minimum(left, right), np.maximum(left, right))
        if len(least) > MOST_PAIRS:
            raise too_many(len(least))
        ws.write_table("alike", pa.table({"left": least, "right": most}), kind="side")
        return Result(meta={"pairs": len(least)})

    def _pairs(self, file: VectorFile, start: int, end: int, visitors: Ids) -> Iterator[Pairs]:
        """Those of a cell, as places in the file."""
        residents = file.read(np.arange(start, end))
        rows, columns = cosine.similar_within(residents, self.config.cosine)
        yield rows + start, columns + start
        for first in range(0, len(visitors), IMAGES_PER_UNIT):
            some = visitors[first : first + IMAGES_PER_UNIT]
            rows, columns = cosine.similar(residents, file.read(some), self.config.cosine)
            yield rows + start, some[columns]


def too_many(pairs: int) -> UnitError:
    """More pairs than can be held."""
    return UnitError(
        f"stages.dedup.embeddings.cosine: {pairs:,} pairs of images and more reach it, and {MOST_PAIRS:,} fit memory; "
        "name a larger one"
    )


def _read_cells(cells: pa.Table, images: int) -> Iterator[tuple[int, int, Ids]]:
    """First place, end and visitors' places of each cell."""
    for start, end, probed_by in zip(*cells.columns, strict=True):
        first, last = start.as_py(), end.as_py()
        yield first, last, probed_by.values.to_numpy() if probed_by.is_valid else np.arange(last, images)


@dataclass(frozen=True)
class VectorFile:
    """Vectors of one width, one after the other."""

    ws: Workspace
    path: str
    width: int

    def read(self, places: Ids) -> Vectors:
        """(n, width) those at ascending places; neighbours share a read."""
        size = self.width * 2
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        runs = [(int(run[0]) * size, len(run) * size) for run in np.split(places, breaks) if len(run)]
        data = b"".join(self.ws.read_ranges(self.path, runs))
        return np.frombuffer(data, np.float16).reshape(-1, self.width)


@dataclass(frozen=True, kw_only=True)
class AlikeRows:
    """Rows whose images' features are like another image's."""

    image: NDArray[np.int32]
    """The image of every row, as `graph` counts those that are like another, or NONE."""
    graph: Graph

    @property
    def rows(self) -> Ids:
        """Positions of those rows, ascending."""
        return np.flatnonzero(self.image != NONE)

    def looks(self, rows: Ids, doubts: Doubts | None) -> Looks:
        """Of rows in the total order, at those positions."""
        ids = self.image[rows].astype(np.int64)[:, None]
        return Looks(ids=ids, graph=self.graph.seen(ids), doubts=doubts)


def read_alike(ws: Workspace, rows: int) -> AlikeRows:
    """What `Alike` found about so many rows.

    Raises:
        UnitError: more pairs than memory is for.
    """
    records = ws.phase_records("alike")
    pairs = sum(record.meta["pairs"] for record in records)
    if pairs > MOST_PAIRS:
        raise too_many(pairs)
    if not records:
        return AlikeRows(image=np.full(rows, NONE, np.int32), graph=Graph.of(0))
    tables = [ws.read_table(record.files[0].path) for record in records]
    left, right = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("left", "right"))
    left, right = _distinct_pairs(left, right)
    paired = np.unique(np.concatenate([left, right]))
    image = ws.read_table(ws.phase_files("images", "side")[0].path)["image"].to_numpy()
    number = np.full(ws.phase_records("images")[0].meta["images"] + 1, NONE, np.int32)  # NONE (−1) is the last
    number[paired] = np.arange(len(paired))
    graph = Graph.of(len(paired), np.searchsorted(paired, left), np.searchsorted(paired, right))
    return AlikeRows(image=number[image], graph=graph)


def _distinct_pairs(left: Ids, right: Ids) -> Pairs:
    """Each once, sorted."""
    pairs = np.unique(left << 32 | right)
    return pairs >> 32, pairs & 0xFFFFFFFF
