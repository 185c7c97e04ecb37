"""Shared memory in which workers make batches, used again and again: fresh pages cost more than the pixels in them.

A worker is told a free slot with the number of its batch, and sends back but its name. Where that arrives, the slot
becomes a tensor; once neither it nor a view of it is held, the slot is free again.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS = itertools.count()
_HERE: weakref.WeakValueDictionary[int, Slots] = weakref.WeakValueDictionary()
"""Those of this process, by number; workers have copies that are not among them."""


class Slots:
    """So many places for batches of images.

    Args:
        count: places; batches that find none free are sent as they are.
        batch: images of a batch, at most.
        size: pixels along a side.
    """

    def __init__(self, count: int, batch: int, size: int) -> None:
        import torch

        self.memory = torch.empty((count, batch, size, size, 3), dtype=torch.uint8).share_memory_()
        self.number = next(_NUMBERS)
        self._free = deque(range(count))
        _HERE[self.number] = self

    def __getstate__(self) -> dict[str, Any]:
        return {"memory": self.memory, "number": self.number}

    def orders(self, batches: int) -> Iterator[tuple[int, int | None]]:
        """Numbers of batches, each with a free slot, where there is one: what a DataLoader deals to its workers."""
        for number in range(batches):
            try:
                slot = self._free.popleft()
            except IndexError:
                slot = None
            yield number, slot

    def pixels(self, slot: int, count: int) -> NDArray[np.uint8]:
        """(count, size, size, 3): what a slot holds."""
        return np.asarray(self.memory[slot, :count].numpy(), dtype=np.uint8)

    def tensor(self, slot: int, count: int) -> Any:
        """uint8 tensor (count, 3, size, size), channels last; once it and its views are gone, the slot is free."""
        import torch

        held = self.pixels(slot, count)
        weakref.finalize(held, self._free.append, slot).atexit = False
        return torch.from_numpy(held).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Filled:
    """What a worker sends of its images; it arrives as the tensor."""

    slots: Slots
    slot: int
    count: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.slots.number, self.slot, self.count)


def _arrived(number: int, slot: int, count: int) -> Any:
    return _HERE[number].tensor(slot, count)
