"""What a fetcher knows of a host, by a clock that is turned by hand."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from stages.fetch import hosts
from stages.fetch.hosts import BREAK_AFTER, DOWN_SECONDS, MOST_PAUSE, PATIENCE, Host, HostDownError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(hosts, "time", made)
    parts = {name: getattr(asyncio, name) for name in ("Condition", "CancelledError")}
    monkeypatch.setattr(hosts, "asyncio", SimpleNamespace(sleep=made.sleep, **parts))
    return made


def waited(clock: Clock, host: Host) -> float:
    """Seconds until the host lets a request in; it is over at once."""

    async def once() -> None:
        await host.enter()
        host.leave()

    before = clock.now
    asyncio.run(once())
    return clock.now - before


def test_pauses_double_until_an_answer_comes(clock: Clock) -> None:
    host = Host(8, patience=1e9)
    pauses = []
    for _ in range(8):
        host.throttled(503, None)
        pauses.append(waited(clock, host))
    assert pauses == [1, 2, 4, 8, 16, MOST_PAUSE, MOST_PAUSE, MOST_PAUSE]
    host.answered()
    host.throttled(429, None)
    assert waited(clock, host) == 1


@pytest.mark.parametrize(("asked", "given"), [(7.0, 7.0), (0.0, 1.0), (86_400.0, MOST_PAUSE)])
def test_retry_after_counts_within_bounds(clock: Clock, asked: float, given: float) -> None:
    host = Host(8)
    host.throttled(429, asked)
    assert waited(clock, host) == given


def test_answers_to_requests_from_before_the_pause_do_not_prolong_it(clock: Clock) -> None:
    host = Host(8)
    for _ in range(8):
        host.throttled(429, 5.0)
    assert waited(clock, host) == 5


def test_after_a_pause_one_goes_first_and_each_answer_lets_in_one_more(clock: Clock) -> None:
    host = Host(4)
    host.throttled(429, 1.0)
    limits = [host.limit]
    for _ in range(5):
        host.answered()
        limits.append(host.limit)
    assert limits == [1, 2, 3, 4, 4, 4]


def test_patience_ends_and_comes_back(clock: Clock) -> None:
    host = Host(8)
    pauses = 0
    while not host.is_down:
        host.throttled(429, MOST_PAUSE)
        clock.now += MOST_PAUSE
        pauses += 1
    assert pauses == PATIENCE // MOST_PAUSE + 1
    with pytest.raises(HostDownError):
        waited(clock, host)
    clock.now += DOWN_SECONDS
    assert waited(clock, host) == 0


def test_failures_one_after_another_break_the_circuit_and_one_more_does_again(clock: Clock) -> None:
    host = Host(8)
    for _ in range(BREAK_AFTER - 1):
        host.failed()
    host.answered()
    for _ in range(BREAK_AFTER - 1):
        host.failed()
    assert not host.is_down
    host.failed()
    assert host.is_down
    clock.now += DOWN_SECONDS + 1
    assert not host.is_down
    host.failed()
    assert host.is_down


def test_a_rate_spaces_requests(clock: Clock) -> None:
    host = Host(8, rate=4.0)
    assert [waited(clock, host) for _ in range(4)] == [0, 0.25, 0.25, 0.25]
    clock.now += 10
    assert waited(clock, host) == 0


def test_limits_only_grow(clock: Clock) -> None:
    host = Host(2, rate=1.0)
    host.allow(8, 4.0)
    assert (host.per_host, host.limit, host.rate) == (8, 8, 4.0)
    host.throttled(429, 1.0)
    host.allow(8, 4.0)
    assert host.limit == 1


def test_whoever_gives_up_waiting_leaves_the_slot_to_the_next() -> None:
    async def work() -> None:
        host = Host(per_host=1)
        await host.enter()
        first, second, third = (asyncio.create_task(host.enter()) for _ in range(3))
        await asyncio.sleep(0)
        third.cancel()
        host.leave()
        first.cancel()  # it was its turn
        await asyncio.wait_for(second, 5)
        assert host.active == 1
        assert first.cancelled()
        assert third.cancelled()

    asyncio.run(work())
