"""Scoring images with models: what has no stored score yet, and the scores of that, stored for good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from multiprocessing import get_context
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.base import KEPT, OutputFile, Phase, Result, Unit, Workspace
from stages.errors import UnitError
from stages.features import COLUMN, vector_array, write_features
from stages.schema import IMAGE
from stages.scorers import Batches, Scorer
from stages.vision import Preprocess

UNIT_IMAGES = (256, 1024)
"""Images a unit, at least and at most: a kill costs one unit, and each leaves one file of scores."""
UNITS = 4000
"""Units beyond which they grow rather than multiply."""
SUSPICIOUS = 8
"""Images that must have been decoded before a unit without a single finite score accuses the model."""
WANTED = pa.schema(
    [("id", pa.string()), ("key", pa.string()), ("sha256", pa.string()), ("caption", pa.string()), ("image", IMAGE)]
)
"""What is to be scored; see `score_ids`. The key is that of the first row."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What one model has to score, and the stored scores that spare it the rest."""

    missing: pa.Table
    """WANTED, in the input's order (so neighbours lie in one tar), each id once."""
    stored: list[OutputFile]
    """Files of the scores, and of the features that came with them."""
    digest: str
    features_digest: str


def wanted(ws: Workspace, scorer: Scorer) -> Wanted:
    """Compare the input's images with the scores that earlier runs stored for the same model and options."""
    sha256 = cache(ws.sha256)
    digest = scorer.digest(sha256)
    once = _distinct(ws, scorer)
    ids, records = _stored(ws, scorer, digest)
    places = pc.index_in(once["id"], ids["id"].combine_chunks())
    used = pc.unique(ids["record"].combine_chunks().take(places.drop_null())).to_pylist()
    files = [file for number in sorted(used) for file in records[number]]
    return Wanted(
        missing=once.filter(places.is_null()),
        stored=files,
        digest=digest,
        features_digest=scorer.features_digest(sha256),
    )


def _distinct(ws: Workspace, scorer: Scorer) -> pa.Table:
    """WANTED of the input, in its order, the first row of each id."""
    tables = [WANTED.empty_table()]
    for file in ws.input_files():
        table = kept_rows(ws.read_table(file.path, columns=["key", "status", "sha256", "caption", "image"]))
        columns = [score_ids(table, scorer.reads_captions), *(table[name] for name in WANTED.names[1:])]
        tables.append(pa.table(columns, schema=WANTED))
    everything = pa.concat_tables(tables)
    numbered = pa.table({"id": everything["id"], "row": np.arange(everything.num_rows)})
    first = numbered.group_by("id").aggregate([("row", "min")])["row_min"].to_numpy()
    return everything.take(pa.array(np.sort(first)))


def _stored(ws: Workspace, scorer: Scorer, digest: str) -> tuple[pa.Table, list[list[OutputFile]]]:
    """Ids that earlier runs scored with this very model, the number of the record of each, and the records' files.

    Where features are wanted, scores without them do not count: it is the image's pass that costs.
    """
    records = [each for each in ws.earlier_records(f"score-{scorer.name}") if each.meta.get("digest") == digest]
    kinds = ("scores", COLUMN) if scorer.with_features else ("scores",)
    found = [[file for file in record.files if file.kind in kinds] for record in records]
    whole = [files for files in found if len(files) == len(kinds) and all(ws.exists(file.path) for file in files)]
    tables = [pa.table({"id": pa.array([], pa.string()), "record": pa.array([], pa.int64())})]
    for number, files in enumerate(whole):
        ids = ws.read_table(files[0].path, columns=["id"])["id"]
        tables.append(pa.table({"id": ids, "record": np.full(len(ids), number)}))
    return pa.concat_tables(tables), whole


def score_ids(table: pa.Table, with_caption: bool) -> pa.Array:
    """Identity of what is scored: the image's sha256, with the caption's blake2b-128 where that counts too."""
    if not with_caption:
        return table["sha256"].combine_chunks()
    captions = [hashlib.blake2b((text or "").encode(), digest_size=16).hexdigest() for text in _texts(table)]
    return pc.binary_join_element_wise(table["sha256"].combine_chunks(), pa.array(captions, pa.string()), "-")


def _texts(table: pa.Table) -> list[str | None]:
    return table["caption"].to_pylist()


class Plan(Phase):
    """Lists what a model has to score: one row group for each unit of `Score`."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all", rows=sum(file.rows for file in ws.input_files()))]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Write the list, and name the stored scores that are used again."""
        found = wanted(ws, self.scorer)
        ws.refer(found.stored)
        size = unit_size(found.missing.num_rows, self.scorer.config.batch_size)
        starts = range(0, found.missing.num_rows, size)
        if found.missing.num_rows:
            ws.write_table("wanted", (found.missing.slice(start, size) for start in starts), kind="side")
        preprocess = self.scorer.preprocess()
        return Result(
            meta={
                "digest": found.digest,
                "features_digest": found.features_digest,
                "preprocess": {"library": preprocess.library, "options": dict(preprocess.options)},
                "units": [min(size, found.missing.num_rows - start) for start in starts],
            }
        )


def unit_size(images: int, batch_size: int) -> int:
    """Images a unit: whole batches."""
    least, most = UNIT_IMAGES
    wanted_size = max(batch_size, min(most, max(least, images // UNITS)))
    return -(-wanted_size // batch_size) * batch_size


class Score(Phase):
    """Scores one unit's images and stores what the model says."""

    uses_model = True
    risky = True
    plan: ClassVar[str]

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.gpus = 0.0 if scorer.config.device == "cpu" else 1.0
        self.cpus = float(scorer.config.threads)

    def cut(self, ws: Workspace) -> list[Unit]:
        """A row group of the plan each."""
        sizes = ws.phase_records(self.plan)[0].meta["units"]
        return [Unit(id=f"{n:06d}", spec={"row_group": n}, rows=size) for n, size in enumerate(sizes)]

    def setup(self, ws: Workspace) -> Batches:
        """The model, loaded once an actor."""
        run = self.scorer.load(self._preprocess(ws))
        return Batches(run, self.scorer.config.batch_size, self.scorer.ref.where)

    def prepare(self, unit: Unit, ws: Workspace) -> pa.Table:
        """Decoded and resized on the CPU: WANTED with `pixels` (null where the bytes cannot be decoded) for `image`."""
        file = ws.phase_files(self.plan, "side")[0]
        table = ws.read_table(file.path, row_groups=[unit.spec["row_group"]])
        bodies = image_bytes(ws, table["image"].to_pylist())
        pixels = list((_carefully if ws.careful else decoded)(self._preprocess(ws), bodies))
        return table.drop_columns("image").append_column("pixels", pa.array(pixels, pa.large_binary()))

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Score the unit in batches of one shape; what could not be decoded or scored is stored as null."""
        assert prepared is not None, "the spine prepares the units of a model phase"
        meta = ws.phase_records(self.plan)[0].meta
        decodable = prepared.filter(prepared["pixels"].is_valid())
        shape = (*self._preprocess(ws).size, 3)
        images = [np.frombuffer(data.as_buffer(), np.uint8).reshape(shape) for data in decodable["pixels"]]
        captions = [text or "" for text in _texts(decodable)]
        scores = state.score(images, captions, self.scorer.columns)
        self._check(scores)
        features = scores.pop(COLUMN, None)
        found = pa.table({"id": decodable["id"], **scores})
        places = pc.index_in(prepared["id"], found["id"].combine_chunks())
        stored = found.drop_columns("id").take(places).add_column(0, "id", prepared["id"])
        ws.write_table(f"scores/{self.scorer.name}", stored, kind="scores")
        if self.scorer.with_features:
            self._store_features(ws, decodable, features, meta["features_digest"])
        told = {"images": prepared.num_rows, "batch_size": state.size}
        return Result(meta={"digest": meta["digest"], **told})

    def _store_features(self, ws: Workspace, rows: pa.Table, features: pa.Array | None, model: str) -> None:
        """Of every image once; a file also where no image of the unit could be decoded, so that it counts as done."""
        column = features if features is not None else vector_array(np.empty((0, 1), np.float16))
        table = rows.select(["key", "sha256"]).append_column(COLUMN, column)
        first = np.sort(np.unique(np.array(table["sha256"].to_pylist(), object), return_index=True)[1])
        write_features(ws, f"features/{self.scorer.name}", table.take(pa.array(first)), model)

    def _preprocess(self, ws: Workspace) -> Preprocess:
        return Preprocess(**ws.phase_records(self.plan)[0].meta["preprocess"], reduced=self.scorer.config.reduced)

    def _check(self, scores: Mapping[str, pa.Array]) -> None:
        first = scores[self.scorer.columns[0]]
        if len(first) >= SUSPICIOUS and first.null_count == len(first):
            raise UnitError(
                f"{self.scorer.ref.where}: the model {self.scorer.ref.model!r} gives no finite score for any of "
                f"{len(first)} images; check its weights, or set precision: fp32"
            )


class PlanVlm(Plan):
    """For the vision-language model."""

    name: ClassVar[str] = "plan-vlm"


class ScoreVlm(Score):
    """For the vision-language model."""

    name: ClassVar[str] = "score-vlm"
    plan: ClassVar[str] = "plan-vlm"


class PlanDetector(Plan):
    """For the detector."""

    name: ClassVar[str] = "plan-detector"


class ScoreDetector(Score):
    """For the detector."""

    name: ClassVar[str] = "score-detector"
    plan: ClassVar[str] = "plan-detector"


def image_bytes(ws: Workspace, images: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    """The bytes that image pointers (`schema.IMAGE`) name, in their order; neighbours in a tar share a read."""
    for tar, group in groupby(images, key=lambda image: image["tar"]):
        yield from ws.read_ranges(tar, [(image["offset"], image["size"]) for image in group])


def decoded(preprocess: Preprocess, bodies: Iterable[bytes]) -> Iterator[bytes | None]:
    """Pixels at the model's size; None for what cannot be decoded."""
    read = preprocess.read()
    for data in bodies:
        try:
            yield read(data).tobytes()
        except ValueError:
            yield None


def _carefully(preprocess: Preprocess, bodies: Iterable[bytes]) -> Iterator[bytes | None]:
    """The same in a child process, body by body: one that kills it has no pixels."""
    pool = _child()
    try:
        for data in bodies:
            try:
                yield pool.submit(decoded_one, preprocess, data).result()
            except BrokenProcessPool:
                pool = _child()
                yield None
    finally:
        pool.shutdown()


def decoded_one(preprocess: Preprocess, data: bytes) -> bytes | None:
    """`decoded`, for one body."""
    return next(decoded(preprocess, [data]))


def _child() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def kept_rows(table: pa.Table) -> pa.Table:
    """Rows that the stage before kept."""
    return table.filter(pc.equal(table["status"], KEPT))
