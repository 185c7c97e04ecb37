"""`python -m trainer.captioner`: fine-tune BLIP2 on captioned images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from trainer.captioner.options import PRECISIONS, TARGETS, Settings
from trainer.errors import Failed, UserError

DESCRIPTION = """\
Fine-tune BLIP2 on captioned images with LoRA in the attention of its image encoder, as RS5M's captioner was made.
OUT gets adapter/ (a PEFT folder), meteor.json (METEOR on images held out, before and after), log.jsonl, checkpoints/.
"""
EXAMPLES = """\
examples:
  python -m trainer.captioner --model Salesforce/blip2-opt-6.7b --data RSITMD/metadata.jsonl --out runs/captioner
  python -m trainer.captioner --model DIR/blip2 --data 'runs/rs3/shards/train/*.tar' \\
      --val-data 'runs/rs3/shards/val/*.tar' --out runs/captioner --resume

Then, in a recipe: `captions: {model: Salesforce/blip2-opt-6.7b, adapter: runs/captioner/adapter}`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; a user's mistake is one sentence and status 2, a run that cannot go on one sentence and status 1."""
    options: dict[str, Any] = vars(parser().parse_args(arguments))
    try:
        given = {name: value for name, value in options.items() if value is not None}
        said: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        settings = Settings(**said)
        from trainer.captioner.training import train

        result = train(settings)
    except (UserError, Failed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    metric = result["metric"]
    print(f"{metric}: {result['before'][metric]:.4f} before, {result['after'][metric]:.4f} after")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options; what is not said has the default of `Settings`."""
    found = argparse.ArgumentParser(
        prog="python -m trainer.captioner",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = {each.name: each.default for each in fields(Settings) if each.default is not MISSING}

    def add(name: str, kind: type, text: str, **others: object) -> None:
        shown = f" (default {defaults[name]})" if name in defaults else ""
        found.add_argument("--" + name.replace("_", "-"), type=kind, help=text + shown, **others)  # type: ignore[arg-type]

    tars = "pattern of tars, folder with metadata.jsonl, captions.jsonl or a CSV of these names, or such a file"
    add("model", str, "hub id or folder of a BLIP2 with OPT", required=True)
    found.add_argument("--data", action="append", required=True, metavar="PLACE", help=f"{tars}; may be repeated")
    found.add_argument("--val-data", action="append", metavar="PLACE", help="what METEOR is measured on")
    add("out", Path, "folder of the results", required=True)
    add("held_out", float, "share kept for METEOR without --val-data, unless the table has a column `split`")
    add("epochs", int, "of all images")
    add("batch_size", int, "images of a step")
    add("lr", float, "of AdamW; it warms up and falls to 0 as half a cosine")
    add("warmup", int, "steps")
    add("weight_decay", float, "of AdamW")
    add("rank", int, "of LoRA's matrices")
    add("alpha", float, "LoRA's weight is alpha / rank")
    add("dropout", float, "before LoRA's matrices")
    found.add_argument("--targets", nargs="+", help=f"ends of names of linear modules (default {' '.join(TARGETS)})")
    add("max_tokens", int, "of a caption")
    add("judged", int, "images that METEOR is measured on, at most")
    add("precision", str, "of the frozen weights; auto: bf16 on a GPU", choices=PRECISIONS)
    add("seed", int, "of the order, the captions drawn, dropout and the adapter's weights")
    add("workers", int, "processes that read and decode")
    add("checkpoint_every", int, "steps")
    add("device", str, "where it runs", choices=("auto", "cpu", "cuda"))
    found.add_argument("--resume", action="store_true", help="go on from OUT's last checkpoint, if there is one")
    return found


if __name__ == "__main__":
    sys.exit(main())
