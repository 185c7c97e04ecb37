"""`python -m experiments.subset`: so many samples of some tars, drawn without regard to anything, as tars of their own.

What a filter is compared with: a random subset of the same size. Samples are copied as they are, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.data import Index, open_index
from trainer.errors import UserError

END = bytes(1024)
"""Of a tar."""
AT_ONCE = 256


def draw(index: Index, count: int, seed: int, out: Path, each: int = 10_000) -> None:
    """Write `count` samples to tars of at most `each` in `out`, in the order of the old tars, and `sizes.json`.

    Raises:
        UserError: there are not so many samples, or one cannot be read.
    """
    if not 0 < count <= len(index):
        raise UserError(f"{count} samples of {len(index)}: at least 1 and at most all of them are wanted")
    numbers = np.sort(np.random.default_rng([seed, 3]).choice(len(index), count, replace=False))
    out.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for tar, start in enumerate(range(0, count, each)):
        name = f"subset-{tar:04d}.tar"
        chosen = numbers[start : start + each]
        _write(index, chosen.tolist(), out / name)
        sizes[name] = len(chosen)
    (out / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")


def _write(index: Index, numbers: Sequence[int], path: Path) -> None:
    with path.open("wb") as file:
        for start in range(0, len(numbers), AT_ONCE):
            some = numbers[start : start + AT_ONCE]
            for number, block in zip(some, index.read(some), strict=True):
                if isinstance(block, Exception):
                    raise UserError(f"{index.name(number)}: it cannot be read ({block})") from block
                file.write(block)
        file.write(END)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; a mistake is one sentence and status 2."""
    parser = argparse.ArgumentParser(prog="python -m experiments.subset", description=__doc__)
    parser.add_argument("--data", required=True, action="append", metavar="TARS", help="may be repeated")
    parser.add_argument("--count", type=int, required=True, help="samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        draw(open_index(options.data), options.count, options.seed, options.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
