from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import experiments
from curation.recipe import load
from demo.captioner import make_blip2
from demo.models import make_open_clip
from experiments.proof import arms, plan
from tests.trainer.data import encoded, picture, write_shards
from trainer.training.options import load as load_config

HOME = Path(experiments.__file__).parent


@pytest.mark.parametrize(("part", "stages"), [("pub11", "outliers"), ("rs3", "captions")])
def test_rs5ms_recipes_take_its_tars(part: str, stages: str, tmp_path: Path) -> None:
    tars = write_shards(tmp_path / "train", [3])
    (tmp_path / "test.png").write_bytes(encoded(picture(1)))
    clip = f"{{model: {make_open_clip(tmp_path / 'clip')}}}"
    models = {  # tiny ones, since a model that is nowhere is refused
        "pub11": [f"stages.outliers.vlm={clip}"],
        "rs3": [f"stages.captions.model={make_blip2(tmp_path / 'blip2')}"]
        + [f"stages.captions.{name}={clip}" for name in ("rank", "rerank")],
    }
    said = [f"sources.old.path={tars}", f"stages.dedup.against=[{tmp_path}]", *models[part]]
    recipe = load(str(HOME / f"rs5m/{part}.yaml"), said)
    assert [stage.name for stage in recipe.stages] == ["ingest", "dedup", stages, "shards"]
    assert recipe.subset == part


def test_rs5ms_settings_are_the_papers_for_so_many_samples() -> None:
    config, paper = (load_config(name, {}, []) for name in (str(HOME / "rs5m/train.yaml"), "georsclip"))
    assert (config.lr, config.weight_decay, config.batch_size) == (paper.lr, paper.weight_decay, paper.batch_size)
    assert config.samples == 20_000_000


@pytest.mark.parametrize("arm", [name for name, uses in arms.ARMS.items() if "unseen" not in uses])
def test_an_arm_is_a_recipe_of_what_it_is_named_after(arm: str, tmp_path: Path) -> None:
    (tmp_path / "everything.yaml").write_text(plan._everything())
    (tmp_path / "prompts.yaml").write_text("prompts: [a lake]")
    (tmp_path / "rows.tsv").write_text("http://127.0.0.1:1/a.jpg\ta lake\n")
    models = {
        "everything": tmp_path / "everything.yaml",
        "prompts": tmp_path / "prompts.yaml",
        "vlm": make_open_clip(tmp_path / "vlm"),
        "detector": "builtin",
        "at_least": 0.3,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(arms.recipe(arm, tmp_path / "rows.tsv", models), sort_keys=False))
    recipe = load(str(path))
    names = [stage.name for stage in recipe.stages]
    uses = arms.ARMS[arm]
    assert ("dedup" in names) == ("dedup" in uses)
    assert ("outliers" in names) == bool({"vlm", "detector"} & set(uses))
    assert names[:2] == ["keywords", "download"]
    pack = recipe.effective()["stages"]["keywords"]["pack"]
    assert (pack == "rs5m") == ("keywords" in uses)
