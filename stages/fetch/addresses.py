"""The address guard: no connection to an address that is not public.

It stands in three places. A literal address in a URL is checked before anything is sent; a resolver hides
the addresses of a name that are not public; and the socket of every connection is refused when it would
lead to one, whatever the way there. Redirects pass through all three again.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class BlockedAddressError(OSError):
    """A connection would lead to an address that is not public."""


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation.

    Raises:
        ValueError: a text that is none, in a sentence.
    """
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            message = f"allow_private holds {text!r}, which is no network like 127.0.0.0/8 or fd00::/8"
            raise ValueError(message) from None
    return tuple(found)


def check_nameserver(text: str) -> None:
    """Raise ValueError, in a sentence, for what is no `address`, `address:port` or `[address]:port`."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not host.endswith("]")):
        host, port = text, "53"
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        valid = port.isdecimal() and 0 < int(port) < 65536
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"nameservers holds {text!r}; accepted: addresses like 9.9.9.9, 127.0.0.1:5353 or [::1]:53")


def is_public(address: Address) -> bool:
    """Whether the address, and any IPv4 address wrapped in it, belongs to the public internet."""
    if isinstance(address, IPv6Address):
        wrapped = _wrapped(address)
        if wrapped is not None:
            return is_public(wrapped)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _wrapped(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a mapped, 6to4, Teredo or NAT64 address leads to."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


class Guard:
    """Says which addresses may be connected to: public ones and those of the networks allowed."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self.allowed = tuple(allowed)
        self._check = lru_cache(4096)(self._allows)
        self._blocks = lru_cache(8192)(self._blocks_literal)

    def allows(self, text: str) -> bool:
        """Whether an address in its usual notation may be connected to; what is no address may not."""
        return self._check(text)

    def _allows(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        candidates: list[Address] = [address]
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            candidates.append(address.ipv4_mapped)
        inside = any(c in network for c in candidates for network in self.allowed if c.version == network.version)
        return inside or is_public(address)

    def blocks_host(self, host: str) -> bool:
        """Whether a URL's host is a literal address that may not be connected to."""
        return self._blocks(host)

    def _blocks_literal(self, host: str) -> bool:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return not self.allows(host)

    def socket(self, info: Any) -> socket.socket:
        """A socket for one `getaddrinfo` entry: the last check before a connection.

        Raises:
            BlockedAddressError: the address is not allowed.
        """
        family, kind, proto, _, address = info
        if not self.allows(str(address[0])):
            raise BlockedAddressError(f"{address[0]} is not a public address")
        return socket.socket(family=family, type=kind, proto=proto)
