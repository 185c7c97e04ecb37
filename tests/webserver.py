"""A web server on 127.0.0.1 that misbehaves on request, and counts what it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class WebServer:
    """Serves `pages` by path; paths under `/_/` misbehave (see `_routes`). Runs in a thread of its own."""

    pages: dict[str, bytes] = field(default_factory=dict)
    robots: str | None = None
    robots_status: int = 200
    headers: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Extra response headers by path."""
    delay: float = 0.0
    hits: Counter[str] = field(default_factory=Counter)
    agents: set[str] = field(default_factory=set)
    most_active: int = 0
    most_active_by_host: Counter[str] = field(default_factory=Counter)
    port: int = 0
    """0: any that is free."""
    tls: ssl.SSLContext | None = None
    _active: int = 0
    _active_by_host: Counter[str] = field(default_factory=Counter)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The address of a path."""
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"

    def images_asked(self) -> int:
        """Requests for anything but robots.txt."""
        return sum(self.hits.values()) - self.hits["/robots.txt"]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self.hits[request.path] += 1
        self.agents.add(request.headers.get("User-Agent", ""))
        host = request.host.partition(":")[0]
        self._active += 1
        self._active_by_host[host] += 1
        self.most_active = max(self.most_active, self._active)
        self.most_active_by_host[host] = max(self.most_active_by_host[host], self._active_by_host[host])
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            return await self._answer(request)
        finally:
            self._active -= 1
            self._active_by_host[host] -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/robots.txt":
            known = self.robots is not None or self.robots_status != 200
            return web.Response(status=self.robots_status if known else 404, text=self.robots or "")
        if path.startswith("/_/"):
            return await self._misbehave(request, path.removeprefix("/_/").split("/"))
        body = self.pages.get(path)
        if body is None:
            return web.Response(status=404, text="<html>no such page</html>")
        response = web.Response(body=body, content_type="application/octet-stream")
        for name, value in self.headers.get(path, []):
            response.headers.add(name, value)
        return response

    async def _misbehave(self, request: web.Request, what: list[str]) -> web.StreamResponse:
        match what:
            case ["status", code, *_]:
                return web.Response(status=int(code))
            case ["throttle", seconds, *_]:
                return web.Response(status=429, headers={"Retry-After": seconds})
            case ["flaky", code, times, *rest]:
                if self.hits[request.path] <= int(times):
                    return web.Response(status=int(code), headers={"Retry-After": "0"})
                return web.Response(body=self.pages["/" + "/".join(rest)])
            case ["to", *_]:
                return web.Response(status=302, headers={"Location": request.query["url"]})
            case ["loop", number]:
                return web.Response(status=301, headers={"Location": f"/_/loop/{int(number) + 1}"})
            case ["endless", *_]:
                return await self._stream(request, b"x" * 65536, 0.0)
            case ["slow", *_]:
                return await self._stream(request, b"x", 0.05)
            case ["pieces", count, pause, *_]:
                return await self._stream(request, b"x", float(pause), int(count))
            case ["stall", size, *_]:
                return await self._stream(request, b"x" * int(size), 30)
            case ["headers", *_]:
                return await self._raw(request, b"HTTP/1.1 200 OK\r\n", b"X-Filler: nothing\r\n" * 50, 0.0)
            case ["long-header", size, *_]:
                return web.Response(headers={"X-Filler": "x" * int(size)})
            case ["slow-headers", *_]:
                return await self._raw(request, b"HTTP/1.1 200 OK\r\n", b"X", 0.05)
            case ["silent", *_]:
                await asyncio.sleep(30)
            case ["gzip", *rest]:
                return web.Response(
                    body=gzip.compress(self.pages["/" + "/".join(rest)]), headers={"Content-Encoding": "gzip"}
                )
            case ["cut", *_]:
                return await self._cut(request)
        return web.Response(status=404)

    async def _stream(
        self, request: web.Request, piece: bytes, pause: float, most: int = 1_000_000
    ) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        until = time.monotonic() + 30
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < until and most:
                await response.write(piece)
                await asyncio.sleep(pause)
                most -= 1
        return response

    async def _raw(self, request: web.Request, first: bytes, piece: bytes, pause: float) -> web.StreamResponse:
        """Headers without end."""
        transport = request.transport
        until = time.monotonic() + 30
        if transport is not None:
            transport.write(first)
            while time.monotonic() < until and not transport.is_closing():
                transport.write(piece)
                await asyncio.sleep(pause)
        return web.Response(status=500)

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"only this")
        if request.transport is not None:
            request.transport.close()
        return response


@contextlib.contextmanager
def serving(server: WebServer | None = None, host: str = "127.0.0.1") -> Iterator[WebServer]:
    """Run a server until the block ends."""
    server = server or WebServer()
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, host, server.port, ssl_context=server.tls)
        await site.start()
        server.port = runner.addresses[0][1]
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
