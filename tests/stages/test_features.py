"""Image features: stored once an image as float16 of length 1, pointed at by rows, adopted with their scores."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from demo.models import make_open_clip
from stages import scoring
from stages.errors import UserError
from stages.features import model_of, vector_array, vectors_of
from stages.outliers import OutliersConfig, OutliersStage
from stages.scorers import DetectorConfig, VlmConfig
from stages.selection import Keep
from tests.stages.test_outliers import BROKEN, give, picture, run

EVERYTHING = Keep(vlm=None, detector=None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_open_clip(tmp_path_factory.mktemp("models") / "clip")


def config(clip: Path, features: bool = True) -> OutliersConfig:
    return OutliersConfig(vlm=VlmConfig(model=str(clip), batch_size=8), keep=EVERYTHING, features=features)


def pointed(root: Path, row: dict[str, object]) -> dict[str, object]:
    """The stored row that a row of the table points at."""
    pointer = row["features"]
    assert isinstance(pointer, dict)
    found: dict[str, object] = pq.read_table(root / pointer["file"]).slice(pointer["row"], 1).to_pylist()[0]
    return found


def test_features_are_what_the_library_computes_alone(clip: Path, tmp_path: Path) -> None:
    import open_clip
    import torch

    bodies = [picture(seed) for seed in range(9)]
    keys = give(tmp_path, bodies)
    found, written = run(tmp_path, config(clip))
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    for key, body in zip(keys, bodies, strict=True):
        stored = pointed(tmp_path, found[key])
        with torch.inference_mode():
            feature = model.eval().encode_image(prepare(Image.open(io.BytesIO(body)))[None], normalize=True)[0]
        assert (stored["key"], stored["sha256"]) == (key, found[key]["sha256"])
        assert stored["features"] == pytest.approx(feature.tolist(), abs=1e-3)
    [file] = [file for file in written.outputs if file.kind == "features"]
    table = pq.read_table(tmp_path / file.path)
    assert table.schema.field("features").type == pa.list_(pa.float16(), 32)
    assert table.num_rows == file.rows == 9
    assert len(model_of(table)) == 64


def test_an_image_with_several_captions_is_stored_once(clip: Path, tmp_path: Path) -> None:
    body = picture(3)
    give(tmp_path, [body, body, picture(4)], ["a harbour", "a forest", "a town"], parts=1)
    _, written = run(tmp_path, config(clip))
    assert [file.rows for file in written.outputs if file.kind == "features"] == [2]


def test_stored_features_are_adopted_and_scores_without_them_are_not(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(tmp_path, [picture(seed) for seed in range(6)])
    plain, written = run(tmp_path, config(clip, features=False))
    assert not [file for file in written.outputs if file.kind == "features"]
    assert "features" not in next(iter(plain.values()))
    first, written = run(tmp_path, config(clip))
    assert written.summary["scored"] == {"score-vlm": 6}
    give(tmp_path, [picture(seed) for seed in range(4)] + [picture(9)])
    second, written = run(tmp_path, config(clip))
    assert written.summary["scored"] == {"score-vlm": 1}
    shared = first.keys() & second.keys()
    assert len(shared) == 4
    assert all(pointed(tmp_path, second[key]) == pointed(tmp_path, first[key]) for key in shared)
    monkeypatch.setattr(scoring.Score, "setup", None)
    again, _ = run(tmp_path, config(clip, features=False))
    assert again.keys() == second.keys()


def test_what_cannot_be_decoded_points_nowhere(clip: Path, tmp_path: Path) -> None:
    keys = give(tmp_path, [BROKEN, picture(1)], parts=1)
    found, _ = run(tmp_path, config(clip))
    assert found[keys[0]]["features"] is None
    assert pointed(tmp_path, found[keys[1]])["key"] == keys[1]
    give(tmp_path / "other", [BROKEN], parts=1)
    [row] = run(tmp_path / "other", config(clip))[0].values()
    assert (row["features"], row["reason"]) == (None, "unscorable")


def test_features_want_a_vlm() -> None:
    with pytest.raises(UserError, match=r"stages\.outliers\.features: true needs a vlm"):
        OutliersStage(OutliersConfig(detector=DetectorConfig(model="d"), features=True)).check()


def test_vectors_survive_storage_and_what_is_not_finite_is_null() -> None:
    vectors = np.array([[1.0, 0.0], [np.nan, 0.0], [0.6, 0.8]], np.float32)
    stored = vector_array(vectors)
    assert stored.is_valid().to_pylist() == [True, False, True]
    assert (vectors_of(stored.drop_null()) == vectors[[0, 2]].astype(np.float16)).all()
