from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

from tests.trainer.detector.conftest import TOY
from trainer.detector.config import LABELS, load
from trainer.errors import UserError


def test_the_shipped_config_names_its_sources_and_a_known_architecture() -> None:
    config = load(None)
    classes = {label: [name for name, source in config.sources.items() if source.label == label] for label in LABELS}
    assert classes["rs"][:4] == ["aid", "hurricane", "ucm", "bigearthnet"]
    assert classes["other"][:5] == ["flickr8k", "intel", "imagenet", "imagenet_small", "cifar10"]
    packaged = [config.sources[name] for name in (*classes["rs"][4:], *classes["other"][5:])]
    assert (len(classes["rs"]), len(classes["other"]), len(packaged)) == (32, 22, 45)
    assert all(source.folder.startswith("packages/") for source in packaged)
    assert config.model.architecture in timm.list_models()
    assert all(source.origin and source.licence for source in config.sources.values())


def test_a_shorter_training_warms_up_for_a_tenth_of_it() -> None:
    short = load(None).with_steps(50)
    assert (short.training.steps, short.training.warmup) == (50, 5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sauces": {}}, "unknown key 'sauces'"),
        ({"model": {"size": 64}}, "the key 'architecture' is missing"),
        ({"sources": {"a": {"folder": "a", "label": "aerial"}}}, "sources.a.label is 'aerial'; accepted: other, rs"),
        ({"sources": {"drawn": {"folder": "a", "label": "rs"}}}, "the name is taken"),
        ({"sources": {"a": {"folder": "a", "label": "rs", "files": [1]}}}, "a pattern or a list of them is wanted"),
        ({"sources": {"a": {"folder": "a", "label": "rs", "bands": [[1, 2]]}}}, "lists of one or three band numbers"),
        ({"sources": {"a": {"folder": "a", "label": "rs", "bands": [[0]]}}}, "lists of one or three band numbers"),
        (
            {"sources": {"a": {"folder": "a", "label": "rs", "weight": 0}}},
            "weight: a number above 0 is wanted",
        ),
        ({"sources": []}, "a mapping of names to sources is wanted"),
        ({"split": {"train": 0.9, "validation": 0.2, "test": 0.1}}, "three shares that sum to 1"),
        ({"training": {"steps": "many"}}, "steps: int is wanted, found 'many'"),
        ({"training": {"batch": 0}}, "training.batch is 0"),
        ({"training": {"prepared": 0}}, "training.prepared is 0"),
        ({"teacher": {"architecture": "resnet18"}}, "teacher: architecture and package are wanted together"),
        ({"seed": True}, "seed: int is wanted, found True"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(TOY | change))
    with pytest.raises(UserError, match=r"config\.yaml") as caught:
        load(path)
    assert sentence in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "none.yaml")
