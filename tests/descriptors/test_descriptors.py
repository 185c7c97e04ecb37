"""The hand-made numbers of a picture, and a perceptron over them beside a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from descriptors import FILE, WIDTH, Beside, beside, cells, describe, texture
from descriptors.cells import CELLS, DIRECTIONS

GRADIENTS = slice(0, CELLS * CELLS * DIRECTIONS)
COLOURS = slice(CELLS * CELLS * (DIRECTIONS + 6), CELLS * CELLS * (DIRECTIONS + 6) + 64)


def noise(count: int, height: int, width: int) -> torch.Tensor:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 3, height, width))
    return torch.from_numpy(pixels.astype(np.float32)) / 255


HIDDEN = 5


def perceptron() -> dict[str, torch.Tensor]:
    described = describe(noise(8, 40, 40))
    return {
        "mean": described.mean(0),
        "deviation": described.std(0) + 0.1,
        "hidden.weight": torch.linspace(-1, 1, HIDDEN * WIDTH).reshape(HIDDEN, WIDTH),
        "hidden.bias": torch.ones(HIDDEN),
        "out.weight": torch.linspace(-1, 1, 2 * HIDDEN).reshape(2, HIDDEN),
        "out.bias": torch.tensor([0.5, 1.5]),
    }


class Constant(torch.nn.Module):
    """A network that says the same of every picture."""

    def __init__(self) -> None:
        super().__init__()
        self.said = torch.nn.Parameter(torch.tensor([[0.25, -0.5]]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.said.expand(len(inputs), 2).to(inputs.dtype)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 70), (128, 128)])
def test_any_size_has_so_many_finite_numbers(height: int, width: int) -> None:
    found = describe(noise(3, height, width))
    assert found.shape == (3, WIDTH)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[:, COLOURS].sum(1), torch.ones(3), atol=1e-5)


def test_a_flat_picture_has_one_colour_no_gradient_and_equal_neighbours() -> None:
    found = describe(torch.full((1, 3, 32, 32), 0.5))[0]
    assert found[GRADIENTS].abs().max() == 0
    assert found[COLOURS].max() == 1
    assert found[cells.WIDTH - 1] == 1
    assert torch.isfinite(found).all()


def test_stripes_have_their_gradient_across() -> None:
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::4] = 1
    upright, lying = (
        describe(pixels)[0, GRADIENTS].reshape(DIRECTIONS, -1).sum(1) for pixels in (stripes, stripes.transpose(2, 3))
    )
    assert upright[0] == pytest.approx(1, abs=1e-4)
    assert lying[DIRECTIONS // 2] == pytest.approx(1, abs=1e-4)


def test_a_picture_means_the_same_alone_and_in_a_batch() -> None:
    pixels = noise(5, 48, 64)
    assert torch.equal(describe(pixels)[3:4], describe(pixels[3:4]))


def test_texture_and_what_is_sorted_hardly_change_when_the_picture_turns() -> None:
    pixels = noise(1, 128, 128).cumsum(2)
    pixels = pixels / pixels.amax()
    upright, turned = (describe(view)[0] for view in (pixels, pixels.rot90(1, (2, 3))))
    shape = texture.describe_texture(pixels, pixels.mean(1))[0]
    turned_shape = texture.describe_texture(pixels.rot90(1, (2, 3)), pixels.rot90(1, (2, 3)).mean(1))[0]
    neither = slice(cells.WIDTH, cells.WIDTH + cells.SORTED - DIRECTIONS)
    assert torch.allclose(upright[neither], turned[neither], atol=0.02)
    assert (upright[GRADIENTS] - turned[GRADIENTS]).abs().max() > 0.02, "where things lie is told as well"
    assert torch.allclose(shape, turned_shape, atol=0.2)


def test_stripes_share_a_direction_and_noise_does_not() -> None:
    across = torch.zeros(1, 3, 64, 64)
    across[..., ::4] = 1
    at = 1 + len(texture.QUANTILES)
    striped, noisy = (texture.describe_texture(view, view.mean(1))[0, at] for view in (across, noise(1, 64, 64)))
    assert striped == pytest.approx(1, abs=0.01)
    assert noisy < 0.5


def test_neighbours_are_counted() -> None:
    peaks = torch.zeros(1, 3, 32, 32)
    peaks[..., 8:24:8, 8:24:8] = 1
    first = 1 + len(texture.QUANTILES) + 2 + len(texture.COHERENT)
    counts = texture.describe_texture(peaks, peaks.mean(1))[0, first : first + 9]
    assert counts.tolist() == pytest.approx([1 - 32 / 900, 32 / 900, *[0] * 7], abs=1e-6)


def test_the_perceptrons_outputs_are_added_to_the_networks() -> None:
    made = Beside(Constant(), perceptron(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    inputs = (noise(4, 40, 40) - 0.5) / 0.5
    held = perceptron()
    plain = ((describe(noise(4, 40, 40)) - held["mean"]) / held["deviation"]).clamp(-4, 4)
    hidden = (plain @ held["hidden.weight"].T + held["hidden.bias"]).clamp(min=0)
    wanted = torch.tensor([0.25, -0.5]) + hidden @ held["out.weight"].T + held["out.bias"]
    assert torch.allclose(made(inputs), wanted, atol=1e-3)
    made.scale(0.0)
    assert torch.allclose(made(inputs), torch.tensor([[0.25, -0.5]]).expand(4, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sees_the_same_pixels(dtype: torch.dtype) -> None:
    made = Beside(Constant(), perceptron(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    inputs = (noise(4, 40, 40) - 0.5) / 0.5
    assert torch.allclose(made(inputs.to(dtype)), made(inputs), atol=1e-2)


def test_a_folder_without_the_file_is_the_network_alone(tmp_path: Path) -> None:
    network = Constant()
    assert beside(network, tmp_path, (0.5,) * 3, (0.5,) * 3) is network


def test_a_folder_with_the_file_is_both(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(save(perceptron()))
    made = beside(Constant(), tmp_path, (0.5,) * 3, (0.5,) * 3)
    held = made.perceptron()
    assert set(held) == set(perceptron())
    assert all(torch.equal(held[name], value) for name, value in perceptron().items())
    assert not made.training


@pytest.mark.parametrize("change", [{"hidden.weight": torch.zeros(HIDDEN, 7)}, {"weight": torch.zeros(2, WIDTH)}])
def test_another_width_or_another_layer_is_refused(tmp_path: Path, change: dict[str, torch.Tensor]) -> None:
    (tmp_path / FILE).write_bytes(save(perceptron() | change))
    with pytest.raises(ValueError, match=f"over {WIDTH} descriptors"):
        beside(Constant(), tmp_path, (0.5,) * 3, (0.5,) * 3)
