"""Secrets stay out of everything that is written or printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"secret|token|passw|credential|signature|^key$|_key$|api_?key|access_?key|private|connection_string|sas"
    r"|^auth$|authorization|cookie",
    re.I,
)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+@|(?<=s3://)[^/:@\s]+:[^@\s]+@")
_SECRET_QUERY = re.compile(
    r"(?i)([?&](?:[\w-]*(?:signature|token|secret|credential|accesskeyid|password|apikey|api_key)|sig|key)=)[^&#\s'\"]+"
)
_known: set[str] = set()


def learn(options: Any) -> None:
    """Remember the secret values of storage options, so that `redact` finds them in any text."""
    for value in _secrets(options, inside=False):
        if len(value) >= 6:
            _known.add(value)


def known() -> frozenset[str]:
    """What `learn` has remembered: for handing on to worker processes."""
    return frozenset(_known)


def learn_values(values: frozenset[str]) -> None:
    """Remember secret values, in a worker process."""
    _known.update(values)


def _secrets(value: Any, *, inside: bool) -> list[str]:
    if isinstance(value, Mapping):
        found = []
        for name, item in value.items():
            found += _secrets(item, inside=inside or bool(_SECRET_NAME.search(str(name))))
        return found
    if isinstance(value, list | tuple):
        return [secret for item in value for secret in _secrets(item, inside=inside)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(value)] if inside else []
    if isinstance(value, str):
        user = _USER_IN_URL.search(value)
        return ([value] if inside else []) + (user.group()[:-1].split(":", 1) if user else [])
    return []


def redact(text: str) -> str:
    """`text` without credentials: those in URLs, in signed query strings, and those learnt."""
    text = _USER_IN_URL.sub(f"{HIDDEN}@", text)
    text = _SECRET_QUERY.sub(rf"\1{HIDDEN}", text)
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def redact_tree(value: Any, *, within_storage: bool = False) -> Any:
    """A recipe or config with its secrets replaced."""
    if isinstance(value, Mapping):
        return {
            name: HIDDEN
            if within_storage and _SECRET_NAME.search(str(name)) and not isinstance(item, bool | None)
            else redact_tree(item, within_storage=within_storage or name == "storage_options")
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_tree(item, within_storage=within_storage) for item in value]
    return redact(value) if isinstance(value, str) else value
