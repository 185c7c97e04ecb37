"""Exit codes and messages: a user's mistake is one sentence, never a traceback."""

from __future__ import annotations

import logging
import shlex
import sys
import traceback
from collections.abc import Callable

from curation.redact import redact
from stages.errors import TransientError, UnitError, UserError


def set_up_logging(*, debug: bool) -> None:
    """Log lines with the time on stderr; the libraries' own chatter only with `--debug`."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("curation").setLevel(logging.DEBUG if debug else logging.INFO)


def exit_code(work: Callable[[], int], *, debug: bool) -> int:
    """Run `work`; 2 for a wrong recipe or command line, 1 for a failed run, with one line on stderr."""
    try:
        return work()
    except UserError as error:
        return _tell("error", error, 2, debug=debug)
    except (UnitError, TransientError) as error:
        if debug and isinstance(error, UnitError):
            print(error.detail, file=sys.stderr)
        return _tell("failed", error, 1, debug=debug, hint=f"; to resume: {_command()}")
    except KeyboardInterrupt:
        print(f"interrupted; to resume: {_command()}", file=sys.stderr)
        return 130
    except Exception as error:
        hint = f"; to resume: {_command()}; --debug shows where it happened"
        return _tell("failed", f"{type(error).__name__}: {error}", 1, debug=debug, hint=hint)


def _tell(kind: str, error: Exception | str, code: int, *, debug: bool, hint: str = "") -> int:
    if debug:
        traceback.print_exc()
    sentence = " ".join(redact(str(error)).split())
    print(f"{kind}: {sentence}{redact(hint)}", file=sys.stderr)
    return code


def _command() -> str:
    """The command that was typed, to type again; `--force` would start over what is to be resumed."""
    module = sys.modules["__main__"].__spec__
    program = ["python", "-m", module.name] if module else ["curation"]
    return shlex.join([*program, *sys.argv[1:]])
