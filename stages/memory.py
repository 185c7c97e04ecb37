"""Models that run out of memory: batches of half the size from then on, said once, and told in the manifest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from stages.base import Record
from stages.errors import UnitError

log = logging.getLogger(__name__)

Model = TypeVar("Model")
Found = TypeVar("Found")


class Fitted(Generic[Model]):
    """A loaded model, and the batch size that it has memory for."""

    def __init__(self, run: Model, size: int, where: str) -> None:
        self.run = run
        self.size = size
        self.where = where

    def fit(self, work: Callable[[int], Found]) -> Found:
        """What `work` makes in batches of `size`; when memory runs out, all over in half of that, which stays.

        Raises:
            UnitError: not even one image fits.
        """
        while True:
            try:
                return work(self.size)
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if self.size == 1:
                    raise UnitError(f"{self.where}: the model has no memory left for a single image") from error
            self.size //= 2
            log.warning("%s: out of memory, so batches have %d images from now on", self.where, self.size)
            _free_memory()


def shrunk(records: Iterable[Record], wanted: int, where: str) -> str | None:
    """A sentence for a model some of whose units (`batch_size` in their meta) had smaller batches than wanted."""
    smallest = min((size for record in records if (size := record.meta.get("batch_size"))), default=wanted)
    if smallest >= wanted:
        return None
    return (
        f"{where}: batches of {wanted} images did not fit into memory, so some units were scored in batches of "
        f"{smallest}; set batch_size: {smallest}"
    )


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def _free_memory() -> None:
    """What the failed batch left in the GPU's cache would be in the way of the next."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
