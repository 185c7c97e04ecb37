"""Names to addresses: asked once for as long as the answer holds, and only addresses that may be connected to."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import aiodns

from stages.fetch.addresses import BlockedAddressError, Guard

MOST_NAMES = 20_000
"""Answers held; the one that was not asked for the longest goes first."""
LEAST_TTL, MOST_TTL = 1.0, 3600.0
"""Seconds within which an answer's own TTL counts."""
NO_NAME_TTL = 60.0
"""Seconds for which a name that does not exist is not asked for again…"""
TROUBLE_TTL = 2.0
"""… and one whose servers fail: less than the second retry waits."""
_NO_NAME = frozenset([aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA])
_WAIT, _TRIES = 3.0, 2


Address = tuple[str, socket.AddressFamily]


class Resolver(Protocol):
    """What finds the addresses of names."""

    async def resolve(self, host: str) -> list[Address]:
        """Addresses of `host`.

        Raises:
            OSError: there are none, or nobody says.
        """

    async def close(self) -> None:
        """Give up all questions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of a question."""

    addresses: tuple[Address, ...] = ()
    error: str = ""
    ttl: float
    """Seconds for which it holds."""


class CachingResolver:
    """Asks the DNS, and keeps answers for their TTL, failures for some seconds; one question at a time a name."""

    def __init__(self, nameservers: Sequence[str] = ()) -> None:
        # no search domains: a name in a URL is never one of the local network's
        self._dns = aiodns.DNSResolver(
            nameservers=list(nameservers) or None, timeout=_WAIT, tries=_TRIES, domains=[], loop=None
        )
        self._answers: OrderedDict[str, tuple[float, Answer]] = OrderedDict()
        self._asked: dict[str, asyncio.Task[Answer]] = {}

    async def resolve(self, host: str) -> list[Address]:
        """Addresses of `host`.

        Raises:
            OSError: there are none, or the DNS does not say.
        """
        answer = self._known(host) or await self._ask_once(host)
        if not answer.addresses:
            raise OSError(None, answer.error)
        return list(answer.addresses)

    def _known(self, host: str) -> Answer | None:
        until, answer = self._answers.get(host, (0.0, None))
        if answer is None or until <= time.monotonic():
            return None
        self._answers.move_to_end(host)
        return answer

    async def _ask_once(self, host: str) -> Answer:
        """Everyone who asks meanwhile gets the same answer, and nobody's impatience ends it for the others."""
        task = self._asked.get(host)
        if task is None:
            task = self._asked[host] = asyncio.create_task(self._ask(host))
            task.add_done_callback(lambda _: self._asked.pop(host, None))
        return await asyncio.shield(task)

    async def _ask(self, host: str) -> Answer:
        answer = await self._answer(host)
        self._answers[host] = (time.monotonic() + answer.ttl, answer)
        self._answers.move_to_end(host)
        if len(self._answers) > MOST_NAMES:
            self._answers.popitem(last=False)
        return answer

    async def _answer(self, host: str) -> Answer:
        try:
            found = await self._dns.getaddrinfo(
                host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
            )
        except aiodns.error.DNSError as error:
            code, message = (*error.args, "", "")[:2]
            return Answer(error=str(message), ttl=NO_NAME_TTL if code in _NO_NAME else TROUBLE_TTL)
        addresses = tuple((node.addr[0].decode(), socket.AddressFamily(node.family)) for node in found.nodes)
        if not addresses:
            return Answer(error="no address", ttl=NO_NAME_TTL)
        ttl = min(node.ttl for node in found.nodes)
        return Answer(addresses=addresses, ttl=min(max(ttl, LEAST_TTL), MOST_TTL))

    async def close(self) -> None:
        """Give up all questions."""
        for task in self._asked.values():
            task.cancel()
        await self._dns.close()


class GuardedResolver:
    """Resolves names, and hides the addresses that may not be connected to."""

    def __init__(self, guard: Guard, resolver: Resolver) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(self, host: str) -> list[Address]:
        """Addresses of `host` that may be connected to.

        Raises:
            OSError: the name cannot be resolved; `BlockedAddressError` when all of its addresses are blocked.
        """
        found = await self._resolver.resolve(host)
        public = [(address, family) for address, family in found if self._guard.allows(address)]
        if found and not public:
            raise BlockedAddressError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        """Close the resolver underneath."""
        await self._resolver.close()
