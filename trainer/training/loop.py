"""The training: batches in order, a step each, and what is due after a step: log, validation, checkpoint."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from trainer.data import Batch, Index, Loader, LoaderOptions, open_index
from trainer.errors import Failed, UserError
from trainer.evaluation.model import identifier
from trainer.training import checkpoint
from trainer.training.checkpoint import Progress, guarded, newest, told
from trainer.training.log import Log
from trainer.training.model import Clip, export, make
from trainer.training.options import Config, Job
from trainer.training.step import Average, Figures, optimizer_for, take
from trainer.training.validation import Validation
from trainer.training.world import World, joined

EFFECTIVE = "config.yaml"
STOPPED = "stopped.json"


def train(job: Job) -> None:
    """Train to the end, on this process's rank.

    Raises:
        UserError: a mistake in the job, or too much damage in its data.
        Failed: the loss is no number, or a file cannot be written.
    """
    with joined(job.device) as world:
        _refuse_to_overwrite(job)
        chunk = _chunk(job.config, world)
        index = open_index(job.data)
        judged = open_index(job.val_data) if job.val_data else None
        clip = make(job.config, world.device)
        loader = _loader(index, job, world, clip, chunk)
        progress = _start(job, clip, index)
        validation = Validation(judged, clip, world, job.workers) if judged else None
        if world.is_first:
            _announce(job, clip, index, world)
        Training(job, world, loader, progress, validation).run()


def _refuse_to_overwrite(job: Job) -> None:
    found = newest(job.out)
    if found and not job.resume:
        raise UserError(f"--out {job.out}: it has {found.name} of a training; say --resume to go on, or another --out")


def _chunk(config: Config, world: World) -> int:
    """Samples that a rank puts through the model at once."""
    if config.batch_size % world.ranks:
        raise UserError(f"batch_size is {config.batch_size}; a multiple of the {world.ranks} ranks is wanted")
    each = config.batch_size // world.ranks
    if config.chunk and each % config.chunk:
        raise UserError(f"chunk is {config.chunk}; a divisor of the {each} samples that a rank has in a step is wanted")
    return config.chunk or each


def _loader(index: Index, job: Job, world: World, clip: Clip, chunk: int) -> Loader:
    config = job.config
    options = LoaderOptions(
        batch_size=chunk,
        size=clip.size,
        seed=config.seed,
        run=config.run,
        augment=config.augment,
        captions=config.captions,
        damage_limit=config.damage_limit,
        workers=job.workers,
        pin_memory=world.device.type == "cuda",
    )
    return Loader(index, options, rank=world.rank, ranks=world.ranks, tokenize=clip.tokenizer)


def _start(job: Job, clip: Clip, index: Index) -> Progress:
    if clip.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    progress = Progress(
        clip=clip,
        optimizer=optimizer_for(clip),
        scaler=torch.amp.GradScaler(clip.device.type, enabled=job.config.precision == "fp16"),
        average=Average.of(clip),
    )
    found = newest(job.out) if job.resume else None
    if found:
        checkpoint.restore(progress, found)
        if progress.state and progress.state.data != index.digest:
            raise UserError(
                f"--resume: {found} is of other samples than --data has now; give the same or another --out"
            )
    return progress


def _announce(job: Job, clip: Clip, index: Index, world: World) -> None:
    import yaml

    from trainer.adapters.attach import report

    effective = yaml.safe_dump(_plain(job.config.plain()), sort_keys=False)
    with guarded(job.out, "config"):
        job.out.mkdir(parents=True, exist_ok=True)
        (job.out / EFFECTIVE).write_text(effective, encoding="utf-8")
    activation = "QuickGELU" if clip.described["quick_gelu"] else "GELU"
    machine = f"{world.ranks} {world.device.type} process{'es' * (world.ranks > 1)}"
    print(
        f"{len(index)} samples, {job.config.model} ({_beginning(job.config)}) with {activation},"
        f" {job.config.precision}, {machine}\n"
        f"{report(clip.model, job.config.peft.kind)}",
        file=sys.stderr,
        flush=True,
    )


def _beginning(config: Config) -> str:
    """Where the weights come from."""
    if config.checkpoint or config.pretrained:
        return str(config.checkpoint or config.pretrained)
    name, folder = identifier(config.model)
    return "its own weights" if folder or name.startswith("hf-hub:") else "untrained"


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


class Training:
    """One rank of a run."""

    def __init__(
        self, job: Job, world: World, loader: Loader, progress: Progress, validation: Validation | None
    ) -> None:
        self.job, self.world, self.loader, self.progress, self.validation = job, world, loader, progress, validation
        self.config, self.clip = job.config, progress.clip
        self.chunks = self.config.batch_size // world.ranks // loader.options.batch_size
        """Of a step."""
        self.epochs = -(-self.config.samples // len(loader.index)) if self.config.samples else self.config.epochs
        self.steps = self._all_steps()
        """Of the whole training; the last may be short."""
        self.log = Log(job.out, progress.step, self.steps) if world.is_first else None
        self.waiting: tuple[int, float, float, Figures] | None = None
        """(step, epoch, time, figures) of the last step, not read yet, since reading waits for the device."""

    def _all_steps(self) -> int:
        steps = -(-self.loader.steps(self.epochs) // self.chunks)
        wanted = self.config.samples
        return min(steps, -(-wanted // self.config.batch_size)) if wanted else steps

    def run(self) -> None:
        """Every step that is left, then the result."""
        self.clip.train()
        try:
            for parts in self._batches():
                self._step(parts)
            self._settle()
            self._finish()
        finally:
            if self.log:
                self.log.close()

    def _batches(self) -> Iterator[list[Batch]]:
        """The chunks of one step after another."""
        parts: list[Batch] = []
        for part in self.loader.batches(self.epochs, self.progress.state):
            if self.progress.step == self.steps:
                return
            parts.append(part)
            if len(parts) == self.chunks:
                yield parts
                parts = []
        if parts:
            yield parts

    def _step(self, parts: list[Batch]) -> None:
        progress = self.progress
        before = self._position()
        found = take(
            self.clip,
            progress.optimizer,
            progress.scaler,
            parts,
            self.world,
            step=progress.step,
            steps=self.steps,
        )
        if progress.average:
            progress.average.follow(self.clip, progress.step)
        progress.step, progress.state = progress.step + 1, parts[-1].state
        self._settle()
        self.waiting = progress.step, self._position() / len(self.loader.index), time.monotonic(), found
        if self._is_judged_after(before):
            self._settle()
            self._judge()
            self._save()
        elif progress.step % self.config.checkpoint_every == 0:
            self._settle()
            self._save()

    def _position(self) -> int:
        """Samples seen by all ranks."""
        state = self.progress.state
        return state.epoch * len(self.loader.index) + state.samples if state else 0

    def _is_judged_after(self, before: int) -> bool:
        """Whether the step that just ended is followed by a validation; the last one is."""
        every, count = self.config.validate_every, len(self.loader.index)
        if self.progress.step == self.steps:
            return True
        if not self.validation:
            return False
        return self.progress.step % every == 0 if every else before // count < self._position() // count

    def _settle(self) -> None:
        """Read the figures of the last step and log them.

        Raises:
            Failed: they are no numbers.
        """
        if self.waiting is None:
            return
        (step, epoch, ended, found), self.waiting = self.waiting, None
        loss, repeats, norm = found.values.tolist()
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.progress.scaler.is_enabled()):
            self._stop(step, f"the {'gradient' if math.isfinite(loss) else 'loss'} is no finite number", found)
        if self.log:
            row = {
                "step": step,
                "epoch": round(epoch, 6),
                "loss": loss,
                "lr": found.lr,
                "gradient_norm": norm if math.isfinite(norm) else None,
                "logit_scale": float(found.scale),
                "same_text": repeats,
            }
            with guarded(self.job.out, "log"):
                self.log.add(row, len(found.keys) * self.world.ranks, ended)

    def _stop(self, step: int, why: str, found: Figures) -> None:
        keys = [key for rank in self.world.objects(found.keys) for key in rank]
        path = self.job.out / STOPPED
        if self.world.is_first:
            text = json.dumps({"step": step, "why": why, "keys": keys}, indent=1) + "\n"
            with guarded(self.job.out, "list of the batch's keys"):
                path.write_text(text, encoding="utf-8")
        raise Failed(
            f"step {step}: {why}; its {len(keys)} samples, {', '.join(keys[:3])}…, are listed in {path};"
            f" {told(self.job.out)}"
        )

    def _judge(self) -> None:
        """Validate, and export the weights if they are the best so far."""
        if not self.validation:
            return
        with _Averaged(self.progress):
            figures = self.validation.figures()
            if not self.log:
                return
            value = figures["mR"] if self.config.select == "retrieval" else -figures["loss"]
            better = self.progress.best is None or value > self.progress.best
            if better:
                self.progress.best = value
                self._export()
        with guarded(self.job.out, "log"):
            self.log.validated({"step": self.progress.step} | figures | {"best": better})

    def _export(self) -> None:
        with guarded(self.job.out, "model"):
            export(self.clip, self.job.out)

    def _save(self) -> None:
        if self.world.is_first:
            checkpoint.save(self.progress, self.job.out)

    def _finish(self) -> None:
        """The result of a run without validation is its last weights."""
        if self.world.is_first and not self.validation:
            with _Averaged(self.progress):
                self._export()


class _Averaged:
    """Within, the model has its averaged weights, if there are any."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    def _swap(self) -> None:
        if self.progress.average:
            self.progress.average.swap(self.progress.clip)
