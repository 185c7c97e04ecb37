"""What a fetcher knows about a host, for all of its URLs: how many requests at once, from when, if at all."""

from __future__ import annotations

import asyncio
import time
from collections import deque

BREAK_AFTER = 5
"""Failures to connect, one after another, after which a host counts as down…"""
DOWN_SECONDS = 300.0
"""… until one request may try again."""
FIRST_PAUSE = 1.0
MOST_PAUSE = 30.0
"""A server's Retry-After counts up to here."""
PATIENCE = 120.0
"""Seconds that a host may make us wait before its other URLs are given up for now…"""
EARNED = 5.0
"""… and what every answer earns back."""


class HostDownError(Exception):
    """No request is sent to this host for now."""


class Host:
    """Concurrency, rate, pauses and circuit breaker of one host. Belongs to one event loop."""

    def __init__(self, per_host: int, rate: float | None = None, patience: float = PATIENCE) -> None:
        self.per_host = per_host
        self.rate = rate
        """Requests a second."""
        self.patience = patience
        self.limit = per_host
        """Requests at once: 1 after being throttled, then one more with every answer."""
        self.active = 0
        self.last_status: int | None = None
        self.has_answered = False
        self._failures = 0
        self._throttles = 0
        self._waited = 0.0
        self._resume_at = 0.0
        self._down_until = 0.0
        self._next_at = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def allow(self, per_host: int, rate: float | None) -> None:
        """Raise the limits to these."""
        if per_host > self.per_host:
            self.limit += per_host - self.per_host if self.limit == self.per_host else 0
            self.per_host = per_host
        self.rate = rate

    @property
    def is_down(self) -> bool:
        """Whether requests are pointless for now."""
        return time.monotonic() < self._down_until

    async def enter(self) -> None:
        """Wait for a slot, and for the end of a pause.

        Raises:
            HostDownError: the host is down, or went down meanwhile.
        """
        while True:
            if self.is_down:
                raise HostDownError
            pause = self._resume_at - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            elif self.active < self.limit:
                self.active += 1
                if self.rate is None or await self._take_turn(self.rate):
                    return
                self.leave()
            else:
                await self._wait_for_news()

    async def _wait_for_news(self) -> None:
        news = asyncio.get_running_loop().create_future()
        self._waiting.append(news)
        try:
            await news
        except asyncio.CancelledError:
            if not news.cancelled():
                self._tell()  # the news was for somebody who can use it
            raise

    def _tell(self) -> None:
        """Wake those who can go on: as many as there are slots, or, after bad news, all."""
        is_bad = self.is_down or self._resume_at > time.monotonic()
        left = len(self._waiting) if is_bad else self.limit - self.active
        while left > 0 and self._waiting:
            news = self._waiting.popleft()
            if not news.done():
                news.set_result(None)
                left -= 1

    async def _take_turn(self, rate: float) -> bool:
        """With a slot in hand, wait until the rate allows a request; False when bad news came meanwhile."""
        at = max(self._next_at, time.monotonic())
        self._next_at = at + 1 / rate
        await self._sleep_with_slot(at - time.monotonic())
        return not self.is_down and self._resume_at <= time.monotonic()

    async def _sleep_with_slot(self, seconds: float) -> None:
        try:
            await asyncio.sleep(max(seconds, 0))
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        """Give the slot back. After bad news everyone waiting looks again."""
        self.active -= 1
        if self._waiting:
            self._tell()

    def answered(self) -> None:
        """A response came that is no wish to be left alone."""
        self.has_answered = True
        self._failures = self._throttles = 0
        self._waited = max(self._waited - EARNED, 0.0)
        self.limit = min(self.limit + 1, self.per_host)

    def failed(self) -> None:
        """A request got no response."""
        self._failures += 1
        if self._failures >= BREAK_AFTER:
            self._break()

    def throttled(self, status: int | None, retry_after: float | None) -> None:
        """The host asked to wait (429, 503, Retry-After): pause all of its URLs, longer each time."""
        self._failures = 0
        self.last_status = status
        now = time.monotonic()
        if now < self._resume_at:
            return  # an answer to a request sent before the pause began
        pause = retry_after if retry_after is not None else FIRST_PAUSE * 2**self._throttles
        pause = min(max(pause, FIRST_PAUSE), MOST_PAUSE)
        self._throttles += 1
        self._waited += pause
        self.limit = 1
        self._resume_at = now + pause
        if self._waited > self.patience:
            self._break()

    def _break(self) -> None:
        self._down_until = time.monotonic() + DOWN_SECONDS
        self._resume_at = 0.0
        self._failures = BREAK_AFTER - 1
        self._waited = 0.0
