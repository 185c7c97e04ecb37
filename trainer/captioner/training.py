"""The training of a captioner: METEOR before, seeded steps, METEOR after each epoch; the best adapter is kept."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from trainer.captioner import meteor
from trainer.captioner.data import Captioned, Source, divide, read
from trainer.captioner.model import Captioner, adapter_state, load_adapter, make, save_adapter
from trainer.captioner.options import Settings
from trainer.data.loader import LEAST_LIMIT, Unusable
from trainer.errors import Failed, UserError
from trainer.training.checkpoint import FOLDER, guarded, newest, told
from trainer.training.log import Log
from trainer.training.model import replace_with
from trainer.training.step import learning_rate

ADAPTER, RESULT = "adapter", "meteor.json"
KEPT = 2
"""Checkpoints."""
DAMAGED_SHARE = 0.01
EXAMPLES = 10
"""Captions in the result, before and after."""


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0
    before: dict[str, Any] = field(default_factory=dict)
    """METEOR and captions without the adapter."""
    best: dict[str, Any] = field(default_factory=dict)
    """The same with the best one so far, and its step."""
    damaged: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """What workers hand over: images that could be used, and what could not."""

    images: list[Captioned]
    damaged: dict[str, str]


@dataclass(frozen=True)
class Images:
    """Batches of a source by lists of numbers, for torch's DataLoader."""

    source: Source

    def __getitem__(self, numbers: Sequence[int]) -> Batch:
        images, damaged = [], {}
        for number in numbers:
            try:
                images.append(self.source.load(number))
            except Unusable as problem:
                damaged[self.source.names[number]] = str(problem)
        return Batch(images, damaged)


def train(settings: Settings) -> dict[str, Any]:
    """Fine-tune to the end; returns what `meteor.json` holds.

    Raises:
        UserError: a mistake in the settings, or too much damage in the data.
        Failed: the loss is no number, or a file cannot be written.
    """
    if newest(settings.out) and not settings.resume:
        raise UserError(f"--out {settings.out}: it has checkpoints; say --resume to go on, or another --out")
    source = read(settings.data, "--data")
    if settings.val_data:
        judged: Source = read(settings.val_data, "--val-data")
        numbers, held = list(range(len(source))), list(range(len(judged)))
    else:
        judged = source
        numbers, held = divide(source, settings.held_out)
    captioner = make(settings, _device(settings.device))
    training = Training(settings, captioner, source, numbers, judged, _drawn(held, settings))
    return training.run()


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU here; accepted: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _drawn(held: Sequence[int], settings: Settings) -> list[int]:
    """At most `judged` of the images that are held out."""
    order = np.random.default_rng([settings.seed, 1]).permutation(len(held))[: settings.judged]
    return [held[number] for number in sorted(order)]


class Training:
    """A run."""

    def __init__(
        self,
        settings: Settings,
        captioner: Captioner,
        source: Source,
        numbers: Sequence[int],
        judged: Source,
        held: Sequence[int],
    ) -> None:
        self.settings, self.captioner = settings, captioner
        self.source, self.numbers, self.judged, self.held = source, numbers, judged, held
        self.each_epoch = -(-len(numbers) // settings.batch_size)
        self.steps = self.each_epoch * settings.epochs
        self.optimizer = torch.optim.AdamW(captioner.trained, lr=settings.lr, weight_decay=settings.weight_decay)
        self.progress = Progress()
        self.limit = max(LEAST_LIMIT, int(DAMAGED_SHARE * (len(source) + len(judged))))

    def run(self) -> dict[str, Any]:
        """Every step that is left, and what is due after it."""
        found = newest(self.settings.out) if self.settings.resume else None
        if found:
            self._restore(found)
        with guarded(self.settings.out, "folder"):
            self.settings.out.mkdir(parents=True, exist_ok=True)
        self._announce()
        log = Log(self.settings.out, self.progress.step, self.steps)
        try:
            if not self.progress.before:
                with self.captioner.model.disable_adapter():
                    self.progress.before = self._judge()
                self._tell(log, self.progress.before)
            for batch in self._batches():
                self._step(batch, log)
                self._due(log)
        finally:
            log.close()
        return self._result()

    def _announce(self) -> None:
        count = sum(weight.numel() for weight in self.captioner.trained)
        every = sum(weight.numel() for weight in self.captioner.model.parameters())
        print(
            f"{len(self.numbers)} images to train on, METEOR on {len(self.held)} ({meteor.label()}); LoRA trains"
            f" {count:,} of {every:,} parameters, {self.captioner.device.type},"
            f" {str(self.captioner.dtype).removeprefix('torch.')}",
            file=sys.stderr,
            flush=True,
        )

    def _batches(self) -> Iterator[Batch]:
        """Every image once an epoch, in an order of seed and epoch, from the step on that is next."""
        size, start = self.settings.batch_size, self.progress.step
        lists = []
        for epoch in range(self.settings.epochs):
            order = np.random.default_rng([self.settings.seed, 2, epoch]).permutation(len(self.numbers))
            lists += [[self.numbers[at] for at in order[n : n + size]] for n in range(0, len(order), size)]
        yield from self._loaded(self.source, lists[start:])

    def _loaded(self, source: Source, lists: Sequence[Sequence[int]]) -> Iterator[Batch]:
        workers = self.settings.workers
        loader: Any = DataLoader(Images(source), batch_size=None, sampler=lists, num_workers=workers)  # type: ignore[arg-type]
        for batch in loader:
            self._count(batch.damaged)
            yield batch

    def _count(self, damaged: dict[str, str]) -> None:
        for name, reason in damaged.items():
            if name not in self.progress.damaged:
                self.progress.damaged[name] = reason
                print(f"damaged image {name}: {reason}", file=sys.stderr, flush=True)
        if len(self.progress.damaged) > self.limit:
            name, reason = next(iter(self.progress.damaged.items()))
            raise UserError(
                f"{len(self.progress.damaged)} images cannot be used, and {self.limit} may; the first: {name}: {reason}"
            )

    def _step(self, batch: Batch, log: Log) -> None:
        """One batch, of which each image is paired with one of its captions, drawn by seed and step."""
        settings, step = self.settings, self.progress.step
        rate = learning_rate(step, self.steps, settings.lr, settings.warmup)
        self.progress.step += 1
        if not batch.images:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([settings.seed, 3, step])
        texts = [image.captions[int(rng.integers(len(image.captions)))] for image in batch.images]
        torch.manual_seed(int(rng.integers(2**62)))  # of dropout
        self.captioner.train()
        self.optimizer.zero_grad(set_to_none=True)
        pixels = self.captioner.pixels([image.image for image in batch.images])
        loss = self.captioner.loss(pixels, *self.captioner.tokens(texts, settings.max_tokens))
        if not math.isfinite(loss.item()):
            names = ", ".join(image.name for image in batch.images[:3])
            raise Failed(f"step {step + 1}: the loss is no finite number on {names}…; {told(settings.out)}")
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        row = {"step": step + 1, "epoch": round((step + 1) / self.each_epoch, 6), "loss": loss.item(), "lr": rate}
        with guarded(settings.out, "log"):
            log.add(row, len(batch.images), time.monotonic())

    def _due(self, log: Log) -> None:
        """After an epoch METEOR, and the adapter if it is the best; then, or every so many steps, a checkpoint."""
        step = self.progress.step
        ended = step % self.each_epoch == 0
        if ended:
            found = self._judge() | {"step": step}
            better = not self.progress.best or found[meteor.label()] > self.progress.best[meteor.label()]
            self._tell(log, found | {"best": better})
            if better:
                self.progress.best = found
                with guarded(self.settings.out, "adapter"):
                    save_adapter(self.captioner, self.settings.out / ADAPTER)
        if ended or step % self.settings.checkpoint_every == 0:
            self._save()

    def _tell(self, log: Log, found: dict[str, Any]) -> None:
        row = {"step": self.progress.step} | {name: value for name, value in found.items() if name != "captions"}
        with guarded(self.settings.out, "log"):
            log.validated(row)

    def _judge(self) -> dict[str, Any]:
        """METEOR on the images that are held out, and the first captions."""
        size = self.settings.batch_size
        lists = [self.held[start : start + size] for start in range(0, len(self.held), size)]
        names: list[str] = []
        captions: list[str] = []
        references: list[list[str]] = []
        for batch in self._loaded(self.judged, lists):
            if batch.images:
                pixels = self.captioner.pixels([image.image for image in batch.images])
                captions += self.captioner.write(pixels, self.settings.max_tokens)
                references += [image.captions for image in batch.images]
                names += [image.name for image in batch.images]
        if not captions:
            raise UserError("none of the images that METEOR is to be measured on can be used")
        shown = dict(zip(names[:EXAMPLES], captions, strict=False))
        return {**meteor.scores(captions, references, self.settings.seed), "images": len(captions), "captions": shown}

    def _result(self) -> dict[str, Any]:
        result = {"metric": meteor.label(), "before": self.progress.before, "after": self.progress.best}
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        with guarded(self.settings.out, "result"):
            replace_with(self.settings.out / RESULT, lambda file: file.write(text.encode()))
        return result

    def _save(self) -> None:
        content = {
            "identity": json.dumps(self._identity()),
            "progress": json.dumps(vars(self.progress)),
            "weights": adapter_state(self.captioner),
            "optimizer": self.optimizer.state_dict(),
        }
        path = self.settings.out / FOLDER / f"step-{self.progress.step:08d}.pt"
        with guarded(self.settings.out, f"checkpoint of step {self.progress.step}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_with(path, lambda file: torch.save(content, file))
        for old in sorted(path.parent.glob("step-*.pt"))[:-KEPT]:
            old.unlink()

    def _identity(self) -> dict[str, Any]:
        return {**self.settings.identity(), "data": self.source.digest, "val_data": self.judged.digest}

    def _restore(self, path: Path) -> None:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            was = json.loads(found["identity"])
        except Exception as error:  # pickles and zips fail in their own ways
            raise UserError(f"--resume: {path} cannot be read ({' '.join(str(error).split())[:200]})") from error
        for name, now in self._identity().items():
            if was.get(name) != now:
                raise UserError(
                    f"--resume: {path} is of another training: {name} was {was.get(name)!r}, now {now!r}; say the same"
                    " or give another --out"
                )
        load_adapter(self.captioner, found["weights"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.progress = Progress(**json.loads(found["progress"]))
