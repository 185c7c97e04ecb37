"""In which order samples are seen: a function of seed and epoch alone, so that any run can go on anywhere.

The order is one endless row: epoch 0, epoch 1, … behind each other, each of them every sample once. A global batch is
the next so many positions of that row; ranks take equal slices of it and workers whole batches. So no rank waits for
another, no batch is short, and a run that goes on with other ranks, workers or batches goes on at the very sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a run has come, as plain values; what a checkpoint keeps."""

    epoch: int
    samples: int
    """Consumed of this epoch, by all ranks together."""
    seed: int
    run: int
    data: str
    """`Index.digest`."""

    def to_json(self) -> dict[str, Any]:
        """As a mapping of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> State:
        """From what `to_json` gave."""
        return cls(**found)


@dataclass(frozen=True)
class Order:
    """The row of sample numbers.

    `run` samples that lie behind each other in their tar stay together: 1 is a permutation of all samples; more
    of them make one range read, for stores on which each costs.
    """

    count: int
    seed: int = 0
    run: int = 1
    shuffle: bool = True
    _epochs: dict[int, NDArray[np.int64]] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epochs": {}}

    def at(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(epoch, sample's number) of the positions from `start` to before `stop`."""
        found: list[tuple[int, int]] = []
        while start < stop:
            epoch, first = divmod(start, self.count)
            last = min(self.count, first + stop - start)
            found += [(epoch, int(number)) for number in self._of(epoch)[first:last]]
            start += last - first
        return found

    def _of(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._drawn(epoch)
        return self._epochs[epoch]

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.count)
        starts = np.arange(0, self.count, self.run)
        drawn = generator(self.seed, epoch, "order").bit_generator.random_raw(len(starts))
        starts = starts[np.argsort(drawn, kind="stable")]
        numbers = (starts[:, None] + np.arange(self.run)).reshape(-1)
        return numbers[numbers < self.count]

    def position(self, state: State, data: str) -> int:
        """Where a run goes on.

        Raises:
            UserError: the state is of other data or another order.
        """
        for name, now in (("data", data), ("seed", self.seed), ("run", self.run)):
            if getattr(state, name) != now:
                raise UserError(
                    f"the checkpoint's {name} is {getattr(state, name)}, now {now}: the order is another one"
                )
        return state.epoch * self.count + state.samples

    def state(self, position: int, data: str) -> State:
        """The other way round."""
        epoch, samples = divmod(position, self.count)
        return State(epoch=epoch, samples=samples, seed=self.seed, run=self.run, data=data)


def generator(*parts: int | str) -> np.random.Generator:
    """A stream of random numbers that belongs to these parts alone."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
