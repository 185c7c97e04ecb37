"""A web server on 127.0.0.1 that misbehaves on request, and counts what it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
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
    port: int = 0
    _active: int = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The address of a path."""
        return f"http://{host}:{self.port}{path}"

    def images_asked(self) -> int:
        """Requests for anything but robots.txt."""
        return sum(self.hits.values()) - self.hits["/robots.txt"]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self.hits[request.path] += 1
        self.agents.add(request.headers.get("User-Agent", ""))
        self._active += 1
        self.most_active = max(self.most_active, self._active)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            return await self._answer(request)
        finally:
            self._active -= 1

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
            case ["silent", *_]:
                await asyncio.sleep(30)
            case ["gzip", *rest]:
                return web.Response(
                    body=gzip.compress(self.pages["/" + "/".join(rest)]), headers={"Content-Encoding": "gzip"}
                )
            case ["cut", *_]:
                return await self._cut(request)
        return web.Response(status=404)

    async def _stream(self, request: web.Request, piece: bytes, pause: float) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        until = time.monotonic() + 30
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < until:
                await response.write(piece)
                await asyncio.sleep(pause)
        return response

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
        site = web.TCPSite(runner, host, 0)
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
