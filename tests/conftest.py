"""Fixtures for the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real Ray cluster of two CPUs in this process, one for all tests that take it."""
    import ray

    from curation.execute import start_ray

    start_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images and captions; the test is skipped where there is none."""
    folder = os.environ.get("CURATION_REAL_DATA")
    if not folder:
        pytest.skip("CURATION_REAL_DATA is not set")
    return Path(folder)
