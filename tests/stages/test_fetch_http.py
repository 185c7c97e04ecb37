"""What servers do to a connection, told byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from yarl import URL

from stages.fetch import http
from stages.fetch.addresses import Guard, networks
from stages.fetch.http import Connections, Response
from stages.fetch.outcome import FetchError
from stages.fetch.resolver import CachingResolver

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


class Server:
    """Answers each request of each connection with the next of `answers`; an empty one closes the connection."""

    def __init__(self, answers: Sequence[bytes], *, closes: bool = False) -> None:
        self.answers = list(answers)
        self.closes = closes
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = URL()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0)
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
                if self.closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(*answers: bytes, closes: bool = False) -> AsyncIterator[tuple[Server, Connections]]:
    made = Server(answers, closes=closes)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = URL(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/a?b=c%20d")
    guard = Guard(networks(["127.0.0.0/8"]))
    connections = Connections(CachingResolver(), guard, [("User-Agent", "test/1")])
    try:
        yield made, connections
    finally:
        await connections.close()
        listening.close()


async def body(connections: Connections, url: URL, most: int = 1 << 20) -> bytes | None:
    """The whole body; None when it is larger than `most`."""
    response = await connections.get(url)
    try:
        return response.body if await response.load(most) else None
    finally:
        connections.release(response)


async def head(connections: Connections, url: URL) -> Response:
    response = await connections.get(url)
    connections.release(response)
    return response


def test_one_connection_serves_requests_one_after_another() -> None:
    async def work() -> None:
        async with serving(OK, OK, OK) as (server, connections):
            assert [await body(connections, server.url) for _ in range(3)] == [b"abc"] * 3
            assert server.connections == 1
            host = f"127.0.0.1:{server.url.port}".encode()
            assert server.requests[0] == b"GET /a?b=c%20d HTTP/1.1\r\nHost: " + host + b"\r\nUser-Agent: test/1\r\n\r\n"

    asyncio.run(work())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK, b"abc"),
        (b"HTTP/1.1 200 OK\r\nX-Odd: \x01\xff\r\nContent-Length:  3 \r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_bodies_of_every_framing(answer: bytes, expected: bytes) -> None:
    async def work() -> None:
        async with serving(answer, OK) as (server, connections):
            assert await body(connections, server.url) == expected
            assert await body(connections, server.url) == b"abc"

    asyncio.run(work())


def test_a_body_without_length_ends_with_its_connection() -> None:
    async def work() -> None:
        async with serving(b"HTTP/1.1 200 OK\r\n\r\nabc", b"HTTP/1.0 200 OK\r\n\r\n", closes=True) as (server, found):
            assert await body(found, server.url) == b"abc"
            assert await body(found, server.url) == b""
            assert server.connections == 2

    asyncio.run(work())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", "connect"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "connect"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "connect"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "connect"),
        (b"", "connect"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "http_error"),
        (b"<html>no headers at all</html>", "http_error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", "http_error"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", "http_error"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (http.HEADERS + 1) + b"\r\n", "http_error"),
        (b"HTTP/1.1 200 OK\r\nX: " + bytes([120]) * (http.HEAD_BYTES + 1), "http_error"),
    ],
)
def test_what_is_no_answer_has_a_reason(answer: bytes, reason: str) -> None:
    async def work() -> None:
        async with serving(answer, closes=True) as (server, connections):
            with pytest.raises(FetchError) as caught:
                await body(connections, server.url)
            assert caught.value.reason == reason

    asyncio.run(work())


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    """The server hangs up on the second request: that says nothing of its URL."""

    async def work() -> None:
        async with serving(OK, b"", OK) as (server, connections):
            assert await body(connections, server.url) == b"abc"
            assert await body(connections, server.url) == b"abc"
            assert server.connections == 2
            assert len(server.requests) == 3

    asyncio.run(work())


def test_what_follows_an_answer_unasked_is_nobodys() -> None:
    """Nor does a later request get it as its answer."""

    async def work() -> None:
        async with serving(OK + OK.replace(b"abc", b"bad"), OK) as (server, connections):
            assert await body(connections, server.url) == b"abc"
            assert await body(connections, server.url) == b"abc"
            assert server.connections == 2

    asyncio.run(work())


def test_a_body_that_nobody_wants_closes_its_connection() -> None:
    large = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9000000\r\n\r\n" + bytes(500_000)

    async def work() -> None:
        async with serving(large, OK) as (server, connections):
            assert (await head(connections, server.url)).status == 404
            assert await body(connections, server.url) == b"abc"
            assert server.connections == 2

    asyncio.run(work())


def test_a_large_body_waits_until_it_is_asked_for() -> None:
    size = 8_000_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)

    async def work() -> None:
        async with serving(answer) as (server, connections):
            response = await connections.get(server.url)
            await asyncio.sleep(0.2)
            assert response.size < size // 4
            assert not await response.load(1_000_000)
            held = response.size
            await asyncio.sleep(0.2)
            assert response.size == held < size // 2
            assert await response.load(size)
            assert response.body == bytes(size)
            connections.release(response)

    asyncio.run(work())


def test_idle_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "KEPT_ALIVE_S", 0.1)

    async def work() -> None:
        async with serving(OK, OK) as (server, connections):
            response = await connections.get(server.url)
            await response.load(3)
            connections.release(response)
            assert response.is_open
            await asyncio.sleep(0.5)
            assert not response.is_open
            assert await body(connections, server.url) == b"abc"
            assert server.connections == 2

    asyncio.run(work())


def test_a_connection_that_was_full_takes_the_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole body came in the read that was one too many."""
    monkeypatch.setattr(http, "AHEAD", 2)

    async def work() -> None:
        async with serving(OK, OK, OK) as (server, connections):
            for _ in range(3):
                assert await asyncio.wait_for(body(connections, server.url), 5) == b"abc"
            assert server.connections == 1

    asyncio.run(work())
