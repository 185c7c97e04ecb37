"""The one error of a trainer's user: a sentence, not a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in an option, a config or a folder; the message names it, what was found and what is accepted."""
