"""The command line of `python -m trainer.train`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.adapters.options import KINDS
from trainer.errors import Failed, UserError
from trainer.training.options import FREEZE, PRECISIONS, Job, load, presets

DESCRIPTION = (
    "Train a CLIP on tars of images with texts, on this machine, under torchrun, or with --ray on a cluster."
    " OUT gets model/ (an open_clip folder), best.pt (a plain state dict), checkpoints/ and log.jsonl."
)
GIVEN = (
    *(
        "model",
        "pretrained",
        "checkpoint",
        "epochs",
        "samples",
        "batch_size",
        "lr",
        "warmup",
        "weight_decay",
        "clip",
        "ema",
    ),
    *("precision", "freeze", "chunk", "seed"),
)
"""Keys of the config that have an option of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; a user's mistake is one sentence and status 2, a run that cannot go on one sentence and status 1."""
    options = parser().parse_args(arguments)
    try:
        run(job_of(options), options.ray)
    except (UserError, Failed) as error:
        rank = os.environ.get("RANK", "0")
        print(f"rank {rank}: {error}" if rank != "0" else error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The options; those without a default here have one in the config."""
    found = argparse.ArgumentParser(prog="python -m trainer.train", description=DESCRIPTION)
    add = found.add_argument
    add("--data", required=True, action="append", metavar="TARS", help="pattern or URL of tars; may be repeated")
    add("--out", required=True, type=Path, help="folder of the results")
    add("--val-data", action="append", default=[], metavar="TARS", help="what the best weights are chosen on")
    add("--preset", metavar="NAME|FILE", help=f"settings: {', '.join(presets())}, or a YAML file")
    add("--model", help="open_clip name, hub id (org/name), or open_clip folder")
    add("--pretrained", help="open_clip's tag of weights")
    add("--checkpoint", help="state dict to begin with: open_clip's, GeoRSCLIP's or ITRA's")
    add("--quick-gelu", choices=("yes", "no"), help="the activation of a checkpoint's model, where nothing records it")
    add("--epochs", type=int)
    add("--samples", type=int, help="samples seen in all, in place of whole epochs")
    add("--batch-size", type=int, help="samples of a step, over all processes")
    add("--lr", type=float)
    add("--warmup", type=int, help="steps")
    add("--weight-decay", type=float)
    add("--clip", type=float, help="largest norm of the gradient; 0: any")
    add("--ema", type=float, help="decay of averaged weights; 0: none")
    add("--precision", choices=PRECISIONS)
    add("--freeze", choices=FREEZE, help="the tower that stays as it is")
    add("--chunk", type=int, help="samples of a process that are held at once (GradCache); 0: all of a step")
    add("--peft", choices=KINDS, help="parts that are trained instead of the whole model")
    add("--seed", type=int)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting; may be repeated")
    add("--resume", action="store_true", help="go on from OUT's last checkpoint, if there is one")
    add("--workers", type=int, default=2, help="processes that read and decode, for each that trains")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--ray", type=int, metavar="N", help="train in N processes of a Ray cluster")
    return found


def job_of(options: argparse.Namespace) -> Job:
    """What the command line asks for.

    Raises:
        UserError: a value is not accepted.
    """
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: at least 0 is wanted")
    said: dict[str, Any] = {name: getattr(options, name) for name in GIVEN if getattr(options, name) is not None}
    if options.quick_gelu:
        said["quick_gelu"] = options.quick_gelu == "yes"
    kind = [f"peft.kind={options.peft}"] if options.peft else []
    return Job(
        config=load(options.preset, said, [*kind, *options.set]),
        data=tuple(options.data),
        val_data=tuple(options.val_data),
        out=options.out,
        resume=options.resume,
        device=options.device,
        workers=options.workers,
    )


def run(job: Job, ray: int | None = None) -> None:
    """Train here, or in so many processes of a Ray cluster.

    Raises:
        UserError, Failed: as `loop.train`.
    """
    if ray is None:
        from trainer.training.loop import train

        train(job)
        return
    from trainer.training.on_ray import train_on_ray

    train_on_ray(job, ray)
