from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation import verify
from tests.curation.roots import make_root


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def check(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = verify.main(["--root", str(root)])
    return code, capsys.readouterr().out


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    make_root(root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(pristine, tmp_path / "root"))


def test_an_undisturbed_root_passes_with_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = check(root, capsys)
    assert (code, out.count("\n")) == (0, 1)
    assert out.startswith("ok: 5 stages (keywords, download, dedup, outliers, shards)")


def test_a_partial_run_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_root(tmp_path, to="download")
    assert check(tmp_path, capsys)[0] == 0


def test_a_root_without_rows_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_root(tmp_path, samples=0)
    assert check(tmp_path, capsys)[0] == 0


@pytest.mark.parametrize("stage", ["keywords", "download", "dedup", "outliers", "shards"])
def test_a_count_edited_by_hand(root: Path, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    def change(data: dict[str, Any]) -> None:
        data["counts"]["cc3m"]["in"] += 1

    edit(root / stage / "manifest.json", change)
    code, out = check(root, capsys)
    assert code == 1
    assert "cc3m" in out
    assert stage in out


def test_counts_that_still_add_up_but_are_not_the_tables(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(data: dict[str, Any]) -> None:
        dropped = data["counts"]["laion2b"]["dropped"]
        dropped["duplicate_url"] -= 1
        dropped["duplicate_image"] += 1

    edit(root / "dedup/manifest.json", change)
    code, out = check(root, capsys)
    assert code == 1
    assert out.splitlines()[0] == "dedup/manifest.json: edited since it was written"
    assert out.splitlines()[1].startswith("dedup/manifest.json: source laion2b, duplicate_image: ")
    assert len(out.splitlines()) == 3


def test_counts_of_rows_that_are_nowhere_written(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(data: dict[str, Any]) -> None:
        data["counts"]["laion2b"]["dropped"]["no_keyword"] += 5
        data["counts"]["laion2b"]["in"] += 5

    edit(root / "keywords/manifest.json", change)
    assert check(root, capsys) == (1, "keywords/manifest.json: edited since it was written\n")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(counts=None), "is damaged"),
        (lambda data: data["counts"]["cc3m"].update(kept="x"), "counts of cc3m hold 'x'"),
        (lambda data: data["counts"]["cc3m"].pop("kept"), "is damaged"),
        (lambda data: data.update(status="running"), "status is 'running'"),
    ],
)
def test_a_manifest_of_nonsense_is_a_line(
    root: Path, capsys: pytest.CaptureFixture[str], change: Any, says: str
) -> None:
    edit(root / "dedup/manifest.json", change)
    code, out = check(root, capsys)
    assert code == 1
    assert says in out.splitlines()[0]


def test_a_missing_manifest_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "dedup/manifest.json").unlink()
    code, out = check(root, capsys)
    assert code == 1
    assert out.splitlines()[0] == "dedup/manifest.json: missing"


def test_an_output_taken_off_the_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root / "download/manifest.json", lambda data: data["outputs"].pop())
    code, out = check(root, capsys)
    assert code == 1
    assert "download/manifest.json: output_digest is not that of its outputs" in out


def test_a_stage_made_from_another_input(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root / "dedup/manifest.json", lambda data: data["inputs"][0].update(output_digest="other"))
    code, out = check(root, capsys)
    assert code == 1
    assert "made from another output of download" in out


def test_a_flipped_bit_a_missing_file_and_a_cut_one(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flipped = root / "shards/train/small-train-0000.tar"
    data = bytearray(flipped.read_bytes())
    data[700] ^= 1
    flipped.write_bytes(data)
    (root / "dedup/part-00000.parquet").unlink()
    cut = root / "outliers/part-00001.parquet"
    cut.write_bytes(cut.read_bytes()[:-10])
    code, out = check(root, capsys)
    assert code == 1
    assert "shards/train/small-train-0000.tar: its sha256 is not the manifest's" in out
    assert "the image of" in out
    assert "dedup/part-00000.parquet: missing" in out
    assert "outliers/part-00001.parquet: " in out


def test_an_index_that_points_elsewhere(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "shards/index.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["offset"] += 512
    table = pq.read_table(path)
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    code, out = check(root, capsys)
    assert code == 1
    assert f"no header of sample {rows[1]['key']}" in out


def test_sizes_edited_by_hand(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root / "shards/val/sizes.json", lambda sizes: sizes.update({"small-val-0000.tar": 999}))
    code, out = check(root, capsys)
    assert code == 1
    assert "shards/val/sizes.json: does not count the samples of its tars" in out


def test_a_damaged_manifest_is_a_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "shards/manifest.json").write_text("{")
    code, out = check(root, capsys)
    assert code == 1
    assert "shards/manifest.json is no manifest" in out


def test_no_run_there_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--root", str(tmp_path / "nowhere")]) == 2
    assert "holds no finished stage" in capsys.readouterr().err
