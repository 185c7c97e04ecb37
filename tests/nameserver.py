"""A name server on 127.0.0.1 that answers from a table and counts what it is asked."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

A, AAAA = 1, 28
NO_NAME, SERVER_FAILURE = 3, 2


@dataclass
class NameServer:
    """Names to (TTL, addresses); `failing` names get SERVFAIL, unknown ones do not exist."""

    names: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    """Questions for IPv4 addresses, by name."""
    port: int = 0

    @property
    def address(self) -> str:
        """As the `nameservers` option takes it."""
        return f"127.0.0.1:{self.port}"

    def answer(self, question: bytes) -> bytes:
        """The reply to one message (RFC 1035, section 4); extensions asked for are ignored."""
        labels, at = [], 12
        while size := question[at]:
            labels.append(question[at + 1 : at + 1 + size].decode())
            at += 1 + size
        name = ".".join(labels).lower()
        (kind,) = struct.unpack_from(">H", question, at + 1)
        self.asked[name] += kind == A
        ttl, addresses = self.names.get(name, (0, []))
        packed = [ipaddress.ip_address(address).packed for address in addresses]
        wanted = [data for data in packed if len(data) == {A: 4, AAAA: 16}.get(kind)]
        code = SERVER_FAILURE if name in self.failing else 0 if name in self.names else NO_NAME
        head = question[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(wanted), 0, 0)
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data for data in wanted)
        return head + question[12 : at + 5] + records


@contextlib.contextmanager
def naming(server: NameServer) -> Iterator[NameServer]:
    """Answer over UDP until the block ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        server.port = listener.getsockname()[1]

        def work() -> None:
            while (message := listener.recvfrom(4096))[0] != b"end":
                listener.sendto(server.answer(message[0]), message[1])

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"end", ("127.0.0.1", server.port))
            thread.join(10)
