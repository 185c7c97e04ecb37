"""The errors a user can meet, each mapped to one policy."""


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
