"""Test images by their features: which rows' images look like one of them, by the model that `outliers` used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages import cosine
from stages.base import Phase, Result, Unit, Workspace
from stages.embeddings import EmbeddingsConfig
from stages.errors import UnitError
from stages.features import COLUMN, Vectors, read_vectors, vector_array, vectors_of
from stages.images import open_rgb
from stages.scorers import Run, VlmConfig, VlmScorer, score_batches
from stages.testsets import Item, TestSets, read_items
from stages.twins import NONE, Ids
from stages.vision import Pixels

AT_ONCE = 256
"""Test images decoded at a time."""
COMPARED = 8192
"""Test images compared with rows at a time."""


def scorer_of(config: EmbeddingsConfig) -> VlmScorer | None:
    """The model that test images are looked at with, if one is named."""
    if config.model is None:
        return None
    named = VlmConfig(model=config.model, pretrained=config.pretrained, precision=config.precision)
    return VlmScorer(named, with_features=True, where="stages.dedup.embeddings")


class TestFeatures(Phase):
    """Computes the features of the test images."""

    name: ClassVar[str] = "test-features"
    uses_model = True
    gpus = 1.0
    __test__: ClassVar[bool] = False

    def __init__(self, scorer: VlmScorer, tests: TestSets) -> None:
        self.scorer = scorer
        self.tests = tests

    def cut(self, ws: Workspace) -> list[Unit]:
        """Those of the test sets."""
        return self.tests.cut(ws)

    def setup(self, ws: Workspace) -> tuple[Run, str]:
        """The model and its digest."""
        return self.scorer.load(self.scorer.preprocess()), self.scorer.features_digest(ws.sha256)

    def prepare(self, unit: Unit, ws: Workspace) -> pa.Table:
        """Nothing: a tar of test images is decoded bit by bit."""
        return pa.table({})

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write `item, features` of the unit's readable images; `item` counts within the unit."""
        run, digest = state
        transform = self.scorer.preprocess().transform()
        tables, start, items = [], 0, read_items(unit.spec)
        while some := list(islice(items, AT_ONCE)):
            images = enumerate(_pixels(item, transform) for item in some)
            pixels = {start + n: image for n, image in images if image is not None}
            tables.append(self._features(run, pixels))
            start += len(some)
        found = pa.concat_tables([table for table in tables if table.num_rows] or [_table([], None)])
        ws.write_table("test-features", found, kind="side")
        return Result(meta={"digest": digest})

    def _features(self, run: Run, pixels: dict[int, Pixels]) -> pa.Table:
        texts = [""] * len(pixels)
        scores = score_batches(run, self.scorer.config.batch_size, list(pixels.values()), texts, self.scorer.columns)
        return _table(list(pixels), scores.get(COLUMN))


def _table(items: list[int], features: pa.Array | None) -> pa.Table:
    column = vector_array(np.empty((0, 1), np.float16)) if features is None else features
    table = pa.table({"item": pa.array(items, pa.int64()), COLUMN: column})
    return table.filter(pc.is_valid(table[COLUMN]))


def _pixels(item: Item, transform: Any) -> Pixels | None:
    """The image as the model wants it; None where there is none or it cannot be read."""
    if item.data is None:
        return None
    try:
        pixels: Pixels = transform(open_rgb(item.data))
    except ValueError:
        return None
    return pixels


@dataclass(frozen=True)
class TestLooks:
    """The features of all test items that have any."""

    __test__: ClassVar[bool] = False

    item: Ids
    vectors: Vectors
    digest: str
    bound: float
    """Cosine from which on a row's image counts as a test item's."""

    def match(self, ws: Workspace, pointers: pa.ChunkedArray) -> Ids:
        """The first test item whose image each row's is like, or NONE; rows by pointers to their features.

        Raises:
            UnitError: another model computed the rows' features.
        """
        found = np.full(len(pointers), NONE)
        for places, vectors in self._of_rows(ws, pointers.combine_chunks()):
            for start in range(0, len(self.item), COMPARED):
                rows, items = cosine.similar(vectors, self.vectors[start : start + COMPARED], self.bound)
                rows, first = np.unique(rows, return_index=True)
                new = found[places[rows]] == NONE
                found[places[rows][new]] = self.item[start + items[first][new]]
        return found

    def _of_rows(self, ws: Workspace, pointers: pa.StructArray) -> Iterator[tuple[Ids, Vectors]]:
        """Places and vectors of the rows that have any, a file at a time."""
        paths = pc.struct_field(pointers, "file").dictionary_encode()
        number = paths.indices.fill_null(NONE).to_numpy()
        row = pc.struct_field(pointers, "row").fill_null(0).to_numpy()
        for file, path in enumerate(paths.dictionary.to_pylist()):
            places: NDArray[Any] = np.flatnonzero(number == file)
            vectors, digest = read_vectors(ws, path, row[places])
            if digest != self.digest:
                raise UnitError(
                    "stages.dedup.embeddings.model: it is not the model that computed the rows' features; name the vlm "
                    "of stages.outliers, with its pretrained and precision"
                )
            yield places, vectors


def read_test_looks(ws: Workspace, config: EmbeddingsConfig, items: Sequence[int]) -> TestLooks | None:
    """What `TestFeatures` found; `items` are the numbers of test items of each of its units."""
    records = ws.phase_records("test-features")
    if not records:
        return None
    starts = np.cumsum([0, *items])
    tables = [ws.read_table(record.files[0].path) for record in records]
    found = [(table["item"].to_numpy() + start, table) for table, start in zip(tables, starts, strict=False)]
    found = [(item, table) for item, table in found if table.num_rows]
    if not found:
        return None
    vectors = np.concatenate([vectors_of(table[COLUMN]) for _, table in found])
    return TestLooks(np.concatenate([item for item, _ in found]), vectors, records[0].meta["digest"], config.cosine)
