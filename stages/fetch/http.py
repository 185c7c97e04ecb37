"""GET over HTTP/1.1, as little of it as fetching needs: kept-alive connections, TLS, limits on what comes.

A connection is an asyncio protocol around llhttp's parser, and has one request at a time. Nothing here decides
what a status means, follows a redirect, decodes a body or looks at the clock: that is `stages.fetch.client`'s.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from functools import cache
from typing import cast

import aiohappyeyeballs
import httptools
from yarl import URL

from stages.errors import UnitError
from stages.fetch.addresses import BlockedAddressError, Guard
from stages.fetch.outcome import FetchError
from stages.fetch.resolver import Resolver

HEADER_BYTES, HEADERS, HEAD_BYTES = 16_384, 128, 262_144
"""Of one response header, how many of them, and bytes of all that comes before the body."""
AHEAD = 131_072
"""Bytes of a body that are taken before anyone asks for it."""
KEPT_ALIVE_S = 5.0
"""Seconds that an idle connection stays open: in a long tail of hosts most are never used again."""
EYEBALLS_S = 0.25
"""Seconds after which the next address of a name is tried beside the one that does not answer (RFC 8305)."""

Origin = tuple[str, str | None, int | None]
"""Scheme, host and port."""


class _StaleError(Exception):
    """The connection was closed before anything of an answer came."""


class Response(asyncio.Protocol):
    """A connection, and the response that came last on it."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.is_open = True
        self.idle_since = 0.0
        self._transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpResponseParser(self)
        # what browsers and other clients put up with, too
        self._parser.set_dangerous_leniencies(lenient_headers=True, lenient_optional_cr_before_lf=True)
        self._waiter: asyncio.Future[None] | None = None
        self._is_asked = self._is_paused = False
        self._begin()

    def _begin(self) -> None:
        """Forget the message before."""
        self.status = 0
        self.headers: dict[bytes, list[bytes]] = {}
        """By name in lower case."""
        self.pieces: list[bytes] = []
        self.size = 0
        self.has_head = self.is_complete = False
        self._is_kept = self._ends_with_connection = False
        self._error: Exception | None = None
        self._head_bytes = self._header_count = 0
        self._most = AHEAD

    # What the client calls

    def header(self, name: bytes) -> str | None:
        """The first header of this name (in lower case)."""
        found = self.headers.get(name)
        return found[0].decode("utf-8", "surrogateescape") if found else None

    def all(self, name: bytes) -> list[str]:
        """All headers of this name (in lower case)."""
        return [value.decode("utf-8", "surrogateescape") for value in self.headers.get(name, ())]

    async def ask(self, head: bytes) -> None:
        """Send a request, and wait for the head of its response.

        Raises:
            FetchError: there is none.
        """
        self._begin()
        self._is_asked = True
        self._transport.write(head)
        while not self.has_head:
            await self._news()

    async def load(self, most: int) -> bool:
        """Wait for the whole body; False as soon as more than `most` bytes of it are here: the rest waits.

        Raises:
            FetchError: the body breaks off.
        """
        self._most = most
        while self.size <= most:
            if self.is_complete:
                return True
            self.resume()
            await self._news()
        return False

    def resume(self) -> None:
        """Take what comes again."""
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    @property
    def body(self) -> bytes:
        """What came of the body."""
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can take another request."""
        return self.is_open and self.is_complete and self._is_kept and self._error is None

    def abort(self) -> None:
        """Close the connection at once."""
        self.is_open = False
        self._transport.abort()

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception, cause: Exception | None = None) -> None:
        error.__cause__ = cause
        self._error = self._error or error
        self._wake()
        self.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self._is_asked or self.is_complete:
            self.abort()  # nobody asked for this
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.is_complete:
                self._is_kept = False  # the answer is whole, what follows is not ours
                return
            self._fail(FetchError("connect" if self.has_head else "http_error"), error)
            return
        if not self.has_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._fail(FetchError("http_error"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.is_open = False
        if not self._is_asked or self.is_complete:
            return
        if self._ends_with_connection and exc is None:
            self.is_complete = True
            self._wake()
        elif self._head_bytes or self.has_head:
            self._fail(FetchError("connect"))
        else:
            self._fail(_StaleError())

    # What the parser calls

    def on_message_begin(self) -> None:
        """The first byte of a message: one response, and perhaps interim ones before it."""
        if self.is_complete:
            raise ValueError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, whole."""
        self._header_count += 1
        if self._header_count > HEADERS or len(name) + len(value) > HEADER_BYTES:
            raise ValueError("too many or too long headers")
        self.headers.setdefault(name.lower(), []).append(value.strip())

    def on_headers_complete(self) -> None:
        """The head is here; an interim one (1xx) is not yet the answer's."""
        status = self._parser.get_status_code()
        if status < 200:
            return
        self.status, self.has_head = status, True
        self._is_kept = self._parser.should_keep_alive()
        is_chunked = any(b"chunked" in value.lower() for value in self.headers.get(b"transfer-encoding", ()))
        self._ends_with_connection = not is_chunked and b"content-length" not in self.headers
        self._wake()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self.pieces.append(body)
        self.size += len(body)
        if self.size > self._most:
            if not self._is_paused and not self._transport.is_closing():
                self._is_paused = True
                self._transport.pause_reading()
            self._wake()

    def on_message_complete(self) -> None:
        """The whole response is here, or an interim one."""
        if not self.has_head:
            self.headers.clear()
            return
        self.is_complete = True
        self._wake()


class Connections:
    """Connections to all hosts, kept alive for a while when idle. Belongs to one event loop."""

    def __init__(self, resolver: Resolver, guard: Guard, headers: Sequence[tuple[str, str]]) -> None:
        self._resolver = resolver
        self._guard = guard
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self._idle: dict[Origin, list[Response]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def get(self, url: URL) -> Response:
        """The response to a request for `url`, its body still to be loaded; whoever gets it must `release` it.

        Raises:
            FetchError: there is none.
            UnitError: this machine is out of files for connections, which is no URL's fault.
        """
        head = f"GET {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n{self._headers}\r\n".encode()
        origin = url.scheme, url.raw_host, url.port
        while True:
            response = self._taken(origin)
            is_fresh = response is None
            if response is None:
                response = await self._connected(origin)
            try:
                await response.ask(head)
            except _StaleError as error:  # a kept connection that was closed as we wrote says nothing of the host
                if is_fresh:
                    raise FetchError("connect") from error
            except BaseException:
                response.abort()
                raise
            else:
                return response

    def release(self, response: Response) -> None:
        """Keep the connection for the next request if it can take one."""
        if not response.is_reusable:
            response.abort()
            return
        response.resume()  # a body may have been whole, and yet more than was asked for
        loop = asyncio.get_running_loop()
        response.idle_since = loop.time()
        self._idle.setdefault(response.origin, []).append(response)
        if self._sweep is None:
            self._sweep = loop.call_later(KEPT_ALIVE_S, self._sweep_idle)

    def _taken(self, origin: Origin) -> Response | None:
        """An idle connection, the one that was used last."""
        idle = self._idle.get(origin)
        while idle:
            response = idle.pop()
            if response.is_open:
                return response
        return None

    def _sweep_idle(self) -> None:
        """Close what has been idle for too long."""
        loop = asyncio.get_running_loop()
        since = loop.time() - KEPT_ALIVE_S
        for origin, idle in list(self._idle.items()):
            for response in idle:
                if response.idle_since <= since:
                    response.abort()
            self._idle[origin] = [response for response in idle if response.is_open]
            if not self._idle[origin]:
                del self._idle[origin]
        self._sweep = loop.call_later(KEPT_ALIVE_S / 2, self._sweep_idle) if self._idle else None

    async def close(self) -> None:
        """Close all idle connections, and the resolver."""
        if self._sweep is not None:
            self._sweep.cancel()
        for idle in self._idle.values():
            for response in idle:
                response.abort()
        self._idle.clear()
        await self._resolver.close()

    async def _connected(self, origin: Origin) -> Response:
        scheme, host, port = origin
        found = await self._addresses(host or "", port or 0)
        try:
            sock = await aiohappyeyeballs.start_connection(
                found, happy_eyeballs_delay=EYEBALLS_S, interleave=1, socket_factory=self._guard.socket
            )
            loop = asyncio.get_running_loop()
            context, name = (tls_context(), (host or "").removesuffix(".")) if scheme == "https" else (None, None)
            _, response = await loop.create_connection(
                lambda: Response(origin), sock=sock, ssl=context, server_hostname=name
            )
        except TimeoutError as error:
            raise FetchError("connect") from error  # the kernel's; ours cancels
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise UnitError("too many open files: raise the limit (ulimit -n), or lower concurrency") from error
            raise FetchError(_reason(error)) from error
        return response

    async def _addresses(self, host: str, port: int) -> list[aiohappyeyeballs.AddrInfoType]:
        """As `getaddrinfo` has them."""
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            return await self._resolved(host, port)
        family = socket.AF_INET if literal.version == 4 else socket.AF_INET6
        return [_entry(family, host, port)]

    async def _resolved(self, host: str, port: int) -> list[aiohappyeyeballs.AddrInfoType]:
        try:
            found = await self._resolver.resolve(host)
        except BlockedAddressError as error:
            raise FetchError("blocked_address") from error
        except OSError as error:
            raise FetchError("dns") from error
        return [_entry(family, address, port) for address, family in found]


def _entry(family: socket.AddressFamily, address: str, port: int) -> aiohappyeyeballs.AddrInfoType:
    where = (address, port) if family == socket.AF_INET else (address, port, 0, 0)
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where


@cache
def tls_context() -> ssl.SSLContext:
    """Certificates are checked against the system's authorities."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(error: BaseException) -> str:
    """The reason behind a failure to connect."""
    if _is_blocked(error):
        return "blocked_address"
    return "tls" if isinstance(error, ssl.SSLError | ssl.CertificateError) else "connect"


def _is_blocked(error: BaseException | None) -> bool:
    """Whether the address guard spoke, however deep it was wrapped."""
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, BlockedAddressError):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
