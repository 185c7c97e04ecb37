"""Works that are given up when nothing else comes, and works that are not."""

from __future__ import annotations

import asyncio
import time

import pytest

from stages.fetch.stragglers import finished


def run(seconds: dict[str, float], grace: float | None, kept: frozenset[str] = frozenset()) -> set[str]:
    """Works that take so long, of which those in `kept` may not be given up; returns those that ended."""
    ended: set[str] = set()

    async def work(name: str) -> None:
        await asyncio.sleep(seconds[name])
        ended.add(name)

    works = {name: work(name) for name in seconds}
    asyncio.run(finished(works, frozenset(seconds) - kept, grace))
    return ended


def test_works_that_hold_up_the_others_are_given_up() -> None:
    began = time.monotonic()
    quick = {str(number): 0.0 for number in range(50)}
    assert run(quick | {"slow": 60.0}, grace=0.2) == set(quick)
    assert time.monotonic() - began < 30


def test_what_is_beyond_asking_is_waited_for() -> None:
    assert run({"a": 0.0, "b": 0.9, "c": 60.0}, grace=0.2, kept=frozenset("b")) == {"a", "b"}


def test_works_go_on_while_enough_of_them_come() -> None:
    steady = {str(number): number * 0.1 for number in range(20)}
    assert run(steady, grace=0.5) == set(steady)


def test_without_hurry_everything_is_waited_for() -> None:
    assert run({"a": 0.0, "b": 0.5}, grace=None) == {"a", "b"}


def test_the_first_error_ends_all() -> None:
    async def work(seconds: float) -> None:
        await asyncio.sleep(seconds)
        raise ValueError(f"after {seconds}")

    began = time.monotonic()
    with pytest.raises(ValueError, match="after 0"):
        asyncio.run(finished({"a": work(0.0), "b": work(60.0)}, frozenset(), None))
    assert time.monotonic() - began < 30
