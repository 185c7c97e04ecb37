"""The errors a user can meet, each mapped to one policy, and the words their sentences share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """The recipe, the command line or an input is wrong: one sentence, exit code 2."""


class UnitError(Exception):
    """One unit cannot be done (a broken file, a missing column): the stage finishes the rest, then exits 1."""

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.detail = detail
        """The traceback of the worker, for `--debug`."""


class TransientError(Exception):
    """Something outside failed for now: the unit is tried again with backoff."""


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """` (did you mean 'x'?)`, or nothing when no known name is near."""
    near = difflib.get_close_matches(str(name), [str(item) for item in known], n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def listing(names: Iterable[Any]) -> str:
    """Names for the end of a sentence."""
    return ", ".join(str(name) for name in names)
