from __future__ import annotations

import pytest

from demo.corpus import Corpus, build


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """The demo's corpus as `make demo` builds it."""
    return build()
