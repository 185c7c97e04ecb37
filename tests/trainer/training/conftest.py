from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.training import write_data, write_model


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Models so small that a second thread of torch only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 samples in three tars."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="package")
def val_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """12 other samples."""
    return write_data(tmp_path_factory.mktemp("val"), shards=1, each=12, first=100)
