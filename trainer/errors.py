"""What a trainer tells its user instead of a traceback: one sentence."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in an option, a config or a folder; the message names it, what was found and what is accepted."""


class Failed(Exception):
    """A run that cannot go on, for no mistake of its options; the message says where it stands and what is left."""
