"""The fetcher: one URL in, its bytes or a reason out, within limits of time, bytes, redirects and patience."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
import ssl
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
from aiohttp.resolver import AsyncResolver
from yarl import URL

from stages.fetch import robots
from stages.fetch.addresses import BlockedAddressError, Guard
from stages.fetch.hosts import Host, HostDownError
from stages.fetch.opt_out import opted_out
from stages.fetch.options import FetchOptions
from stages.fetch.outcome import Fetched, FetchError
from stages.fetch.resolver import GuardedResolver
from stages.fetch.robots import Rules

REDIRECTS = frozenset([301, 302, 303, 307, 308])
THROTTLING = frozenset([429, 503])
SMALL_BODY = 1 << 20
"""A body beyond this size waits for one of `LARGE_BODIES` places, which bounds the memory of bodies."""
LARGE_BODIES = 8
_READ = 1 << 16
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


class Fetcher:
    """Fetches URLs concurrently in one event loop; what it learns of hosts serves all of their URLs."""

    def __init__(self, options: FetchOptions) -> None:
        self.options = options
        self._guard = Guard(options.allowed)
        self._hosts: dict[str, Host] = {}
        self._rules: dict[str, asyncio.Task[Rules]] = {}
        self._places = asyncio.Semaphore(options.concurrency)
        self._large = asyncio.Semaphore(LARGE_BODIES)
        self._session = self._open_session()

    def _open_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,
            resolver=GuardedResolver(self._guard, AsyncResolver()),
            socket_factory=self._guard.socket,
            ttl_dns_cache=300,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
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
        """The bytes behind `url`, or why there are none. Transient failures are tried again; nothing is raised."""
        try:
            parsed = parse_url(url)
        except ValueError:
            return Fetched(reason="bad_url")
        attempts = 0
        last: FetchError | None = None
        while True:
            request = _Attempt(self.options.timeout_s)
            try:
                data = await self._follow(parsed, request)
                return Fetched(data=data, http_status=request.status, attempts=attempts + 1)
            except FetchError as error:
                attempts += request.sent
                last = error if request.sent or last is None else last
                again = error.is_transient and request.sent and attempts <= self.options.retries
                if not again or self._host(parsed).is_down:
                    return Fetched(reason=last.reason, http_status=last.http_status, attempts=attempts)
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
            answer = await self._get(url, request)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise FetchError("too_many_redirects", request.status)

    def _check_address(self, url: URL) -> None:
        if self._guard.blocks_host(url.host or ""):
            raise FetchError("blocked_address")

    async def _check_robots(self, url: URL, request: _Attempt) -> None:
        origin = url.origin()
        rules = await self._rules_of(origin, request)
        if not rules.allows(url.raw_path_qs):
            raise FetchError("robots")

    async def _rules_of(self, origin: URL, request: _Attempt) -> Rules:
        """The origin's rules, asked for once by all of its URLs; a failure is not kept."""
        key = str(origin)
        task = self._rules.get(key)
        if task is None:
            task = self._rules[key] = asyncio.create_task(self._fetch_rules(origin))
        try:
            return await asyncio.shield(task)
        except FetchError as error:
            request.sent = error.reason != "host_down"
            if self._rules.get(key) is task:
                del self._rules[key]
            raise FetchError(error.reason, error.http_status) from error

    async def _fetch_rules(self, origin: URL) -> Rules:
        """robots.txt: none (any 4xx) allows everything, a server's error is the server's, and transient."""
        request = _Attempt(self.options.timeout_s, is_robots=True)
        url = origin.with_path("/robots.txt")
        try:
            for _ in range(self.options.max_redirects + 1):
                self._check_address(url)
                answer = await self._get(url, request)
                if isinstance(answer, bytes):
                    return robots.parse(answer.decode("utf-8", "replace"), self.options.agent)
                url = answer
        except FetchError as error:
            if error.reason == "http_error" and not error.is_transient:
                return Rules()
            raise
        return Rules()  # a redirect loop is as good as no file (RFC 9309, 2.3.1.2)

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
            async with asyncio.timeout(request.seconds_left), self._respond(url) as response:
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
        """A host that gave no response may be down; a blocked or insecure one is just that."""
        if request.status is None and reason in ("dns", "connect", "timeout"):
            host.failed()

    def _host(self, url: URL) -> Host:
        return self._hosts.setdefault(url.raw_host or "", Host(self.options.per_host))

    @asynccontextmanager
    async def _respond(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response, its connection's failures told as `FetchError`s."""
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                yield response
        except TimeoutError:
            raise  # aiohttp's own is an OSError too; ours cuts the attempt
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise FetchError(_reason(error)) from error

    async def _accept(self, response: aiohttp.ClientResponse, url: URL, host: Host, request: _Attempt) -> bytes | URL:
        status = response.status
        if status in REDIRECTS and "Location" in response.headers:
            host.answered()
            return _target(url, response.headers["Location"])
        if not 200 <= status <= 299:
            wait = _retry_after(response.headers.get("Retry-After"))
            if status in THROTTLING or (wait is not None and status >= 500):
                host.throttled(status, wait)
            else:
                host.answered()
            raise FetchError("http_error", status, wait)
        if request.is_robots:
            body = await self._robots_body(response)
        else:
            self._check_opt_out(response)
            body = await self._body(response)
        host.answered()
        return body

    def _check_opt_out(self, response: aiohttp.ClientResponse) -> None:
        tags = response.headers.getall("X-Robots-Tag", [])
        reservation = response.headers.get("TDM-Reservation")
        options = self.options
        if options.respect_opt_outs and opted_out(tags, reservation, options.agent, options.opt_out_directives):
            raise FetchError("opt_out", response.status)

    async def _robots_body(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for piece in response.content.iter_chunked(_READ):
            body += piece
            if len(body) >= robots.MAX_BYTES:
                break
        return _decoded(bytes(body[: robots.MAX_BYTES]), response, robots.MAX_BYTES, cut=True)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
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
            async with self._large:
                async for piece in pieces:
                    body += piece
                    if len(body) > limit:
                        break
        if len(body) > limit:
            raise FetchError("too_large", response.status)
        return _decoded(bytes(body), response, limit)


class _Attempt:
    """One attempt at a URL, redirects included: the time it has left, and what it saw."""

    def __init__(self, seconds: float, *, is_robots: bool = False) -> None:
        self.seconds_left = seconds
        self.is_robots = is_robots
        self.sent = False
        self.status: int | None = None


def parse_url(text: str) -> URL:
    """An absolute http(s) URL, without credentials and fragment.

    Raises:
        ValueError: it is none.
    """
    url = _url(text)
    if url.scheme not in ("http", "https") or not _is_host(url.raw_host or ""):
        raise ValueError(f"not an absolute http(s) URL: {text[:100]!r}")
    if not 0 < (url.port or 0) < 65536:
        raise ValueError(f"no such port: {text[:100]!r}")
    return url.with_user(None).with_fragment(None)


def _url(text: str) -> URL:
    """Raise ValueError, and nothing else, for what is no URL."""
    try:
        return URL(text.strip())
    except IndexError as error:  # yarl's, for some stray brackets
        raise ValueError(f"no URL: {text[:100]!r}") from error


def _is_host(host: str) -> bool:
    """A name of the DNS or an address in its usual notation; not `2130706433`, `0x7f.1` and their like."""
    if ":" in host:
        return True
    labels = host.removesuffix(".").split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        return False
    return not _NUMBER.fullmatch(labels[-1]) or _is_ipv4(host)


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _target(url: URL, location: str) -> URL:
    try:
        return parse_url(str(url.join(_url(location))))
    except ValueError:
        raise FetchError("bad_url") from None


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


def _decoded(body: bytes, response: aiohttp.ClientResponse, limit: int, *, cut: bool = False) -> bytes:
    """Undo a Content-Encoding that we did not ask for, within the limit; what is not so encoded stays as it is."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return body
    inflater = zlib.decompressobj(wbits=47)  # zlib or gzip, whichever the header says
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error:
        return body
    if len(plain) > limit and not cut:
        raise FetchError("too_large", response.status)
    return plain[:limit]
