"""The demo's web: pages by host and path, and a server that answers on loopback addresses.

Each 127.0.0.x address stands for a host of its own, with its own robots.txt, limits and manners.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

CDN = tuple(f"127.0.0.{number}" for number in range(11, 19))
"""Hosts that behave."""
ROBOTS, OPT_OUT, SLOW, BUSY, BLOCKED, MOVED, DAMAGED, LOST = (f"127.0.0.{number}" for number in range(21, 29))
HOSTS = (*CDN, ROBOTS, OPT_OUT, SLOW, BUSY, BLOCKED, MOVED, DAMAGED, LOST)
PORT = 18_765
"""Keys depend on URLs and URLs on the port, so it is fixed; the next free one is taken where it is in use."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the server says at one address."""

    body: bytes = b""
    content_type: str = "image/jpeg"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pace: str = "plain"
    """`plain`; `slow` (a byte now and then, for ever) or `endless` (as fast as it goes, for ever)."""
    first: tuple[int, Mapping[str, str]] | None = None
    """Status and headers of the very first answer; later requests get the page."""


class Web:
    """Pages by (host, path)."""

    def __init__(self, port: int = PORT) -> None:
        self.port = port
        self.pages: dict[tuple[str, str], Page] = {}

    def add(self, host: str, path: str, page: Page) -> str:
        """Put a page on a host and return its URL; `path` begins with a slash and is new."""
        if (host, path) in self.pages:
            raise ValueError(f"{host}{path} is there already")
        self.pages[host, path] = page
        return self.url(host, path)

    def url(self, host: str, path: str) -> str:
        """The URL of a path, whether a page is there or not."""
        return f"http://{host}:{self.port}{path}"


def free_port(port: int = PORT) -> int:
    """The first port from `port` on that every host can be bound to.

    Raises:
        OSError: the machine has no loopback addresses beyond 127.0.0.1, or no free port among 200.
    """
    problem: OSError | None = None
    for candidate in range(port, port + 200):
        try:
            for host in HOSTS:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((host, candidate))
            return candidate
        except OSError as error:
            problem = error
    raise OSError(f"no free port from {port} on for the addresses {HOSTS[0]} to {HOSTS[-1]}: {problem}")


@contextlib.contextmanager
def serving(web: Web) -> Iterator[Counter[tuple[str, str]]]:
    """Serve the pages from a thread; yields requests so far by (host, path)."""
    requests: Counter[tuple[str, str]] = Counter()
    loop, ready, problems = asyncio.new_event_loop(), threading.Event(), []

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            runner = loop.run_until_complete(_start(web, requests))
        except OSError as error:
            problems.append(error)
            return
        finally:
            ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=work, name="demo-web", daemon=True)
    thread.start()
    ready.wait()
    try:
        if problems:
            raise problems[0]
        yield requests
    finally:
        if not problems:
            loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


async def _start(web: Web, requests: Counter[tuple[str, str]]) -> Any:
    from aiohttp import web as aio

    async def answer(request: aio.Request) -> aio.StreamResponse:
        place = (request.host.partition(":")[0], request.path)
        requests[place] += 1
        page = web.pages.get(place)
        if page is None:
            return aio.Response(status=404, text="there is no such page")
        if page.first is not None and requests[place] == 1:
            return aio.Response(status=page.first[0], headers=page.first[1])
        if page.pace != "plain":
            return await _without_end(request, page)
        headers = {"Content-Type": page.content_type, **page.headers}
        return aio.Response(status=page.status, body=page.body, headers=headers)

    app = aio.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = aio.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    for host in HOSTS:
        await aio.TCPSite(runner, host, web.port).start()
    return runner


async def _without_end(request: Any, page: Page) -> Any:
    """A body that goes on until the client leaves."""
    from aiohttp import web as aio

    response = aio.StreamResponse(headers={"Content-Type": page.content_type})
    await response.prepare(request)
    piece, pause = (b"\xff", 0.25) if page.pace == "slow" else (bytes(65_536), 0.0)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(piece)
            await asyncio.sleep(pause)
    return response
