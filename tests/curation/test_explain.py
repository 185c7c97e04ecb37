from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curation import explain
from tests.curation.roots import THRESHOLDS, make_root, sample


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    make_root(path)
    return path


def ask(root: Path, what: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert explain.main([what, "--root", str(root), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_a_kept_sample_by_key(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = ask(root, sample(1)["key"], capsys)
    assert list(entry["stages"]) == ["keywords", "download", "dedup", "outliers", "shards"]
    assert entry["stages"]["keywords"]["keywords"] == ["aerial view"]
    assert entry["stages"]["download"]["http_status"] == 200
    assert entry["stages"]["download"]["phash"] == f"{1:016x}"
    assert entry["stages"]["outliers"]["thresholds"] == THRESHOLDS
    shard = entry["stages"]["shards"]
    assert entry["outcome"] == f"kept, in {shard['tar']}"
    data = (root / shard["tar"]).read_bytes()
    assert data[shard["offset"] :].startswith(entry["key"].encode())


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (3, "dropped by download: http_error"),
        (5, "dropped by download: truncated"),
        (6, "dropped by dedup: duplicate_image"),
        (8, "dropped by outliers: low_vlm_score"),
    ],
)
def test_a_dropped_sample_says_where_and_why(
    root: Path, number: int, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (entry,) = ask(root, sample(number)["key"], capsys)
    assert entry["outcome"] == outcome
    assert list(entry["stages"])[-1] == outcome.split()[2].rstrip(":")


def test_twins_point_at_each_other(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dropped,) = ask(root, sample(6)["key"], capsys)
    assert dropped["twin"]["url"] == sample(0)["url"]
    (kept,) = ask(root, sample(0)["key"], capsys)
    assert {"key": sample(6)["key"], "reason": "duplicate_image"}.items() <= kept["merged"][0].items()
    assert {twin["reason"] for twin in kept["merged"]} == {"duplicate_image", "duplicate_url"}


@pytest.mark.parametrize(
    "spelling",
    [
        "https://img1.example.org/tiles/1.jpg",
        "HTTPS://IMG1.example.org:443/tiles/1.jpg#top",
    ],
)
def test_by_url_in_any_spelling(root: Path, spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = ask(root, spelling, capsys)
    assert entry["key"] == sample(1)["key"]


def test_text_for_a_terminal_has_no_control_characters(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main([sample(0)["key"], "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert "<script>alert(1)</script>" in out
    assert not {c for c in out if ord(c) < 32} - {"\n"}
    assert "outcome  kept, in shards/" in out


def test_an_unknown_sample_is_a_sentence(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main(["http://nowhere.org/x.jpg", "--root", str(root)]) == 1
    error = capsys.readouterr().err
    assert "keywords dropped it: such rows are counted by reason" in error
    assert error.count("\n") == 1


def test_a_partial_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_root(tmp_path, samples=12, to="dedup")
    (entry,) = ask(tmp_path, sample(1)["key"], capsys)
    assert entry["outcome"] == "kept by dedup, the last stage that is finished"
    assert explain.main(["x", "--root", str(tmp_path / "nowhere")]) == 2
