"""Ranks of stored candidates, stored in their turn: unit for unit of the candidates' files, and adopted like them.

Every model scores all candidates of an image, so that another gate, another number kept or another pick reruns none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages import vision
from stages.base import OutputFile, Phase, Result, Unit, Workspace
from stages.captioning.candidates import Generate, PlanCandidates, narrow, row_groups
from stages.captioning.ranker import Ranker, Ranks, Run, disc
from stages.errors import UnitError
from stages.images import open_rgb
from stages.memory import Fitted
from stages.schema import IMAGE
from stages.scoring import image_bytes

MOST_CLASSES = 1000
"""Labels of a source beyond which its images are not asked for their class."""
FOUND = pa.schema([("id", pa.string()), ("image", IMAGE), ("source", pa.string())])
"""The rows of a candidates' file: `image` and `source` are null where the input has no such image."""
PLACE = pa.schema([("file", pa.int64()), ("row", pa.int64())])
"""Where a row's candidates lie; null without any."""
FLOATS = pa.list_(pa.float32())
RANKED = pa.schema(
    [
        ("id", pa.string()),
        ("scores", FLOATS),
        ("rotation_mean", FLOATS),
        ("rotation_variance", FLOATS),
        ("image_class", pa.string()),
        ("text_classes", pa.list_(pa.string())),
    ]
)
"""Row for row those of a candidates' file; null where nothing could be ranked."""


class Locate(Phase):
    """Finds where the candidates of each row lie, and the image of each row of candidates."""

    name: ClassVar[str] = "locate"

    def __init__(self, rankers: Sequence[Ranker]) -> None:
        self.rankers = rankers

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit."""
        return [Unit(id="all", rows=sum(file.rows for file in ws.input_files()))]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Two side tables: PLACE, a row group for each group of input rows; FOUND, one for each candidates' file."""
        files = stored_candidates(ws)
        columns = ["sha256", "source", "image", *(["labels"] if "labels" in ws.input_columns().names else [])]
        groups = [
            pa.concat_tables([narrow(ws, path, columns) for path in unit.spec["files"]]) for unit in row_groups(ws)
        ]
        if not groups or not files:
            return Result(meta={"files": [], "vocabularies": {}, "present": [], "models": {}})
        ids = [ws.read_table(file.path, columns=["id"])["id"].combine_chunks() for file in files]
        ws.write_table("rows", _places(ids, groups), kind="side")
        found = _found(ids, pa.concat_tables(groups))
        ws.write_table("images", found, kind="side")
        present = [hashlib.sha256(repr(table["source"].to_pylist()).encode()).hexdigest() for table in found]
        return Result(
            meta={
                "files": [file.path for file in files],
                "present": [[f.sha256, p] for f, p in zip(files, present, strict=True)],
                "vocabularies": _vocabularies(groups),
                "models": {ranker.name: ranker.digest(ws.sha256) for ranker in self.rankers},
            }
        )


def stored_candidates(ws: Workspace) -> list[OutputFile]:
    """The files of candidates, those used again first."""
    return [*ws.phase_records(PlanCandidates.name)[0].refers, *ws.phase_files(Generate.name, "scores")]


def _places(ids: Sequence[pa.Array], groups: Sequence[pa.Table]) -> list[pa.Table]:
    """PLACE of the rows of each group, in their order."""
    files = pa.array(np.repeat(np.arange(len(ids)), [len(each) for each in ids]), pa.int64())
    rows = pa.array(np.concatenate([np.arange(len(each)) for each in ids]), pa.int64())
    every = pa.concat_arrays([each.cast(pa.string()) for each in ids])
    tables = []
    for group in groups:
        places = pc.index_in(group["sha256"].combine_chunks(), every)
        tables.append(pa.table([files.take(places), rows.take(places)], schema=PLACE))
    return tables


def _found(ids: Sequence[pa.Array], rows: pa.Table) -> list[pa.Table]:
    """FOUND of each candidates' file: the first row that has the image."""
    hashes = rows["sha256"].combine_chunks()
    tables = []
    for each in ids:
        places = pc.index_in(each, hashes)
        columns = [rows[name].combine_chunks().take(places) for name in ("image", "source")]
        tables.append(pa.table([each, *columns], schema=FOUND))
    return tables


def _vocabularies(groups: Sequence[pa.Table]) -> dict[str, list[str]]:
    """The labels of each source that has 2 to MOST_CLASSES of them."""
    found: dict[str, set[str]] = {}
    for group in groups:
        if "labels" in group.column_names:
            labels = group["labels"].combine_chunks()
            sources = group["source"].combine_chunks().take(pc.list_parent_indices(labels))
            pairs = pa.table({"source": sources, "label": labels.flatten()}).group_by(["source", "label"]).aggregate([])
            for pair in pairs.to_pylist():
                found.setdefault(pair["source"], set()).add(pair["label"])
    return {source: sorted(names) for source, names in sorted(found.items()) if 2 <= len(names) <= MOST_CLASSES}


class Rank(Phase):
    """Scores the candidates of one file with one model, and stores the scores."""

    uses_model = True
    name: ClassVar[str] = "rank"

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker
        self.gpus = 0.0 if ranker.config.device == "cpu" else 1.0

    def cut(self, ws: Workspace) -> list[Unit]:
        """A candidates' file each; ranked once for all runs that have the same images of it."""
        meta = ws.phase_records(Locate.name)[0].meta
        model = meta["models"].get(self.ranker.name)
        classes = meta["vocabularies"] if self.ranker.classifies else {}
        return [
            Unit(
                id=f"{number:06d}",
                spec={"row_group": number, "file": path},
                rows=1,
                digest=hashlib.sha256(json.dumps([model, present, classes]).encode()).hexdigest(),
            )
            for number, (path, present) in enumerate(zip(meta["files"], meta["present"], strict=True))
        ]

    def setup(self, ws: Workspace) -> Fitted[Run]:
        """The model, loaded once an actor."""
        run = self.ranker.load(vision.preprocess_of(self.ranker.ref))
        return Fitted(run, self.ranker.config.batch_size, self.ranker.ref.where)

    def prepare(self, unit: Unit, ws: Workspace) -> pa.Table:
        """Decoded and resized on the CPU: `id, source, texts, pixels, disc`; what cannot be ranked is null."""
        images = ws.read_table(ws.phase_files(Locate.name, "side")[1].path, row_groups=[unit.spec["row_group"]])
        texts = ws.read_table(unit.spec["file"], columns=["texts"])["texts"]
        preprocess = vision.preprocess_of(self.ranker.ref)
        views = list(_views(ws, images, texts.is_valid(), preprocess, rotates=self.ranker.rotates))
        columns = [pa.array([view[n] for view in views], pa.large_binary()) for n in range(2)]
        return pa.table([images["id"], images["source"], texts, *columns], ["id", "source", "texts", "pixels", "disc"])

    def work(self, unit: Unit, ws: Workspace, state: Fitted[Run], prepared: pa.Table | None = None) -> Result:
        """Rank the unit, and store the ranks row for row."""
        assert prepared is not None, "the spine prepares the units of a model phase"
        meta = ws.phase_records(Locate.name)[0].meta
        vocabularies = meta["vocabularies"] if self.ranker.classifies else {}
        rows = state.fit(lambda size: self._rows(state.run, prepared, vocabularies, size))
        ws.write_table(f"scores/{self.name}", pa.Table.from_pylist(rows, schema=RANKED), kind="scores")
        images = prepared.num_rows - prepared["pixels"].null_count
        return Result(meta={"images": images, "batch_size": state.size})

    def _rows(
        self, run: Run, prepared: pa.Table, vocabularies: Mapping[str, Sequence[str]], size: int
    ) -> list[dict[str, Any]]:
        """Entries of RANKED, by batches of one shape, and of one source, whose classes are asked for."""
        preprocess = vision.preprocess_of(self.ranker.ref)
        rows: list[dict[str, Any]] = [{"id": name} for name in prepared["id"].to_pylist()]
        able = prepared["pixels"].is_valid().to_pylist()
        sources = prepared["source"].to_pylist()
        for source in dict.fromkeys(sources):
            mine = [n for n, name in enumerate(sources) if name == source and able[n]]
            for start in range(0, len(mine), size):
                batch = mine[start : start + size]
                ranks = self._ranked(run, prepared.take(batch), preprocess, vocabularies.get(source, []), size)
                for place, row in enumerate(batch):
                    rows[row] |= _row(ranks, place)
        return rows

    def _ranked(self, run: Run, batch: pa.Table, preprocess: Any, classes: Sequence[str], size: int) -> Ranks:
        """One forward pass, filled up to the batch's size."""
        missing = size - batch.num_rows
        images = [_pixels(data, preprocess.size) for data in batch["pixels"]]
        discs = [_pixels(data, None) for data in batch["disc"]] if self.ranker.rotates else []
        texts = batch["texts"].to_pylist()
        ranks = run(images + images[:1] * missing, discs + discs[:1] * missing, texts + texts[:1] * missing, classes)
        if not np.isfinite(ranks.scores).any():
            raise UnitError(
                f"{self.ranker.ref.where}: the model {self.ranker.ref.model!r} gives no finite score for any of "
                f"{batch.num_rows} images; check its weights, or set precision: fp32"
            )
        return ranks


class Rerank(Rank):
    """The second model."""

    name: ClassVar[str] = "rerank"


def _views(
    ws: Workspace, images: pa.Table, has_texts: pa.ChunkedArray, preprocess: Any, *, rotates: bool
) -> list[tuple[bytes | None, bytes | None]]:
    """(pixels, disc) of each row; nulls without an image, or without texts."""
    transform = preprocess.transform()
    wanted = pc.and_(images["image"].is_valid(), has_texts).to_pylist()
    pointers = [pointer for pointer, here in zip(images["image"].to_pylist(), wanted, strict=True) if here]
    bodies = image_bytes(ws, pointers)
    views: list[tuple[bytes | None, bytes | None]] = []
    for here in wanted:
        views.append(_view(next(bodies), transform, preprocess, rotates) if here else (None, None))
    return views


def _view(data: bytes, transform: Callable[[Any], Any], preprocess: Any, rotates: bool) -> tuple[bytes, bytes | None]:
    image = open_rgb(data)
    return transform(image).tobytes(), disc(image, preprocess).tobytes() if rotates else None


def _pixels(data: Any, size: tuple[int, int] | None) -> Any:
    flat = np.frombuffer(data.as_buffer(), np.uint8)
    height, width = size or (side := int((len(flat) // 3) ** 0.5), side)
    return flat.reshape(height, width, 3)


def _row(ranks: Ranks, place: int) -> Mapping[str, Any]:
    """One image's entry of RANKED, without its id."""
    found: dict[str, Any] = {}
    for name in ("scores", "rotation_mean", "rotation_variance"):
        values = getattr(ranks, name)
        if values is not None:
            found[name] = [float(v) if np.isfinite(v) else None for v in values[place]]
    if ranks.image_class is not None and ranks.text_classes is not None:
        found |= {"image_class": ranks.image_class[place], "text_classes": ranks.text_classes[place]}
    return found
