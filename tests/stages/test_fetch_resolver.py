"""The resolver against a name server on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from stages.fetch import resolver
from stages.fetch.addresses import BlockedAddressError, Guard, networks
from stages.fetch.resolver import CachingResolver, GuardedResolver
from tests.nameserver import NameServer, naming


@pytest.fixture
def server() -> Iterator[NameServer]:
    names = {
        "long.example": (3600, ["192.0.2.1", "192.0.2.2"]),
        "short.example": (1, ["192.0.2.3"]),
        "six.example": (60, ["2001:db8::1"]),
        "inside.example": (60, ["10.0.0.1"]),
        "both.example": (60, ["10.0.0.1", "8.8.8.8"]),
        "empty.example": (60, []),
    }
    with naming(NameServer(names=names, failing={"broken.example"})) as running:
        yield running


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def addresses(dns: CachingResolver | GuardedResolver, name: str) -> set[str]:
    return {address for address, _ in await dns.resolve(name)}


def test_answers_are_kept_for_their_ttl(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(resolver, "time", SimpleNamespace(monotonic=lambda: now))

    async def work() -> None:
        nonlocal now
        dns = CachingResolver([server.address])
        for _ in range(3):
            assert await addresses(dns, "long.example") == {"192.0.2.1", "192.0.2.2"}
            assert await addresses(dns, "short.example") == {"192.0.2.3"}
        assert server.asked == {"long.example": 1, "short.example": 1}
        server.names["short.example"] = (1, ["192.0.2.4"])
        await asyncio.sleep(1.5)  # c-ares has a cache of its own, by the same TTL
        now += 1.5
        assert await addresses(dns, "short.example") == {"192.0.2.4"}
        assert await addresses(dns, "long.example") == {"192.0.2.1", "192.0.2.2"}
        assert server.asked["long.example"] == 1
        await dns.close()

    run(work())


def test_failures_are_kept_for_some_seconds(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(resolver, "time", SimpleNamespace(monotonic=lambda: now))

    async def work() -> None:
        nonlocal now
        dns = CachingResolver([server.address])
        for name in ("none.example", "broken.example", "empty.example"):
            for _ in range(3):
                with pytest.raises(OSError, match=r".+"):
                    await addresses(dns, name)
        asked = dict(server.asked)
        assert asked["none.example"] == 1
        now += resolver.TROUBLE_TTL + 0.1
        server.failing.clear()
        server.names["broken.example"] = (60, ["192.0.2.5"])
        assert await addresses(dns, "broken.example") == {"192.0.2.5"}
        with pytest.raises(OSError, match=r".+"):
            await addresses(dns, "none.example")
        assert server.asked["none.example"] == 1
        await dns.close()

    run(work())


def test_many_who_ask_at_once_ask_once(server: NameServer) -> None:
    async def work() -> None:
        dns = CachingResolver([server.address])
        impatient = asyncio.create_task(addresses(dns, "long.example"))
        others = [asyncio.create_task(addresses(dns, "long.example")) for _ in range(50)]
        await asyncio.sleep(0)
        impatient.cancel()
        assert all(len(found) == 2 for found in await asyncio.gather(*others))
        assert server.asked["long.example"] == 1
        await dns.close()

    run(work())


def test_the_cache_is_bounded(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "MOST_NAMES", 2)

    async def work() -> None:
        dns = CachingResolver([server.address])
        for name in ("long.example", "six.example", "long.example", "both.example"):
            await addresses(dns, name)
        assert list(dns._answers) == ["long.example", "both.example"]
        await dns.close()

    run(work())


def test_addresses_that_are_not_public_are_hidden(server: NameServer) -> None:
    async def work() -> None:
        dns = GuardedResolver(Guard(), CachingResolver([server.address]))
        assert await addresses(dns, "both.example") == {"8.8.8.8"}
        for name in ("inside.example", "six.example", "long.example"):
            with pytest.raises(BlockedAddressError):
                await addresses(dns, name)
        opened = GuardedResolver(Guard(networks(["2001:db8::/32"])), CachingResolver([server.address]))
        assert await addresses(opened, "six.example") == {"2001:db8::1"}
        await dns.close()
        await opened.close()

    run(work())


def test_names_of_the_hosts_file_are_known() -> None:
    async def work() -> None:
        dns = CachingResolver()
        assert "127.0.0.1" in await addresses(dns, "localhost")
        await dns.close()

    run(work())
