"""Batches for training: samples in their order, each one read, decoded, shown and paired with a text.

What a sample looks like depends on seed, epoch and key; which batch it is in on the order. Neither depends on workers:
torch's DataLoader only deals batches to processes and gives them back in order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trainer.data import images, tars
from trainer.data.captions import CaptionOptions, Passport, choose, restated
from trainer.data.images import Augment, Pixels
from trainer.data.index import Index
from trainer.data.order import Order, State, generator
from trainer.data.slots import Filled, Slots
from trainer.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "img_content", "input.image")
TEXTS = ("txt", "caption", "input.caption")
"""Extensions: webdataset's and open_clip's, RS5M's, and those of RS5M's first tar."""
SUBSTITUTES = 8
"""Other samples that are tried in place of a damaged one."""
PREFETCHED = 2
"""Batches that each worker makes ahead."""
SPARE = 3
"""Batches that whoever trains may hold at once without new memory for the next ones."""
LEAST_LIMIT = 10
"""Damaged samples that never stop a run."""

Tokenize = Callable[[list[str]], Any]


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What a batch is made of."""

    batch_size: int = 256
    """Samples a rank."""
    size: int = 224
    """Pixels along a side."""
    seed: int = 0
    shuffle: bool = True
    run: int = 1
    """Neighbours in a tar that stay together in the order; see `Order`."""
    augment: Augment | None = field(default_factory=Augment)
    """None: the centre crop of evaluation."""
    captions: CaptionOptions = field(default_factory=CaptionOptions)
    damage_limit: float = 0.01
    """Share of all samples that may be damaged; ten may in any case."""
    workers: int = 2
    """Processes; 0: this one."""
    pin_memory: bool = False
    """For copies to a GPU that overlap with its work."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("size", 1), ("run", 1), ("workers", 0), ("damage_limit", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; at least {least} is wanted")


@dataclass
class Batch:
    """Some samples."""

    images: Any
    """uint8 tensor (batch, 3, size, size), channels last in memory; see `images.normalise`."""
    texts: list[str]
    tokens: Any
    """What `tokenize` made of the texts; None without it."""
    keys: list[str]
    state: State
    """With which a run goes on behind this batch."""
    damaged: dict[str, str]
    """Samples that could not be used, and why; others stand in their place."""

    def __len__(self) -> int:
        return len(self.texts)

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; torch's DataLoader calls it."""
        tokens = self.tokens.pin_memory() if hasattr(self.tokens, "pin_memory") else self.tokens
        return replace(self, images=self.images.pin_memory(), tokens=tokens)


@dataclass(frozen=True, slots=True)
class Sample:
    """One of a batch."""

    pixels: Pixels
    text: str
    key: str


class Unusable(Exception):
    """Why a sample cannot be used."""


class Loader:
    """Batches of one rank.

    Args:
        index: what `open_index` found.
        options: what batches are made of.
        rank, ranks: which slice of each global batch this process takes.
        tokenize: texts to a tensor, done by the workers; it must be picklable where processes are spawned.
    """

    def __init__(
        self, index: Index, options: LoaderOptions, *, rank: int = 0, ranks: int = 1, tokenize: Tokenize | None = None
    ) -> None:
        if not 0 <= rank < ranks:
            raise UserError(f"rank {rank} of {ranks}: it must be from 0 to {ranks - 1}")
        if len(index) < ranks:
            raise UserError(f"{len(index)} samples cannot be dealt to {ranks} ranks: each needs one at least")
        self.index = index
        self.options = options
        self.rank, self.ranks = rank, ranks
        self.tokenize = tokenize
        self.order = Order(len(index), options.seed, options.run, options.shuffle)
        self.damaged: dict[str, str] = {}
        """Samples that this rank could not use, and why."""
        self.limit = max(LEAST_LIMIT, int(options.damage_limit * len(index)))

    def steps(self, epochs: int, state: State | None = None) -> int:
        """Batches from `state` (the beginning by default) to the end of the last epoch; the same on every rank."""
        return len(self.dataset(epochs, state))

    def dataset(self, epochs: int, state: State | None = None) -> Batches:
        """A map-style torch dataset of whole batches.

        Raises:
            UserError: the state is of other data or another order.
        """
        start = self.order.position(state, self.index.digest) if state else 0
        return Batches(self, start, epochs * len(self.index))

    def batches(self, epochs: int, state: State | None = None) -> Iterator[Batch]:
        """Every sample once an epoch, to the end of the last one; a batch may reach from one epoch into the next.

        At the very end the last batch is short, and with several ranks up to `ranks - 1` samples are left out.

        Raises:
            UserError: the state is of other data or another order, or more samples are damaged than allowed.
        """
        for damage in self.index.damage if self.rank == 0 else ():
            print(f"damaged tar {damage}", file=sys.stderr, flush=True)
        for batch in self.dataset(epochs, state).dataloader():
            if isinstance(batch, UserError):
                raise batch
            self._count(batch)
            yield batch

    def _count(self, batch: Batch) -> None:
        for name, reason in batch.damaged.items():
            if name not in self.damaged:
                self.damaged[name] = reason
                print(f"damaged sample {name}: {reason}", file=sys.stderr, flush=True)
        if len(self.damaged) > self.limit:
            name, reason = next(iter(self.damaged.items()))
            raise UserError(
                f"{len(self.damaged)} samples are damaged, and damage_limit allows {self.limit}; the first: "
                f"{name}: {reason}"
            )


class Batches:
    """Batches of one rank by number: what torch's DataLoader deals to its workers."""

    def __init__(self, loader: Loader, start: int, stop: int) -> None:
        self.index, self.options, self.order = loader.index, loader.options, loader.order
        self.tokenize = loader.tokenize
        self.rank, self.ranks = loader.rank, loader.ranks
        self.start, self.stop = start, max(start, stop)
        self.step = self.options.batch_size * self.ranks
        self.data = self.index.digest
        self._ahead: dict[int, Future[list[bytes | Exception]]] = {}
        self._lane: ThreadPoolExecutor | None = None
        self._shared: Slots | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": {}, "_lane": None}

    def __len__(self) -> int:
        whole, rest = divmod(self.stop - self.start, self.step)
        return whole + (rest >= self.ranks)

    def dataloader(self) -> Any:
        """torch's DataLoader of all batches in order."""
        from torch.utils.data import DataLoader

        workers = self.options.workers
        if workers:
            self._shared = Slots(workers * PREFETCHED + SPARE, self.options.batch_size, self.options.size)
        return DataLoader(
            self,  # type: ignore[arg-type]
            batch_size=None,
            sampler=_Orders(len(self), self._shared),
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=self.options.pin_memory,
            worker_init_fn=_one_thread,
        )

    def _samples(self, number: int) -> list[tuple[int, int]]:
        """(epoch, sample) of the rank's part of a batch."""
        first, last = self._span(number)
        each = (last - first) // self.ranks
        return self.order.at(first + self.rank * each, first + (self.rank + 1) * each)

    def _span(self, number: int) -> tuple[int, int]:
        first = self.start + number * self.step
        return first, min(first + self.step, self.stop)

    def __getitem__(self, order: tuple[int, int | None]) -> Batch | UserError:
        """The batch of a number, made in a slot of shared memory if one is named, or why there is none.

        Raised in a worker, an error would arrive as a traceback.
        """
        try:
            return self._batch(*order)
        except UserError as error:
            return error

    def _batch(self, number: int, slot: int | None) -> Batch:
        places = self._samples(number)
        damaged: dict[str, str] = {}
        blocks = self._blocks(number, places)
        samples = [self._usable(place, block, damaged) for place, block in zip(places, blocks, strict=True)]
        texts = [sample.text for sample in samples]
        return Batch(
            images=self._images(samples, slot),
            texts=texts,
            tokens=self.tokenize(texts) if self.tokenize else None,
            keys=[sample.key for sample in samples],
            state=self.order.state(self._span(number)[1], self.data),
            damaged=damaged,
        )

    def _images(self, samples: Sequence[Sample], slot: int | None) -> Any:
        import torch

        size, count = self.options.size, len(samples)
        if slot is None or self._shared is None:
            pixels = np.empty((count, size, size, 3), np.uint8)
            return torch.from_numpy(_into(pixels, samples)).permute(0, 3, 1, 2)
        _into(self._shared.pixels(slot, count), samples)
        return Filled(self._shared, slot, count)

    def _blocks(self, number: int, slots: Sequence[tuple[int, int]]) -> list[bytes | Exception]:
        """The batch's bytes; from a network, those of this process's next batch are asked for meanwhile."""
        if not self.index.files.is_remote():
            return self._read(slots)
        ready = self._ahead.pop(number, None)
        blocks = ready.result() if ready else self._read(slots)
        following = number + _processes()
        if following < len(self):
            self._lane = self._lane or ThreadPoolExecutor(1)
            self._ahead = {following: self._lane.submit(self._read, self._samples(following))}
        return blocks

    def _read(self, slots: Sequence[tuple[int, int]]) -> list[bytes | Exception]:
        return self.index.read([sample for _, sample in slots])

    def _usable(self, slot: tuple[int, int], block: bytes | Exception, damaged: dict[str, str]) -> Sample:
        """The sample, or the first usable one of others that belong to it and the epoch."""
        epoch, number = slot
        others = generator(self.order.seed, epoch, number, "instead").integers(len(self.index), size=SUBSTITUTES)
        for candidate in (number, *map(int, others)):
            try:
                data = block if candidate == number else self.index.read([candidate])[0]
                return make(self.index.keys[candidate].as_py(), data, epoch, self.options)
            except Unusable as problem:
                damaged[self.index.name(candidate)] = str(problem)
        name, reason = next(iter(damaged.items()))
        raise UserError(f"{SUBSTITUTES + 1} samples drawn in a row are damaged; the first: {name}: {reason}")


def _into(pixels: Pixels, samples: Sequence[Sample]) -> Pixels:
    for at, sample in enumerate(samples):
        pixels[at] = sample.pixels
    return pixels


def _one_thread(worker: int) -> None:
    """Torch sees to itself; OpenCV would use all cores in each worker."""
    import cv2

    cv2.setNumThreads(1)


class _Orders:
    """What is dealt to workers, as often as one asks."""

    def __init__(self, batches: int, shared: Slots | None) -> None:
        self.batches, self.shared = batches, shared

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[int, int | None]]:
        return self.shared.orders(self.batches) if self.shared else ((number, None) for number in range(self.batches))


def _processes() -> int:
    from torch.utils.data import get_worker_info

    worker = get_worker_info()
    return worker.num_workers if worker else 1


def make(key: str, block: bytes | Exception, epoch: int, options: LoaderOptions) -> Sample:
    """A sample as it is shown in an epoch.

    Raises:
        Unusable: its bytes, image or text are missing or damaged.
    """
    if isinstance(block, Exception):
        raise Unusable(f"cannot be read ({block})")
    data, caption, passport = parts(block)
    rng = generator(options.seed, epoch, key)
    chosen = choose(caption or str(passport.get("caption") or ""), passport, options.captions, rng)
    if not chosen.text.strip():
        raise Unusable("has no caption")
    try:
        image = images.opened(data)
        view = _view(image.size, options, rng, chosen.oriented)
        pixels = images.render(image, view, options.size)
    except Exception as error:
        raise Unusable(f"its image cannot be decoded ({error})") from error
    told = restated(passport, view.source_pixels) if options.captions.gsd == "restate" else ""
    return Sample(pixels, f"{chosen.text} {told}" if told else chosen.text, key)


def _view(size: tuple[int, int], options: LoaderOptions, rng: np.random.Generator, upright: bool) -> images.View:
    if options.augment is None:
        return images.centre_view(*size, options.size)
    return images.random_view(*size, options.size, options.augment, rng, upright)


def parts(block: bytes) -> tuple[bytes, str, Passport]:
    """(image, caption, passport) of a sample's tar block; caption and passport may be empty.

    Raises:
        Unusable: the block is damaged, or there is no image in it.
    """
    try:
        found = tars.contents(block)
    except tars.DamagedTar as error:
        raise Unusable(str(error)) from error
    image = next((found[name] for name in IMAGES if name in found), None)
    if image is None:
        raise Unusable(f"has no image, only {', '.join(sorted(found)) or 'nothing'}")
    text = next((found[name] for name in TEXTS if name in found), b"")
    try:
        passport = json.loads(found["json"]) if "json" in found else {}
    except ValueError as error:
        raise Unusable(f"its json cannot be read ({error})") from error
    return image, text.decode("utf-8", "replace"), passport if isinstance(passport, dict) else {}
