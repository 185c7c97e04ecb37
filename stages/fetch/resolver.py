"""A resolver behind the address guard."""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from stages.fetch.addresses import BlockedAddressError, Guard


class GuardedResolver(AbstractResolver):
    """Resolves names, and hides the addresses that may not be connected to."""

    def __init__(self, guard: Guard, resolver: AbstractResolver) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of `host` that may be connected to.

        Raises:
            OSError: the name cannot be resolved; `BlockedAddressError` when all of its addresses are blocked.
        """
        found = await self._resolver.resolve(host, port, family)
        public = [entry for entry in found if self._guard.allows(entry["host"])]
        if found and not public:
            raise BlockedAddressError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        """Close the resolver underneath."""
        await self._resolver.close()
