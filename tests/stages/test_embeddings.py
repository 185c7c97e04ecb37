"""Dedup by image features: exact against its definition, whatever the cells, and linked only where views differ."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.manifest import Manifest
from curation.recipe import load
from demo.models import make_open_clip
from stages import cosine, embeddings
from stages.dedup import DedupConfig, DedupStage
from stages.embeddings import EmbeddingsConfig
from stages.errors import UnitError, UserError
from stages.features import MODEL, Vectors, vector_array, vectors_of
from stages.outliers import OutliersConfig, OutliersStage
from stages.schema import CAPTION, COMMON, DOWNLOAD, FEATURES, extend
from stages.scorers import VlmConfig
from stages.selection import Keep
from tests.harness import give_input, read_output, run_stage
from tests.stages.test_cosine import crowded
from tests.stages.test_dedup import SOURCES, match, row, total_order
from tests.stages.test_outliers import BROKEN, give, picture

SCHEMA = extend(COMMON, pa.schema([("captions", pa.list_(CAPTION))]), DOWNLOAD, FEATURES)


def store(root: Path, vectors: Vectors, files: int = 3, model: str = "m") -> list[dict[str, Any]]:
    """Feature files as `outliers` writes them; returns a pointer to each vector."""
    folder = root / "outliers" / "features"
    folder.mkdir(parents=True, exist_ok=True)
    pointers: list[dict[str, Any]] = [{}] * len(vectors)
    for number in range(files):
        own = range(number, len(vectors), files)
        path = f"outliers/features/vlm-{model}-{number}.parquet"
        names = [f"{n:032x}" for n in own]
        table = pa.table([names, names, vector_array(vectors[own.start :: files])], ["key", "sha256", "features"])
        pq.write_table(table.replace_schema_metadata({MODEL: model}), root / path)
        for place, n in enumerate(own):
            pointers[n] = {"file": path, "row": place}
    return pointers


def run(
    rows: Sequence[dict[str, Any]], root: Path, parts: int = 3, **options: Any
) -> tuple[dict[str, dict[str, Any]], Manifest]:
    tables = [pa.Table.from_pylist(rows[part::parts], schema=SCHEMA) for part in range(parts)]
    give_input(root, "outliers", tables)
    written = run_stage(DedupStage(DedupConfig(**options)), root, "outliers", sources=SOURCES)
    return {each["key"]: each for each in read_output(root, written).to_pylist()}, written


def featured_rows(root: Path, count: int = 240, seed: int = 0) -> tuple[list[dict[str, Any]], Vectors]:
    """Rows with bytes, hashes and features in common, some without any; and the vectors, by the rows' `vector`."""
    rng = np.random.default_rng(seed)
    vectors = crowded(count, 16, seed)
    pointers = store(root, vectors)
    rows = []
    for n in range(count):
        own = int(rng.integers(0, count))
        values = {
            "sha256": hashlib.sha256(str(own).encode()).hexdigest(),
            "phash": int(rng.integers(0, 60)) if rng.random() < 0.3 else int(rng.integers(0, 2**63)),
            "width": int(rng.integers(50, 60)),
            "features": pointers[own] if rng.random() < 0.95 else None,
            "vector": own,
        }
        rows.append(row(SOURCES[n % 3], f"http://a.org/{n}", "a view " * int(rng.integers(1, 4)), **values))
    return rows, vectors


def by_definition(rows: list[dict[str, Any]], vectors: Vectors, bound: float) -> dict[str, tuple[str | None, str]]:
    """(reason, cluster) of each key: every row against every kept row before it."""
    wide = vectors.astype(np.float64)
    norms = (wide**2).sum(axis=1)
    near = wide @ wide.T / np.sqrt(norms[:, None] * norms) >= bound
    kept: list[dict[str, Any]] = []
    result: dict[str, tuple[str | None, str]] = {}
    for this in sorted(rows, key=total_order):
        strengths = []
        for other in kept:
            strength = match(this, other, 2)
            if strength is None and this["features"] and other["features"] and near[this["vector"], other["vector"]]:
                strength = 2
            strengths.append(strength)
        first = next((n for n, strength in enumerate(strengths) if strength is not None), None)
        if first is None:
            result[this["key"]] = (None, this["key"])
            kept.append(this)
        else:
            strongest = min(strength for strength in strengths if strength is not None)
            reason = ("duplicate_url", "duplicate_bytes", "duplicate_image")[strongest]
            result[this["key"]] = (reason, kept[first]["key"])
    return result


@pytest.mark.parametrize("bound", [0.9, 0.97])
def test_agrees_with_its_definition(bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "IMAGES_PER_UNIT", 50)
    monkeypatch.setattr("stages.narrow.ROWS_PER_UNIT", 100)
    rows, vectors = featured_rows(tmp_path)
    found, written = run(rows, tmp_path, embeddings=EmbeddingsConfig(cosine=bound))
    assert {key: (r["reason"], r["cluster"]) for key, r in found.items()} == by_definition(rows, vectors, bound)
    assert written.summary["alike_pairs"] > 40
    shared = [r for r in found.values() if r["reason"]]
    assert all(found[r["cluster"]]["component"] == r["component"] for r in shared)


def test_order_of_rows_and_parts_changes_nothing(tmp_path: Path) -> None:
    rows, _ = featured_rows(tmp_path / "one")
    featured_rows(tmp_path / "other")
    config = EmbeddingsConfig(cosine=0.9)
    one, _ = run(rows, tmp_path / "one", parts=2, embeddings=config)
    other, _ = run(rows[::-1], tmp_path / "other", parts=5, embeddings=config)
    assert {k: r["cluster"] for k, r in one.items()} == {k: r["cluster"] for k, r in other.items()}


def test_cells_that_all_are_probed_find_what_an_exact_search_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "IMAGES_PER_CELL", 20)
    monkeypatch.setattr(embeddings, "IMAGES_PER_UNIT", 50)
    rows, _ = featured_rows(tmp_path)
    exact, all_pairs = run(rows, tmp_path, embeddings=EmbeddingsConfig(cosine=0.9, search="exact"))
    cells, same = run(rows, tmp_path, embeddings=EmbeddingsConfig(cosine=0.9, search="cells", probes=99))
    assert all_pairs.summary["alike_pairs"] == same.summary["alike_pairs"]
    assert exact == cells
    _, fewer = run(rows, tmp_path, embeddings=EmbeddingsConfig(cosine=0.9, search="cells", probes=2))
    assert 0.9 * all_pairs.summary["alike_pairs"] <= fewer.summary["alike_pairs"] <= all_pairs.summary["alike_pairs"]


def test_the_longer_caption_of_a_crop_stays_with_the_larger_image(tmp_path: Path) -> None:
    whole, part = np.array([[1, 0], [0.999, 0.0447]], np.float16)
    pointers = store(tmp_path, np.stack([part, whole]), files=1)
    rows = [
        row("first", "http://a.org/part", "a harbour from above", width=80, features=pointers[0]),
        row("first", "http://a.org/whole", "a harbour", features=pointers[1]),
    ]
    found, _ = run(rows, tmp_path, parts=1, embeddings=EmbeddingsConfig())
    kept, dropped = (found[rows[n]["key"]] for n in (1, 0))
    assert (dropped["reason"], dropped["cluster"]) == ("duplicate_image", kept["key"])
    assert [entry["text"] for entry in kept["captions"]] == ["a harbour", "a harbour from above"]


def test_other_views_of_a_place_are_linked_and_not_dropped(tmp_path: Path) -> None:
    schema = extend(SCHEMA, pa.schema([("location", pa.string()), ("acquired_at", pa.timestamp("us", tz="UTC"))]))
    pointers = store(tmp_path, np.array([[1, 0]] * 3, np.float16), files=1)
    rows = [
        row("first", f"http://a.org/{n}", features=pointers[n], location="here", acquired_at=day)
        for n, day in enumerate([0, 0, 86_400_000_000])
    ]
    give_input(tmp_path, "outliers", [pa.Table.from_pylist(rows, schema=schema)])
    for scope, kept in (("image", 2), ("view", 1)):
        config = DedupConfig(embeddings=EmbeddingsConfig(), scope=scope)  # type: ignore[arg-type]
        written = run_stage(DedupStage(config), tmp_path, "outliers", sources=SOURCES)
        table = read_output(tmp_path, written)
        assert table["status"].to_pylist().count("kept") == kept
        assert len(set(table["component"].to_pylist())) == 1


def test_a_barred_image_links_nobody(tmp_path: Path) -> None:
    pointers = store(tmp_path, np.array([[1, 0], [0.954, 0.3], [0.82, 0.572]], np.float16), files=1)
    rows = [row("first", f"http://a.org/{n}", features=pointers[n]) for n in range(3)]
    listed = tmp_path / "listed.txt"
    listed.write_text(rows[1]["sha256"] + "\n")
    options = {"embeddings": EmbeddingsConfig(cosine=0.94), "blocklist": [str(listed)]}
    found, _ = run(rows, tmp_path, parts=1, **options)
    reasons = [found[each["key"]]["reason"] for each in rows]
    assert reasons == [None, "blocklisted", None]
    assert len({found[rows[n]["key"]]["component"] for n in (0, 2)}) == 2


def test_no_features_at_all(tmp_path: Path) -> None:
    rows = [row("first", "http://a.org/1"), row("first", "http://a.org/2")]
    found, written = run(rows, tmp_path, embeddings=EmbeddingsConfig())
    assert [each["reason"] for each in found.values()] == [None, None]
    assert written.summary["alike_pairs"] == 0
    assert run([], tmp_path / "none", parts=1, embeddings=EmbeddingsConfig())[0] == {}


def test_features_of_two_models_are_not_compared(tmp_path: Path) -> None:
    vectors = np.array([[1, 0]], np.float16)
    rows = [
        row("first", f"http://a.org/{model}", features=store(tmp_path, vectors, 1, model)[0]) for model in ("m", "n")
    ]
    with pytest.raises((RuntimeError, UnitError), match="features are of two models"):
        run(rows, tmp_path, embeddings=EmbeddingsConfig())


def test_a_crowd_beyond_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MOST_PAIRS", 10)
    pointers = store(tmp_path, np.array([[1, 0]] * 6, np.float16), files=1)
    rows = [row("first", f"http://a.org/{n}", features=pointers[n]) for n in range(6)]
    with pytest.raises((RuntimeError, UnitError), match=r"embeddings\.cosine: 15 pairs"):
        run(rows, tmp_path, embeddings=EmbeddingsConfig())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cosine": 0.0}, "above 0 and up to 1"),
        ({"cosine": 1.5}, "above 0 and up to 1"),
        ({"probes": 0}, "from 1 on"),
        ({"pretrained": "openai"}, "goes with a model"),
    ],
)
def test_mistakes_are_sentences(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EmbeddingsConfig(**options)


def test_most_pairs_are_found_in_near_cells() -> None:
    vectors = crowded(4000, 32, spread=0.25)
    config = EmbeddingsConfig(cosine=0.95)
    left, right = cosine.similar_within(vectors, config.cosine)
    middles = cosine.centres(vectors[::4], 20)
    probed = cosine.nearest(vectors, middles, config.probes)
    found = (probed[left] == probed[right][:, :1]).any(axis=1) | (probed[right] == probed[left][:, :1]).any(axis=1)
    assert len(left) > 5000
    assert found.mean() > 0.99


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_open_clip(tmp_path_factory.mktemp("models") / "clip")


def scored(root: Path, clip: Path, bodies: list[bytes]) -> list[str]:
    """Images scored by the real stage, with features; returns their keys."""
    keys = give(root, bodies, parts=2)
    vlm = VlmConfig(model=str(clip), batch_size=4)
    run_stage(OutliersStage(OutliersConfig(vlm=vlm, keep=Keep(vlm=None), features=True)), root, "dedup")
    return keys


def against(root: Path, tests: Path, **options: Any) -> tuple[dict[str, dict[str, Any]], Manifest]:
    (root / "dedup").rename(root / "before")  # the stage whose output was scored has dedup's name
    stage = DedupStage(DedupConfig(radius=0, against=[str(tests)], embeddings=EmbeddingsConfig(**options)))
    stage.check()
    written = run_stage(stage, root, "outliers", sources=["web"])
    return {each["key"]: each for each in read_output(root, written).to_pylist()}, written


def test_crops_of_test_images_are_found_by_their_features(clip: Path, tmp_path: Path) -> None:
    image = Image.open(io.BytesIO(picture(3)))
    part = io.BytesIO()
    image.crop((4, 4, image.width - 4, image.height - 4)).save(part, "PNG")
    keys = scored(tmp_path, clip, [part.getvalue(), picture(5), BROKEN])
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "broken.jpg").write_bytes(BROKEN)
    (tmp_path / "tests" / "whole.jpg").write_bytes(picture(3))
    vectors = [vectors_of(pq.read_table(path)["features"]) for path in (tmp_path / "outliers/features").glob("*")]
    other = float(cosine.cosines(vectors[0][:1], vectors[0][1:])[0])
    found, written = against(tmp_path, tmp_path / "tests", cosine=max(0.9, other + 0.001), model=str(clip))
    assert [(found[key]["reason"], found[key]["test_match"]) for key in keys[:2]] == [
        ("test_set_image", "embedding"),
        (None, None),
    ]
    assert found[keys[0]]["test_item"] == str(tmp_path / "tests" / "whole.jpg")
    assert written.summary["tests"]["matched"] == {"embedding": 1}


def test_another_model_than_that_of_the_features_is_a_sentence(clip: Path, tmp_path: Path) -> None:
    scored(tmp_path, clip, [picture(5)])
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "one.jpg").write_bytes(picture(3))
    other = make_open_clip(tmp_path / "other", seed=1)
    with pytest.raises((RuntimeError, UnitError), match=r"embeddings\.model: it is not the model"):
        against(tmp_path, tmp_path / "tests", model=str(other))


def test_a_model_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    config = DedupConfig(against=[str(tmp_path)], embeddings=EmbeddingsConfig(model="/no/such/folder"))
    (tmp_path / "one.jpg").write_bytes(picture(3))
    with pytest.raises(UserError, match=r"stages\.dedup\.embeddings: there is no folder"):
        DedupStage(config).check()


def test_a_recipe_wants_features_before(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("url,caption\nhttp://a.org/1,a satellite image\n")
    recipe = tmp_path / "recipe.yaml"
    text = """
sources: [{name: mine, format: csv, path: %s, columns: {url: url, caption: caption}}]
stages:
  keywords: {pack: rs}
  download: {}
  outliers: {vlm: {model: %s}, features: %s}
  dedup: {embeddings: {}}
"""
    make_open_clip(tmp_path / "clip")
    recipe.write_text(text % (source, tmp_path / "clip", "false"))
    with pytest.raises(UserError, match=r"stages\.dedup: it needs the column 'features'"):
        load(str(recipe))
    recipe.write_text(text % (source, tmp_path / "clip", "true"))
    assert load(str(recipe)).stage("dedup").config.embeddings == EmbeddingsConfig()
