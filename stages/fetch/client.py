"""The fetcher: one URL in, its bytes or a reason out, within limits of time, bytes, redirects and patience."""

from __future__ import annotations

import asyncio
import hashlib
import re
import resource
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from yarl import URL

from stages.fetch import robots, tdmrep
from stages.fetch.addresses import Guard
from stages.fetch.encoding import TooLargeError, decoded
from stages.fetch.hosts import Host, HostDownError
from stages.fetch.http import Connections, Response
from stages.fetch.opt_out import heeded
from stages.fetch.options import FetchOptions
from stages.fetch.outcome import Fetched, FetchError
from stages.fetch.resolver import CachingResolver, GuardedResolver
from stages.fetch.robots import Rules
from stages.fetch.target import parse_url, redirected
from stages.fetch.tdmrep import Reservations

REDIRECTS = frozenset([301, 302, 303, 307, 308])
THROTTLING = frozenset([429, 503])
SMALL_BODY = 1 << 20
"""A body beyond this size waits for one of `LARGE_BODIES` places, which bounds the memory of bodies."""
LARGE_BODIES = 8
OPEN_FILES = 65_536
"""Wished for, where the machine's hard limit allows it: connections are files."""
FOREIGN_SHARE = 4
"""A host that only redirects lead to belongs to another lane: of its limits, this fraction may be used here."""
_T = TypeVar("_T")


class Fetcher:
    """Fetches URLs concurrently in one event loop; what it learns of hosts serves all of their URLs."""

    def __init__(self, options: FetchOptions) -> None:
        self.options = options
        self._guard = Guard(options.allowed)
        self._hosts: dict[str, Host] = {}
        self._files: dict[str, asyncio.Task[Any]] = {}
        self._places = asyncio.Semaphore(options.concurrency)
        self._large = asyncio.Semaphore(LARGE_BODIES)
        _raise_file_limit()
        headers = [("User-Agent", options.user_agent), ("Accept", "image/*,*/*;q=0.5"), ("Accept-Encoding", "identity")]
        resolver = GuardedResolver(self._guard, CachingResolver(options.nameservers))
        self._connections = Connections(resolver, self._guard, headers)

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    async def fetch(self, url: str) -> Fetched:
        """The bytes behind `url`, or why there are none.

        Transient failures are tried again, but a timeout only at a host that has answered before: the others are
        dead or tarpits nearly always, and would hold up their chunk for as many timeouts as there are attempts.

        Raises:
            UnitError: this machine is out of files for connections, which is no URL's fault.
        """
        try:
            parsed = parse_url(url)
        except ValueError:
            return Fetched(reason="bad_url")
        self._host(parsed, is_ours=True)
        attempts = 0
        last: FetchError | None = None
        while True:
            request = _Attempt(self.options.timeout_s)
            try:
                data = await self._follow(parsed, request)
                return Fetched(data=data, http_status=request.status, attempts=attempts + 1, honoured=request.honoured)
            except FetchError as error:
                attempts += request.sent
                last = error if request.sent or last is None else last
                host = self._host(parsed)
                hopeless = host.is_down or (error.reason == "timeout" and not host.has_answered)
                again = error.is_transient and request.sent and attempts <= self.options.retries
                if not again or hopeless:
                    return Fetched(
                        reason=last.reason,
                        http_status=last.http_status,
                        attempts=attempts,
                        honoured=request.honoured,
                    )
            await asyncio.sleep(self._pause(url, attempts))

    def _pause(self, url: str, attempts: int) -> float:
        """Exponential backoff; its jitter is drawn from the URL, so that no generator is shared."""
        jitter = hashlib.blake2b(f"{attempts}{url}".encode("utf-8", "replace"), digest_size=1).digest()[0] / 255
        return float(self.options.backoff_s * 2 ** (attempts - 1) * (0.5 + jitter / 2))

    async def _follow(self, url: URL, request: _Attempt) -> bytes:
        """One attempt: the request and its redirects, each checked like the first."""
        for _ in range(self.options.max_redirects + 1):
            self._check_address(url)
            if self.options.respect_robots:
                await self._check_robots(url, request)
            if self.options.respect_opt_outs and self.options.respect_tdmrep:
                request.reservations = await self._once(url, tdmrep.PATH, self._fetch_reservations)
            answer = await self._get(url, request)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise FetchError("too_many_redirects", request.status)

    def _check_address(self, url: URL) -> None:
        if self._guard.blocks_host(url.host or ""):
            raise FetchError("blocked_address")

    async def _check_robots(self, url: URL, request: _Attempt) -> None:
        """Ask the origin's rules, asked for once by all of its URLs."""
        try:
            rules = await self._once(url, "/robots.txt", self._fetch_rules)
        except FetchError as error:
            request.sent = error.reason != "host_down"
            raise FetchError(error.reason, error.http_status) from error
        allowed, request.honoured = rules.verdict(url.raw_path_qs)
        if not allowed:
            raise FetchError("robots")

    async def _once(self, url: URL, path: str, work: Callable[[URL], Coroutine[Any, Any, _T]]) -> _T:
        """`work` on the file at `path` of the URL's origin, done once for all; a failure is not kept."""
        key = f"{url.scheme}://{url.raw_authority}{path}"
        task: asyncio.Task[_T] | None = self._files.get(key)
        if task is None:
            task = self._files[key] = asyncio.create_task(work(url.origin().with_path(path)))
        elif task.done() and not task.exception():
            return task.result()
        try:
            return await asyncio.shield(task)
        except FetchError:
            if self._files.get(key) is task:
                del self._files[key]
            raise

    async def _fetch_rules(self, url: URL) -> Rules:
        """robots.txt: none (any 4xx) allows everything, a server's error is the server's, and transient."""
        try:
            body = await self._fetch_file(url)
        except FetchError as error:
            if error.reason == "http_error" and not error.is_transient:
                return Rules()
            raise
        if body is None:
            return Rules()  # a redirect loop is as good as no file (RFC 9309, 2.3.1.2)
        return robots.parse(body.decode("utf-8", "replace"), self.options.agent)

    async def _fetch_reservations(self, url: URL) -> Reservations:
        """tdmrep.json; where it cannot be had, nothing is reserved."""
        try:
            return tdmrep.parse(await self._fetch_file(url) or b"")
        except FetchError:
            return Reservations()

    async def _fetch_file(self, url: URL) -> bytes | None:
        """A host's file about itself, redirects followed; None when they do not end."""
        request = _Attempt(self.options.timeout_s, is_about_host=True)
        for _ in range(self.options.max_redirects + 1):
            self._check_address(url)
            answer = await self._get(url, request)
            if isinstance(answer, bytes):
                return answer
            url = answer
        return None

    async def _get(self, url: URL, request: _Attempt) -> bytes | URL:
        """One request: the body of a 2xx, or where a redirect leads.

        Raises:
            FetchError: everything else.
        """
        host = self._host(url)
        try:
            await host.enter()
        except HostDownError:
            raise FetchError("host_down", host.last_status) from None
        try:
            async with self._places:
                return await self._ask(url, host, request)
        finally:
            host.leave()

    async def _ask(self, url: URL, host: Host, request: _Attempt) -> bytes | URL:
        """`_get`, once it is our turn: only now time counts."""
        began = time.monotonic()
        request.sent, request.status = True, None
        try:
            async with asyncio.timeout(min(self.options.first_byte_s, request.seconds_left)) as request.timer:
                response = await self._connections.get(url)
                try:
                    if not response.is_complete:
                        request.timer.reschedule(began + request.seconds_left)
                    request.status = response.status
                    return await self._accept(response, url, host, request)
                finally:
                    self._connections.release(response)
        except TimeoutError:
            self._note_silence(host, request, "timeout")
            raise FetchError("timeout", request.status) from None
        except FetchError as error:
            self._note_silence(host, request, error.reason)
            raise
        finally:
            request.seconds_left -= time.monotonic() - began

    @staticmethod
    def _note_silence(host: Host, request: _Attempt, reason: str) -> None:
        """A host without response, or whose bodies never end, may be down; a blocked or insecure one is just that."""
        if reason == "timeout" or (request.status is None and reason in ("dns", "connect")):
            host.failed()

    def _host(self, url: URL, *, is_ours: bool = False) -> Host:
        name = (url.raw_host or "").removesuffix(".")
        rate = self.options.per_host_rate
        host = self._hosts.get(name)
        if host is None:
            foreign_rate = rate / FOREIGN_SHARE if rate is not None else None
            host = self._hosts[name] = Host(max(self.options.per_host // FOREIGN_SHARE, 1), foreign_rate)
        if is_ours:
            host.allow(self.options.per_host, rate)
        return host

    async def _accept(self, response: Response, url: URL, host: Host, request: _Attempt) -> bytes | URL:
        status = response.status
        location = response.header(b"location") if status in REDIRECTS else None
        if location is not None:
            host.answered()
            return redirected(url, location)
        if not 200 <= status <= 299:
            wait = _retry_after(response.header(b"retry-after"))
            if status in THROTTLING or (wait is not None and status >= 500):
                host.throttled(status, wait)
            else:
                host.answered()
            raise FetchError("http_error", status, wait)
        if request.is_about_host:
            body = await self._short_body(response)
        else:
            self._check_opt_out(response, url, request)
            body = await self._body(response, request)
        host.answered()
        return body

    def _check_opt_out(self, response: Response, url: URL, request: _Attempt) -> None:
        options = self.options
        if not options.respect_opt_outs:
            return
        tags = response.all(b"x-robots-tag")
        reservations = response.all(b"tdm-reservation")
        refused = heeded(tags, reservations, options.agent, options.opt_out_directives)
        if refused is None and not reservations:
            refused = request.reservations.heeded(url.raw_path_qs)
        if refused is not None:
            request.honoured = refused
            raise FetchError("opt_out", response.status)

    async def _short_body(self, response: Response) -> bytes:
        """As much of a file about the host as counts."""
        await response.load(robots.MAX_BYTES)
        body = response.body[: robots.MAX_BYTES]
        try:
            return decoded(body, response.header(b"content-encoding") or "", robots.MAX_BYTES)
        except TooLargeError as error:
            return error.beginning

    async def _body(self, response: Response, request: _Attempt) -> bytes:
        """The body, counted as it comes; a large one waits for a place."""
        limit = self.options.max_bytes
        announced = response.header(b"content-length")
        if announced is not None and int(announced) > limit:
            raise FetchError("too_large", response.status)
        is_whole = await response.load(min(SMALL_BODY, limit))
        if not is_whole and response.size <= limit:
            async with self._large_place(request):
                is_whole = await response.load(limit)
        if not is_whole:
            raise FetchError("too_large", response.status)
        try:
            return decoded(response.body, response.header(b"content-encoding") or "", limit)
        except TooLargeError:
            raise FetchError("too_large", response.status) from None

    @asynccontextmanager
    async def _large_place(self, request: _Attempt) -> AsyncIterator[None]:
        """A place for a large body. The wait for it is ours, not the server's: the clock stands still."""
        began, deadline = time.monotonic(), request.timer.when()
        request.timer.reschedule(None)
        async with self._large:
            waited = time.monotonic() - began
            request.seconds_left += waited
            request.timer.reschedule(None if deadline is None else deadline + waited)
            yield


class _Attempt:
    """One attempt at a URL, redirects included: the time it has left, and what it saw."""

    def __init__(self, seconds: float, *, is_about_host: bool = False) -> None:
        self.seconds_left = seconds
        self.is_about_host = is_about_host
        """It is for robots.txt or tdmrep.json."""
        self.sent = False
        self.status: int | None = None
        self.honoured: str | None = None
        self.reservations = Reservations()
        self.timer = asyncio.Timeout(None)


def _raise_file_limit() -> None:
    """Let this process have more connections, as far as that is its own to decide."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wished = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wished:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wished, hard))


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if value is None:
        return None
    if re.fullmatch("[0-9]+", value.strip()):
        return float(value.strip()[:9])
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max((at - datetime.now(UTC)).total_seconds(), 0.0)
