"""Names of classes as people write them."""

from __future__ import annotations

import re

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SPACES = re.compile(r"[\s_]+")


def words(name: str) -> str:
    """`DenseResidential` and `dense_residential` as `dense residential`; hyphens stay."""
    return _SPACES.sub(" ", _CAMEL.sub(" ", name)).strip().lower()
