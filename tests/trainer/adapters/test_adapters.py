from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from demo.models import make_open_clip
from trainer.adapters import NAME, PeftOptions, apply, attach_saved, load_trainable, merge, save, trainable_state
from trainer.errors import UserError
from trainer.evaluation.model import Choice, load

PARTS = ("lora", "pfeiffer", "prefix", "unipelt")
SMALL: dict[str, Any] = {"rank": 4, "alpha": 6.0, "reduction": 8, "prefix": 3, "bottleneck": 5}
IMAGE, TEXT, LAYERS, OUT = 32, 24, 2, 16
"""Widths of the towers, layers of each, and features."""


def build(custom_text: bool = False, **vision: Any) -> Any:
    from open_clip import CLIP, CustomTextCLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        kind = CustomTextCLIP if custom_text else CLIP
        return kind(
            OUT,
            {"layers": LAYERS, "width": IMAGE, "head_width": 8, "patch_size": 8, "image_size": 16, **vision},
            {"layers": LAYERS, "width": TEXT, "heads": 3, "context_length": 12, "vocab_size": 40},
        ).eval()


def inputs(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    texts = torch.randint(1, 38, (count, 12), generator=rng)
    texts[:, 7], texts[:, 8:] = 39, 0
    return torch.randn(count, 3, 16, 16, generator=rng), texts


def features(model: Any) -> torch.Tensor:
    images, texts = inputs()
    with torch.no_grad():
        return torch.cat([model.encode_image(images), model.encode_text(texts)])


def loss(model: Any) -> torch.Tensor:
    images, texts = inputs(8)
    pictures, captions, _ = model(images, texts)
    labels = torch.arange(8)
    scores = 10 * pictures @ captions.T
    return functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)


def trained(model: Any, steps: int = 12) -> list[float]:
    found = []
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=0.01)
    for _ in range(steps):
        value = loss(model)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        found.append(value.item())
    return found


def formula(options: PeftOptions, width: int) -> int:
    """Trained parameters of a tower, from the definitions (arXiv 2106.09685, 2005.00247, 2101.00190, 2110.07577)."""
    inner, d, n = width // options.reduction, options.bottleneck, LAYERS
    sizes = {
        "lora": n * 2 * 2 * options.rank * width,
        "adapter": n * (2 * width * inner + inner + width),
        "prefix": options.length * width + (width + 1) * d + (d + 1) * 2 * n * width,
    }
    gates = n * {"lora": 2, "adapter": 1, "prefix": 1}["lora"] + 2 * n
    return sum(sizes[part] for part in options.parts) + (gates * (width + 1) if options.gated else 0)


@pytest.fixture(params=[False, True], ids=["clip", "custom_text"])
def model(request: pytest.FixtureRequest) -> Any:
    return build(custom_text=request.param)


@pytest.mark.parametrize("kind", ["lora", "pfeiffer"])
def test_parts_that_begin_as_zeros_change_nothing(model: Any, kind: str) -> None:
    before = features(model)
    apply(model, PeftOptions(kind=kind, **SMALL), seed=0)
    assert torch.allclose(features(model), before, atol=1e-6)


def test_the_tuned_attention_without_parts_is_torchs(model: Any) -> None:
    from trainer.adapters.modules import TunedAttention

    before = features(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.MultiheadAttention):
            block = model.get_submodule(name.rpartition(".")[0])
            block.attn = TunedAttention(module, 0)
    assert torch.allclose(features(model), before, atol=1e-6)
    model.train()
    assert torch.allclose(features(model), before, atol=1e-6)


@pytest.mark.parametrize("kind", PARTS)
def test_counts_are_those_of_the_formula_and_only_parts_get_gradients(model: Any, kind: str) -> None:
    options = PeftOptions(kind=kind, **SMALL)
    total = sum(parameter.numel() for parameter in model.parameters())
    found = apply(model, options, seed=0)
    image, text = formula(options, IMAGE), formula(options, TEXT)
    assert found.trainable == image + text
    assert found.total == total + found.trainable
    assert sum(size for name, size in found.sizes.items() if name.startswith("image.")) == image
    assert f"trains {found.trainable:,} of" in str(found)
    for name, parameter in model.named_parameters():  # what begins as zeros lets no gradient through at first
        assert parameter.requires_grad == (name in trainable_state(model))
    trained(model, 2)
    loss(model).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("kind", ["none", *PARTS])
def test_a_few_steps_lower_the_loss_and_saved_parts_are_the_same_model(tmp_path: Path, kind: str) -> None:
    options = PeftOptions(kind=kind, **SMALL)
    start, model = build(), build()
    apply(model, options, seed=0)
    losses = trained(model)
    assert losses[-1] < losses[0] - 0.05
    copied = copy.deepcopy(model)
    assert torch.equal(features(copied), features(model))
    save(model, options, tmp_path / NAME)
    attach_saved(start, tmp_path / NAME)
    assert torch.equal(features(start), features(model))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    trained(copied, 1)
    assert not torch.equal(features(copied), features(model)), "the copy has weights of its own"


@pytest.mark.parametrize("kind", PARTS)
def test_one_tower_alone(kind: str) -> None:
    before = features(build())
    model = build()
    options = PeftOptions(kind=kind, towers="text", **SMALL)
    assert apply(model, options, seed=0).trainable == formula(options, TEXT)
    trained(model, 3)
    after = features(model)
    assert torch.equal(after[:4], before[:4])
    assert not torch.allclose(after[4:], before[4:], atol=1e-4)


def test_merged_lora_is_a_plain_model(model: Any) -> None:
    plain = copy.deepcopy(model)
    apply(model, PeftOptions(kind="lora", **SMALL), seed=0)
    trained(model)
    before = features(model)
    state = merge(model).state_dict()
    assert torch.allclose(features(model), before, atol=1e-5)
    assert not torch.allclose(features(plain), before, atol=1e-2)
    plain.load_state_dict(state, strict=True)
    assert torch.allclose(features(plain), before, atol=1e-5)
    assert isinstance(model.visual.transformer.resblocks[0].attn, torch.nn.MultiheadAttention)


@pytest.mark.parametrize("kind", ["pfeiffer", "prefix", "unipelt"])
def test_what_depends_on_the_input_cannot_be_merged(kind: str) -> None:
    model = build()
    apply(model, PeftOptions(kind=kind, **SMALL), seed=0)
    with pytest.raises(UserError, match="only LoRA can be merged"):
        merge(model)


def test_a_text_sees_no_later_token_through_prefixes() -> None:
    model = build()
    apply(model, PeftOptions(kind="prefix", **SMALL), seed=0)
    _, texts = inputs()
    longer = texts.clone()
    longer[:, 8:] = 5
    with torch.no_grad():
        assert torch.allclose(model.encode_text(texts), model.encode_text(longer), atol=1e-6)


def test_prefixes_and_gates_follow_their_definition() -> None:
    """Against attention written out for one layer, with the prefixes and the gate as UniPELT defines them."""
    from trainer.adapters.modules import Gate, LowRank, Prefixes, TunedAttention

    torch.manual_seed(0)
    plain = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    tuned, prefixes, gate = TunedAttention(plain, 1), Prefixes(8, 3, 4, 5), Gate(8)
    tuned.share(prefixes, gate)
    low, plain_low = LowRank(8, 2, 3.0, gated=True), LowRank(8, 2, 3.0, gated=False)
    tuned.lora["v"], tuned.lora["q"] = low, plain_low
    for each in (low, plain_low):
        torch.nn.init.normal_(each.b)
    assert low.gate is not None
    x = torch.randn(2, 6, 8)
    made = (torch.tanh(prefixes.vectors @ prefixes.down.weight.T + prefixes.down.bias)) @ prefixes.up.weight.T
    made = (made + prefixes.up.bias).reshape(4, 3, 2, 8)[:, 1]
    weight = torch.sigmoid(gate.score(x)).mean(1)[:, None]
    q, k, v = (x @ plain.in_proj_weight.T + plain.in_proj_bias).split(8, dim=-1)
    q = q + 1.5 * x @ plain_low.a.T @ plain_low.b.T
    v = v + torch.sigmoid(low.gate.score(x)).mean(1)[:, None] * (1.5 * x @ low.a.T @ low.b.T)
    k, v = torch.cat([weight * made[:, 0], k], 1), torch.cat([weight * made[:, 1], v], 1)
    heads = []
    for half in (slice(0, 4), slice(4, 8)):
        heads.append(torch.softmax(q[..., half] @ k[..., half].transpose(1, 2) / 2, -1) @ v[..., half])
    wanted = plain.out_proj(torch.cat(heads, -1))
    assert torch.allclose(tuned(x, x, x)[0], wanted, atol=1e-6)


def test_seed_alone_decides_and_no_global_generator_is_touched() -> None:
    options = PeftOptions(kind="unipelt", **SMALL)
    states = []
    for seed in (5, 5, 6):
        before = torch.random.get_rng_state()
        model = build()
        apply(model, options, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(trainable_state(model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_half_precision_and_recomputed_activations() -> None:
    model = build().to(torch.bfloat16)
    apply(model, PeftOptions(kind="unipelt", **SMALL), seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    plain = build().train()
    apply(plain, PeftOptions(kind="unipelt", **SMALL), seed=0)
    gradients = []
    for recompute in (False, True):
        plain.set_grad_checkpointing(recompute)
        plain.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss(plain).backward()
        gradients.append([p.grad.clone() for p in plain.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(trainable_state(plain))
    for first, second in zip(*gradients, strict=True):
        assert torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("kind", PARTS)
def test_every_kind_is_evaluated_from_a_folder_or_a_file(tmp_path: Path, kind: str) -> None:
    folder = make_open_clip(tmp_path / "model", seed=1)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8))
    plain = load(Choice(model=str(folder)))
    before = plain.images([picture])
    options = PeftOptions(kind=kind, **SMALL)
    apply(plain.model, options, seed=0)
    moved = torch.Generator().manual_seed(0)
    for parameter in trainable_state(plain.model).values():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=moved))
    wanted = plain.images([picture])
    assert np.abs(wanted - before).max() > 1e-4
    save(plain.model, options, tmp_path / "parts.safetensors")
    assert np.array_equal(
        load(Choice(model=str(folder), adapter=tmp_path / "parts.safetensors")).images([picture]), wanted
    )
    (tmp_path / "parts.safetensors").rename(folder / NAME)
    assert np.array_equal(load(Choice(model=str(folder))).images([picture]), wanted)


def test_users_mistakes_are_sentences(tmp_path: Path) -> None:
    for said, sentence in (
        ({"kind": "ia3"}, "peft.kind is 'ia3'; accepted: none, lora, pfeiffer, prefix, unipelt"),
        ({"towers": "audio"}, "peft.towers is 'audio'; accepted: both, image, text"),
        ({"rank": 0}, "peft.rank is 0; accepted: a whole number from 1 on"),
        ({"prefix": 2.5}, "peft.prefix is 2.5; accepted: a whole number"),
        ({"alpha": -1.0}, "peft.alpha is -1.0; accepted: a number above 0"),
        ({"ranks": 8}, "peft.ranks is unknown; accepted: kind, towers, rank"),
    ):
        with pytest.raises(UserError, match=sentence):
            PeftOptions.from_mapping(said)
    model = build()
    options = PeftOptions(kind="lora", **SMALL)
    apply(model, options, seed=0)
    with pytest.raises(UserError, match=r"has trained parts already \(visual\."):
        apply(model, options, seed=0)
    other = build()
    apply(other, PeftOptions(kind="lora", rank=2), seed=0)
    with pytest.raises(UserError, match=r"of other options or of another model .* has another shape"):
        load_trainable(other, trainable_state(model))
    with pytest.raises(UserError, match="is unknown to the model"):
        load_trainable(other, {**trainable_state(other), "visual.x": torch.zeros(1)})
    (tmp_path / "odd").write_bytes(b"x" * 64)
    with pytest.raises(UserError, match="odd: no file of trained parts"):
        attach_saved(build(), tmp_path / "odd")
    with pytest.raises(UserError, match="none: the file of trained parts was not found"):
        attach_saved(build(), tmp_path / "none")


def test_towers_that_are_not_open_clips_transformers_are_refused() -> None:
    resnet = build(layers=[1, 1, 1, 1])
    timm = build(timm_model_name="vit_tiny_patch16_224", image_size=32)
    custom = build(qk_norm=True)
    for model, kind in ((resnet, "ModifiedResNet"), (timm, "TimmModel"), (custom, "CustomResidualAttentionBlock")):
        for options in (PeftOptions(kind="lora"), PeftOptions(kind="pfeiffer", towers="image")):
            with pytest.raises(UserError, match=f"the image tower is a .*{kind}.*accepted: open_clip's own"):
                apply(model, options, seed=0)
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert apply(model, PeftOptions(kind="lora", towers="text"), seed=0).trainable > 0


def test_sizes_on_the_papers_model() -> None:
    """ViT-B-32: the figures of the docs."""
    import open_clip

    wanted = {"lora": 491_520, "pfeiffer": 1_294_272, "prefix": 16_454_144, "unipelt": 18_275_872}
    for kind, count in wanted.items():
        with torch.device("meta"):
            model = open_clip.create_model("ViT-B-32", load_weights=False, device="meta")
        assert apply(model, PeftOptions(kind=kind), seed=0).trainable == count
