"""The fetcher: one URL in, its bytes or a reason out, within limits of time, bytes, redirects and patience."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import re
import resource
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from stages.errors import UnitError
from stages.fetch import robots, tdmrep
from stages.fetch.addresses import BlockedAddressError, Guard
from stages.fetch.encoding import TooLargeError, decoded
from stages.fetch.hosts import Host, HostDownError
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
HEADER_BYTES, HEADERS = 16_384, 128
"""Of one response header, and how many of them."""
KEPT_ALIVE_S = 5.0
"""Seconds that an idle connection stays open: in a long tail of hosts most are never used again."""
OPEN_FILES = 65_536
"""Wished for, where the machine's hard limit allows it: connections are files."""
FOREIGN_SHARE = 4
"""A host that only redirects lead to belongs to another lane: of its limits, this fraction may be used here."""
_READ = 1 << 16
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
        self._session = self._open_session()

    def _open_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,
            resolver=GuardedResolver(self._guard, CachingResolver(self.options.nameservers)),
            socket_factory=self._guard.socket,
            keepalive_timeout=KEPT_ALIVE_S,
            use_dns_cache=False,  # the resolver's own keeps to the TTLs
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            max_headers=HEADERS,
            headers={
                "User-Agent": self.options.user_agent,
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

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
            await host.leave()

    async def _ask(self, url: URL, host: Host, request: _Attempt) -> bytes | URL:
        """`_get`, once it is our turn: only now time counts."""
        began = time.monotonic()
        request.sent, request.status = True, None
        try:
            async with asyncio.timeout(request.seconds_left) as request.timer, self._respond(url) as response:
                request.status = response.status
                return await self._accept(response, url, host, request)
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

    @asynccontextmanager
    async def _respond(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response, its connection's failures told as `FetchError`s."""
        try:
            async with asyncio.timeout(self.options.first_byte_s):
                response = await self._session.get(url, allow_redirects=False)
            async with response:
                yield response
        except TimeoutError:
            raise  # aiohttp's own is an OSError too; ours cuts the attempt
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise UnitError("too many open files: raise the limit (ulimit -n), or lower concurrency") from error
            raise FetchError(_reason(error)) from error

    async def _accept(self, response: aiohttp.ClientResponse, url: URL, host: Host, request: _Attempt) -> bytes | URL:
        status = response.status
        if status in REDIRECTS and "Location" in response.headers:
            host.answered()
            return redirected(url, response.headers["Location"])
        if not 200 <= status <= 299:
            wait = _retry_after(response.headers.get("Retry-After"))
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

    def _check_opt_out(self, response: aiohttp.ClientResponse, url: URL, request: _Attempt) -> None:
        options = self.options
        if not options.respect_opt_outs:
            return
        tags = response.headers.getall("X-Robots-Tag", [])
        reservations = response.headers.getall("TDM-Reservation", [])
        refused = heeded(tags, reservations, options.agent, options.opt_out_directives)
        if refused is None and not reservations:
            refused = request.reservations.heeded(url.raw_path_qs)
        if refused is not None:
            request.honoured = refused
            raise FetchError("opt_out", response.status)

    async def _short_body(self, response: aiohttp.ClientResponse) -> bytes:
        """As much of a file about the host as counts."""
        body = bytearray()
        async for piece in response.content.iter_chunked(_READ):
            body += piece
            if len(body) >= robots.MAX_BYTES:
                break
        encoding = response.headers.get("Content-Encoding", "")
        try:
            return decoded(bytes(body[: robots.MAX_BYTES]), encoding, robots.MAX_BYTES)
        except TooLargeError as error:
            return error.beginning

    async def _body(self, response: aiohttp.ClientResponse, request: _Attempt) -> bytes:
        """The body, counted as it comes; a large one waits for a place."""
        limit = self.options.max_bytes
        announced = response.content_length
        if announced is not None and announced > limit:
            raise FetchError("too_large", response.status)
        body = bytearray()
        pieces = response.content.iter_chunked(_READ)
        async for piece in pieces:
            body += piece
            if len(body) > min(SMALL_BODY, limit):
                break
        if len(body) > SMALL_BODY and len(body) <= limit:
            async with self._large_place(request):
                async for piece in pieces:
                    body += piece
                    if len(body) > limit:
                        break
        if len(body) > limit:
            raise FetchError("too_large", response.status)
        try:
            return decoded(bytes(body), response.headers.get("Content-Encoding", ""), limit)
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


def _reason(error: BaseException) -> str:
    """The reason behind an exception of the HTTP client."""
    if _is_blocked(error):
        return "blocked_address"
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError | aiohttp.ServerFingerprintMismatch):
        return "tls"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(error, aiohttp.InvalidURL):
        return "bad_url"
    if isinstance(error, aiohttp.ClientResponseError | ValueError):
        return "http_error"
    return "connect"


def _is_blocked(error: BaseException | None) -> bool:
    """Whether the address guard spoke, however deep the client wrapped it."""
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, BlockedAddressError) or isinstance(getattr(error, "os_error", None), BlockedAddressError):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


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
