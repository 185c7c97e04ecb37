"""The demo's labelled scenes: every planted fact comes out, and the check can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from curation import recipe as recipes
from demo import recurate, rs3
from tests.harness import run_stage


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's run, in this process."""
    root = tmp_path_factory.mktemp("demo-rs3")
    run_all(rs3.make(root), root / "run")
    return root / "run"


def run_all(path: Path, root: Path) -> None:
    """A recipe's stages, one after the other."""
    recipe = recipes.load(str(path))
    before = None
    for stage in recipe.stages:
        run_stage(stage, root, before, sources=[source.name for source in recipe.sources])
        before = stage.name


def test_the_shards_and_an_older_tar_are_curated_anew(finished: Path) -> None:
    root = finished.parent
    recipe = recurate.make(root / "world", finished / "shards", rs3.images(root))
    run_all(recipe, root / "recurated")
    problems, total = recurate.wrong(finished, root / "recurated")
    assert problems == []
    assert total > 70


def test_every_planted_answer_is_found(finished: Path) -> None:
    problems, total = rs3.wrong(finished)
    assert problems == []
    assert total > 50


@pytest.mark.parametrize(
    ("number", "change", "named"),
    [
        (0, lambda chip: replace(chip, facts=chip.facts | {"season": "summer"}), "season is 'winter', not 'summer'"),
        (2, lambda chip: replace(chip, facts=chip.facts | {"country": "Belgium"}), "'belgium' is not told"),
        (6, lambda chip: replace(chip, reason=None, facts=rs3.SOUTH_JULY), "it is not in the shards"),
        (3, lambda chip: replace(chip, category="stadium"), "'stadium' is not told"),
    ],
)
def test_a_broken_answer_is_named(
    number: int,
    change: Callable[[rs3.Chip], rs3.Chip],
    named: str,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chips = list(rs3.CHIPS)
    chips[number] = change(chips[number])
    monkeypatch.setattr(rs3, "CHIPS", tuple(chips))
    problems, _ = rs3.wrong(finished)
    assert any(named in problem for problem in problems), problems


def test_the_shipped_recipe_fits_the_same_world(tmp_path: Path) -> None:
    rs3.make(tmp_path)
    world = tmp_path / "world"
    paths = {"fmow": world / "fmow/train", "bigearthnet": world / "scenes", "millionaid": world / "fmow/train"}
    changes = [f"sources.{name}.path={path}" for name, path in paths.items()]
    changes += [f"stages.captions.model={world / 'models/blip2'}"]
    changes += [f"stages.captions.{name}={{model: {world / 'models/clip'}}}" for name in ("rank", "rerank")]
    recipe = recipes.load("rs3", changes)
    assert [stage.name for stage in recipe.stages] == ["ingest", "dedup", "captions", "shards"]
    assert recipe.stage("captions").config.rerank.keep == 5


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_command_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rs3.main(["--root", str(tmp_path / "demo-rs3")]) == 0
    assert "every planted answer was found" in capsys.readouterr().out
