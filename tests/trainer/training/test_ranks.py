"""Several ranks in processes of their own, beside one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from tests.trainer.training import ALONE, batch, halved, made, started
from trainer.data import Batch
from trainer.training.loss import text_ids
from trainer.training.step import gradients, optimizer_for, take
from trainer.training.world import World

RANKS = 2
CASES: dict[str, dict[str, Any]] = {
    "negatives": {},
    "positives": {"same_text": "positive"},
    "chunks": {"chunk": 2},
    "frozen": {"freeze": "image"},
}
TEXTS = [f"a field of kind {at % 5}" for at in range(8)]
OFF = torch.amp.GradScaler("cpu", enabled=False)


def worked(model: Path, said: dict[str, Any], world: World) -> dict[str, Any]:
    """Loss, gradients, and weights and figures after a step, of a rank's slice of eight samples."""
    clip = made(model, lr=0.01, warmup=0, **said)
    clip.train()
    slices = halved(batch(clip, 8, texts=TEXTS), 8 // world.ranks)
    own: list[Batch] = halved(slices[world.rank], clip.config.chunk or 8)
    ids = text_ids([text for part in own for text in part.texts])
    loss = gradients(clip, own, ids, world, OFF, step=0)
    world.average_gradients(clip.trained)
    found = {name: weight.grad.clone() for name, weight in clip.model.named_parameters() if weight.grad is not None}
    told = take(clip, optimizer_for(clip), OFF, own, world, step=0, steps=9)
    return {
        "loss": world.mean(loss.clone()),
        "gradients": found,
        "figures": told.values,
        "weights": {name: tensor.clone() for name, tensor in clip.model.state_dict().items()},
    }


def work(rank: int, folder: Path, model: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    world = World(rank, RANKS, torch.device("cpu"))
    found = {name: worked(model, said, world) for name, said in CASES.items()}
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def parted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [started(work, rank, folder, tiny) for rank in range(RANKS)]
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * RANKS
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_gradients_of_one_process(case: str, tiny: Path, parted: list[dict[str, Any]]) -> None:
    whole = worked(tiny, {name: value for name, value in CASES[case].items() if name != "chunk"}, ALONE)
    for rank in parted:
        found = rank[case]
        assert found["gradients"].keys() == whole["gradients"].keys()
        torch.testing.assert_close(found["loss"], whole["loss"], rtol=0, atol=1e-5)
        for name, wanted in whole["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["figures"], whole["figures"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_after_a_step_all_ranks_have_the_same_weights(case: str, parted: list[dict[str, Any]]) -> None:
    first, second = (rank[case]["weights"] for rank in parted)
    assert all(torch.equal(first[name], second[name]) for name in first)
