"""The hand-made numbers of a picture, and a layer over them beside a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from descriptors import CELLS, DIRECTIONS, FILE, WIDTH, Beside, beside, describe

COLOURS = slice(CELLS * CELLS * (DIRECTIONS + 6), CELLS * CELLS * (DIRECTIONS + 6) + 64)


def noise(count: int, height: int, width: int) -> torch.Tensor:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 3, height, width))
    return torch.from_numpy(pixels.astype(np.float32)) / 255


def layer() -> dict[str, torch.Tensor]:
    weight = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)
    described = describe(noise(8, 40, 40))
    return {"mean": described.mean(0), "deviation": described.std(0) + 0.1, "weight": weight, "bias": torch.ones(2)}


class Constant(torch.nn.Module):
    """A network that says the same of every picture."""

    def __init__(self) -> None:
        super().__init__()
        self.said = torch.nn.Parameter(torch.tensor([[0.25, -0.5]]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.said.expand(len(inputs), 2).to(inputs.dtype)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (33, 70), (128, 128)])
def test_any_size_has_so_many_finite_numbers(height: int, width: int) -> None:
    found = describe(noise(3, height, width))
    assert found.shape == (3, WIDTH)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[:, COLOURS].sum(1), torch.ones(3), atol=1e-5)


def test_a_flat_picture_has_one_colour_no_gradient_and_equal_neighbours() -> None:
    found = describe(torch.full((1, 3, 16, 16), 0.5))[0]
    assert found[: CELLS * CELLS * DIRECTIONS].abs().max() == 0
    assert found[COLOURS].max() == 1
    assert found[-1] == 1


def test_stripes_have_their_gradient_across() -> None:
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::4] = 1
    upright, lying = (
        describe(pixels)[0, : CELLS * CELLS * DIRECTIONS].reshape(DIRECTIONS, -1).sum(1)
        for pixels in (stripes, stripes.transpose(2, 3))
    )
    assert upright[0] == pytest.approx(1, abs=1e-4)
    assert lying[DIRECTIONS // 2] == pytest.approx(1, abs=1e-4)


def test_a_picture_means_the_same_alone_and_in_a_batch() -> None:
    pixels = noise(5, 48, 64)
    assert torch.equal(describe(pixels)[3:4], describe(pixels[3:4]))


def test_the_layers_outputs_are_added_to_the_networks() -> None:
    made = Beside(Constant(), layer(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    inputs = (noise(4, 40, 40) - 0.5) / 0.5
    held = layer()
    plain = ((describe(noise(4, 40, 40)) - held["mean"]) / held["deviation"]).clamp(-4, 4)
    wanted = torch.tensor([0.25, -0.5]) + plain @ held["weight"].T + held["bias"]
    assert torch.allclose(made(inputs), wanted, atol=1e-3)
    made.scale(0.0)
    assert torch.allclose(made(inputs), torch.tensor([[0.25, -0.5]]).expand(4, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sees_the_same_pixels(dtype: torch.dtype) -> None:
    made = Beside(Constant(), layer(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    inputs = (noise(4, 40, 40) - 0.5) / 0.5
    assert torch.allclose(made(inputs.to(dtype)), made(inputs), atol=1e-2)


def test_a_folder_without_the_file_is_the_network_alone(tmp_path: Path) -> None:
    network = Constant()
    assert beside(network, tmp_path, (0.5,) * 3, (0.5,) * 3) is network


def test_a_folder_with_the_file_is_both(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(save(layer()))
    made = beside(Constant(), tmp_path, (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(made.layer()["weight"], layer()["weight"])
    assert not made.training


def test_a_layer_of_another_width_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(save(layer() | {"weight": torch.zeros(2, 7)}))
    with pytest.raises(ValueError, match=f"of {WIDTH} descriptors"):
        beside(Constant(), tmp_path, (0.5,) * 3, (0.5,) * 3)
