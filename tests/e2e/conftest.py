"""One Ray head, one world and one undisturbed run for all end-to-end tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.head import Head, start_head
from tests.e2e.world import World, build
from tests.webserver import serving


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    # The path of a Ray session's sockets must stay short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = start_head(Path(folder))
        yield head
        head.stop()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, ray_head: Head) -> Iterator[World]:
    with serving() as server:
        yield build(tmp_path_factory.mktemp("world"), server, ray_head.env)


@pytest.fixture(scope="session")
def calm(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that nothing disturbed: to look at and to copy, not to change."""
    root = tmp_path_factory.mktemp("calm") / "root"
    world.run(root)
    return root


@pytest.fixture
def copy(calm: Path, tmp_path: Path) -> Path:
    """A copy of the calm root, to change."""
    return Path(shutil.copytree(calm, tmp_path / "root"))
