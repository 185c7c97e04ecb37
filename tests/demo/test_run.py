"""The whole demo, and that its check can fail."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo import answers
from demo.__main__ import MARK, conclude, main
from demo.corpus import SEED, Corpus, build

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("demo") / "demo-run"
    command = [sys.executable, "-m", "demo", "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done.stdout


@pytest.fixture(scope="module")
def corpus(demo: tuple[Path, str]) -> Corpus:
    urls = (demo[0] / "world" / "blocklist.txt").read_text().split()
    port = int(urls[-1].split("/")[2].partition(":")[2])
    return build(SEED, port)


def test_ends_with_funnel_report_and_answers(demo: tuple[Path, str], corpus: Corpus) -> None:
    root, output = demo
    total = len(answers.answers(corpus))
    lines = output.strip().splitlines()
    assert lines[-1] == f"every planted answer was found ({total:,} of {total:,})"
    assert f"report: {root / 'run' / 'report' / 'index.html'}" in lines
    assert (root / "run" / "report" / "index.html").is_file()
    assert any(line.split()[:2] == ["Total", f"{len(corpus.rows):,}"] for line in lines)


@pytest.mark.parametrize(
    ("case", "broken"),
    [
        ("opts out by X-Robots-Tag: noai", {"reasons": ("robots",)}),
        ("same bytes on another host", {"twin": "0" * 32}),
        ("resized copy", {"stage": "shards", "reasons": (), "twin": None}),
        ("unrelated caption", {"stage": "shards", "reasons": ()}),
        ("turned by EXIF", {"columns": {"width": 320, "height": 240}}),
        ("URL that is in two sources", {"gains": ("a caption that no twin has",)}),
        ("caption with markup", {"stage": "outliers", "reasons": ("low_vlm_score",)}),
    ],
)
def test_a_broken_answer_is_named(
    case: str, broken: dict[str, Any], demo: tuple[Path, str], corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    index = next(index for index, row in enumerate(corpus.rows) if row.case == case)
    whole = corpus.rows
    corpus.rows = [*whole[:index], replace(whole[index], **broken), *whole[index + 1 :]]
    try:
        problems = answers.wrong(corpus, demo[0] / "run")
    finally:
        corpus.rows = whole
    assert any(problem.startswith(case) for problem in problems)
    assert conclude(problems, 10) == 1
    assert case in capsys.readouterr().err


def test_a_changed_tar_is_noticed(demo: tuple[Path, str], corpus: Corpus) -> None:
    run = demo[0] / "run"
    written = answers.Written(run)
    row = next(row for row in corpus.rows if row.case == "overhead scene" and (row.url or "").endswith(".jpg"))
    entry = written.index[row.key]
    path = next(path for path in (run / "shards").rglob("*.tar") if path.name == Path(entry["tar"]).name)
    before = path.read_bytes()
    try:
        spot = entry["image_offset"] + entry["image_size"] // 2
        path.write_bytes(before[:spot] + bytes([before[spot] ^ 1]) + before[spot + 1 :])
        problems = answers.wrong(corpus, run)
    finally:
        path.write_bytes(before)
    assert [problem for problem in problems if row.url and row.url in problem]


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    assert main(["--root", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]
    assert not (tmp_path / MARK).exists()
