from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from trainer.data import Augment
from trainer.errors import UserError
from trainer.training.options import Config, load, presets


def test_presets_are_the_papers_settings() -> None:
    assert presets() == ["georsclip", "georsclip-ft"]
    paper, tuned = load("georsclip"), load("georsclip-ft")
    assert (paper.lr, paper.weight_decay, paper.batch_size, paper.epochs) == (1e-6, 0.5, 700, 20)
    assert (paper.model, paper.pretrained) == ("ViT-B-32", "openai")
    assert paper.augment == Augment(scale=(0.9, 1.0), flip=0.5, rotation=360, corners="black")
    assert (tuned.lr, tuned.weight_decay, tuned.batch_size, tuned.epochs) == (5e-6, 0.5, 600, 7)
    assert (tuned.warmup, tuned.clip) == (100, 50)


def test_single_values_go_over_a_preset_and_a_preset_over_the_defaults(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("lr: 1e-4\nbatch_size: 64\naugment: {flip: 0}\n")
    found = load(str(own), {"batch_size": 32}, ["augment.rotation=90", "captions.weights={caption: 2}", "ema=0.99"])
    assert (found.lr, found.batch_size, found.ema) == (1e-4, 32, 0.99)
    assert found.augment == Augment(flip=0.0, rotation=90.0)
    assert found.captions.weights == {"caption": 2.0}
    assert load(sets=["augment=null"]).augment is None
    assert load(sets=["peft.kind=lora", "peft.rank=4"]).peft.rank == 4


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["learning_rate=1"], "learning_rate: unknown key; accepted: model, pretrained"),
        (["augment.spin=1"], "augment.spin: unknown key; accepted: scale"),
        (["batch_size=many"], "batch_size: a whole number is wanted, found 'many'"),
        (["batch_size=true"], "batch_size: a whole number is wanted, found True"),
        (["batch_size=0"], "batch_size is 0; at least 1 is wanted"),
        (["lr=fast"], "lr: a number is wanted, found 'fast'"),
        (["lr=-1"], "lr is -1.0; more than 0 is wanted"),
        (["lr=.nan"], "lr is nan; more than 0 is wanted"),
        (["ema=1"], "ema is 1.0; 0 or more and less than 1 is wanted"),
        (["recompute=1"], "recompute: true or false is wanted, found 1"),
        (["precision=fp8"], "precision is 'fp8'; accepted: fp32, bf16, fp16"),
        (["freeze=both"], "freeze is 'both'; accepted: none, image, text"),
        (["same_text=ignore"], "same_text is 'ignore'; accepted: negative, positive"),
        (["normalisation=own"], "normalisation is 'own'; accepted: model, clip"),
        (["augment.scale=0.9"], "augment.scale: 2 numbers are wanted, found 0.9"),
        (["captions=short"], "captions: a mapping is wanted, found 'short'"),
        (["peft.kind=dora"], "peft.kind is 'dora'; accepted: none, lora"),
        (["lr"], "--set lr: KEY=VALUE is wanted"),
        (["lr=[1"], "--set lr=[1: the value cannot be read as YAML"),
    ],
)
def test_a_mistake_is_one_sentence_with_key_value_and_what_is_accepted(sets: list[str], says: str) -> None:
    with pytest.raises(UserError) as raised:
        load(sets=sets)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file; accepted: georsclip, georsclip-ft, or a YAML file"),
        ("[1]", "a mapping of options"),
        ("a: [", "YAML"),
    ],
)
def test_a_preset_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"--preset .*mine\.yaml") as raised:
        load(str(path))
    assert says in str(raised.value)


def test_only_what_changes_no_step_may_change_on_resume() -> None:
    spared = {each.name for each in fields(Config)} - set(Config().identity())
    assert spared == {
        "damage_limit",
        "chunk",
        "recompute",
        "select",
        "validation_samples",
        "validate_every",
        "checkpoint_every",
        "keep",
    }
