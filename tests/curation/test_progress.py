"""What a user sees while workers are at it, on a real Ray cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from io import StringIO

import pytest
import ray

from curation import progress
from curation.progress import Board, BoardClient, Display

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def soon(is_so: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds."""
    end = time.monotonic() + 10
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    return is_so()


def work(board: Board) -> None:
    with BoardClient(board) as client:
        client.add(3, 2, 1)


def test_counts_are_held_back_until_the_board_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SEND_EVERY_S", 0.0)
    board = Board("all", "a board of its own")
    client = BoardClient(board.of("fetch"))
    client.add(3, 2, 1)
    assert board.of("fetch").read() == (0, 0, 0)
    board.open()
    client.add(1, 1, 0)
    assert soon(lambda: board.of("fetch").read() == (4, 3, 1))
    assert board.of("another").read() == (0, 0, 0)


def test_counts_of_workers_are_shown_before_their_unit_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.4)
    monkeypatch.setattr(progress, "LEAD_S", 0.2)
    caplog.set_level(logging.INFO, logger="curation")
    with Display(StringIO()).phase("toy", "map", rows=10, units=1) as shown:

        def is_shown() -> bool:
            return any("3 of 10 rows" in line and "kept 2, dropped 1, unit 0/1" in line for line in caplog.messages)

        assert soon(lambda: shown.board.add(0, 0, 0)), "the display opens no board"
        ray.get(ray.remote(num_cpus=0)(work).remote(shown.board))
        assert soon(is_shown)
