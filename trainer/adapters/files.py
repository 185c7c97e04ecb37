"""Trained parts on disk: one safetensors file whose header tells how they are attached."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.adapters.attach import Report, apply, load_trainable, trainable_state
from trainer.adapters.options import PeftOptions
from trainer.errors import UserError

NAME = "peft.safetensors"
"""In an open_clip folder beside the weights that the parts were trained with."""
HEADER = "peft"


def save(model: Any, options: PeftOptions, path: Path) -> None:
    """Write the parts of a model to a file at once, with their options; for `none` they are all of its weights."""
    from safetensors.torch import save as packed

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trainable_state(model).items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(packed(state, metadata={HEADER: json.dumps(asdict(options), sort_keys=True)}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def attach_saved(model: Any, path: Path) -> Report:
    """Put the parts of a file into the model that they were trained with (or another of the same shapes).

    Raises:
        UserError: no such file, a file that `save` did not write, or one of another model.
    """
    options, state = _read(path)
    found = apply(model, options, seed=0)
    load_trainable(model, state)
    return found


def is_saved(folder: Path) -> bool:
    """Whether an open_clip folder has parts beside its weights."""
    return (folder / NAME).is_file()


def _read(path: Path) -> tuple[PeftOptions, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {})[HEADER])
            return PeftOptions.from_mapping(said), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: the file of trained parts was not found") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no file of trained parts ({' '.join(str(error).split())[:200]})") from error
