"""YAML mappings become configs, or a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from curation.options import as_dict, build, semantic_values
from stages.base import operational, semantic
from stages.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Model:
    name: str = semantic(help="a model's name")
    device: str = operational("auto", help="where it runs")


@dataclass(frozen=True, kw_only=True)
class Config:
    radius: int = semantic(2, help="bits")
    share: float = semantic(0.5, help="a share")
    layout: Literal["a", "b"] = semantic("a", help="a layout")
    timeout_s: float = operational(15.0, help="seconds")
    hosts: list[str] = field(default_factory=list)
    model: Model | None = semantic(None, help="a model")
    flag: bool = operational(False, help="a switch")


def test_values_are_converted_and_nested() -> None:
    config = build(Config, {"share": 1, "model": {"name": "vit"}, "hosts": ["x"]}, "stages.s")
    assert config == Config(share=1.0, model=Model(name="vit"), hosts=["x"])
    assert as_dict(config)["model"] == {"name": "vit", "device": "auto"}


def test_only_semantic_options_count() -> None:
    config = build(Config, {"timeout_s": 3, "model": {"name": "vit", "device": "cuda"}}, "s")
    assert semantic_values(config) == {
        "radius": 2,
        "share": 0.5,
        "layout": "a",
        "hosts": [],
        "model": {"name": "vit"},
    }


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"raduis": 3}, r"stages.s.raduis: unknown option \(did you mean 'radius'\?\); accepted: radius, share, "),
        ({"radius": "two"}, "stages.s.radius: a whole number is wanted, found 'two'"),
        ({"radius": 2.5}, "stages.s.radius: a whole number is wanted, found 2.5"),
        ({"radius": True}, "stages.s.radius: a whole number is wanted, found True"),
        ({"radius": None}, "stages.s.radius: a value is wanted|stages.s.radius: a whole number is wanted"),
        ({"flag": "yes please"}, "stages.s.flag: true or false is wanted, found 'yes please'"),
        ({"layout": "c"}, "stages.s.layout: 'c' is not accepted; accepted: a, b"),
        ({"hosts": "x"}, r"stages.s.hosts: a list is wanted, found 'x'"),
        ({"hosts": ["x", 3]}, r"stages.s.hosts\[1\]: a text is wanted, found 3"),
        ({"model": {}}, r"stages.s.model.name: this option is required \(a model's name\)"),
        ({"model": {"nmae": "x"}}, r"stages.s.model.nmae: unknown option \(did you mean 'name'\?\)"),
        ("radius=2", "stages.s: a mapping of options is wanted, found 'radius=2'"),
    ],
)
def test_mistakes_are_sentences(given: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(Config, given, "stages.s")
