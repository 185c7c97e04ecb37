"""Texts encoded at fewer positions, linear layers through another library: the features of the model all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.models import CLIP_CONFIG, new_open_clip
from stages.texts import LENGTHS, text_encoder

TEXTS = ["", "a harbour", "an aerial view of " + "fields and " * 9 + "roads", "roads " * 40, "word " * 200]


@pytest.fixture(scope="module")
def model() -> Any:
    return new_open_clip(3, {**CLIP_CONFIG, "text_cfg": {**CLIP_CONFIG["text_cfg"], "layers": 3}})


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_fewer_positions_give_the_same_features(model: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip
    import torch

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    widths: list[int] = []
    plain = type(model).encode_text

    def noted(self: Any, tokens: Any) -> Any:
        widths.append(tokens.shape[1])
        return plain(self, tokens)

    monkeypatch.setattr(type(model), "encode_text", noted)
    with torch.inference_mode():
        found = text_encoder(model, tokenizer, "cpu")(TEXTS[:count]).numpy()
        wanted = plain(model, tokenizer(TEXTS[:count])).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert widths == [[16, 16, 32, 48, 77][count - 1]]
    assert {16, 32, 48} == set(LENGTHS)


def test_a_tower_that_sees_both_ways_gets_every_position(model: Any) -> None:
    import open_clip
    import torch

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    both_ways = new_open_clip(3, {**CLIP_CONFIG, "text_cfg": {**CLIP_CONFIG["text_cfg"], "no_causal_mask": True}})
    with torch.inference_mode():
        found = text_encoder(both_ways, tokenizer, "cpu")(TEXTS[:2])
        assert torch.equal(found, both_ways.encode_text(tokenizer(TEXTS[:2])))


def test_onednn_gives_the_same_features(model: Any, tmp_path: Path) -> None:
    import torch

    from stages.onednn import OneDnnLinear, linear_through_onednn

    assert linear_through_onednn("cuda", "fp32") is not OneDnnLinear
    assert linear_through_onednn("cpu", "bf16") is not OneDnnLinear
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    calls: list[Any] = []

    class Counted(OneDnnLinear):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func)
            return super().__torch_dispatch__(func, types, args, kwargs)

    assert linear_through_onednn("cpu", "fp32") in (OneDnnLinear, linear_through_onednn("cuda", "fp32"))
    with torch.inference_mode():
        wanted = model.encode_image(images).numpy()
        with Counted():
            found = model.encode_image(images).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert calls.count(torch.ops.aten.linear.default) == 2 * 4  # a layer has four
