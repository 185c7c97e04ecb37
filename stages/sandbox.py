"""Decoding in a child process, so that a body which kills, hangs or bloats its decoder costs one row.

A `Sandbox` belongs to one event loop. Bodies go to its child one after another, answers come back in the same order;
many may be on their way at once. The child is under limits that the kernel enforces: a timer over each decode, and a
cap on its address space. When it dies, the body it was busy with is a `decoder_crash`; a new child takes the others.
A child is kept when its sandbox closes, for the next one with the same settings in this process.

On the wire, a request is an 8-byte length and the body. An answer is two 4-byte lengths, a verdict in JSON and the
bytes that belong to it: the thumbnail, then the resized image if there is one. Run as a module, this file is the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import IO, Any

from stages.errors import UnitError
from stages.images import Limits, Verdict, inspect

SECONDS = 10.0
"""Of a processor, for one body: how busy the machine is changes no verdict."""
MEMORY = 4 << 30
"""Bytes of address space of a child."""
BACKLOG = 64 << 20
"""Bytes that wait for the child before `room` asks for patience."""
_LENGTH = struct.Struct(">Q")
_LENGTHS = struct.Struct(">II")
_BUFFER = 1 << 20

Judged = tuple[Verdict, bytes]
"""A verdict, and the resized image (empty when nothing was resized)."""


class _LostError(Exception):
    """The child died of another body before it came to this one."""


class _Child:
    """A process that decodes, and our end of the socket to it."""

    def __init__(self, settings: str) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 (this interpreter, this module)
                [sys.executable, "-m", "stages.sandbox", settings],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
            )
        self.socket.setblocking(False)
        self.is_ready = False
        self.received = bytearray()

    def end(self) -> None:
        """Kill it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.socket.close()

    def answers(self) -> list[tuple[dict[str, Any], bytes]]:
        """Take the whole answers out of what was received."""
        found = []
        data, at = self.received, 0
        while len(data) - at >= _LENGTHS.size:
            text, more = _LENGTHS.unpack_from(data, at)
            middle = at + _LENGTHS.size + text
            if len(data) < middle + more:
                break
            found.append((json.loads(data[at + _LENGTHS.size : middle]), bytes(data[middle : middle + more])))
            at = middle + more
        del data[:at]
        return found


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


_spare: defaultdict[str, list[_Child]] = defaultdict(list)
"""By settings: children without a sandbox."""


class Sandbox:
    """Decodes bodies in a child, replaced whenever it dies."""

    def __init__(
        self,
        limits: Limits,
        resize: Mapping[str, Any] | None = None,
        *,
        seconds: float = SECONDS,
        memory: int = MEMORY,
    ) -> None:
        settings = {"max_pixels": limits.max_pixels, "resize": resize, "seconds": seconds, "memory": memory}
        self._settings = json.dumps(settings, sort_keys=True)
        self._child: _Child | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[asyncio.Future[Judged | None]] = deque()
        self._turn = asyncio.Lock()
        self._backlog = 0
        self._eased = asyncio.Event()
        self._eased.set()

    async def inspect(self, data: bytes) -> Judged:
        """The verdict on a body, `decoder_crash` when its decode did not come to an end.

        Raises:
            UnitError: no child can be started.
        """
        self._add_backlog(len(data))
        try:
            while True:
                with contextlib.suppress(_LostError):
                    return await self._ask(data) or (_crashed(data), b"")
        finally:
            self._add_backlog(-len(data))

    async def room(self) -> None:
        """Wait until fewer than `BACKLOG` bytes wait for the child."""
        await self._eased.wait()

    def _add_backlog(self, size: int) -> None:
        self._backlog += size
        if self._backlog < BACKLOG:
            self._eased.set()
        else:
            self._eased.clear()

    async def _ask(self, data: bytes) -> Judged | None:
        """The child's answer; None when it died of this body."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Judged | None] = loop.create_future()
        await asyncio.shield(loop.create_task(self._send(data, answer)))  # half a request would garble the next ones
        return await answer

    async def _send(self, data: bytes, answer: asyncio.Future[Judged | None]) -> None:
        loop = asyncio.get_running_loop()
        async with self._turn:
            child = self._child or self._start(loop)
            self._waiting.append(answer)
            with contextlib.suppress(ConnectionError):  # it died: `_read` hears of it
                await loop.sock_sendall(child.socket, _LENGTH.pack(len(data)) + data)

    def _start(self, loop: asyncio.AbstractEventLoop) -> _Child:
        spare = _spare[self._settings]
        child = self._child = spare.pop() if spare else _Child(self._settings)
        self._loop = loop
        loop.add_reader(child.socket, self._read, child)
        return child

    def _read(self, child: _Child) -> None:
        try:
            piece = child.socket.recv(_BUFFER)
        except BlockingIOError:
            return
        except ConnectionError:
            piece = b""
        if not piece:
            self._mourn(child)
            return
        child.received += piece
        for entry, more in child.answers():
            if child.is_ready:
                _settle(self._waiting.popleft(), _judged(entry, more))
            child.is_ready = True

    def _mourn(self, child: _Child) -> None:
        """The first body in line is the one it died of."""
        self._detach(child)
        child.end()
        waiting, self._waiting = self._waiting, deque()
        if not child.is_ready:
            error = UnitError(f"the decoder's process does not start: {sys.executable} -m stages.sandbox")
            for answer in waiting:
                _settle(answer, error)
            return
        if waiting:
            _settle(waiting.popleft(), None)
        for answer in waiting:
            _settle(answer, _LostError())

    def _detach(self, child: _Child) -> None:
        self._child = None
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(child.socket)

    def close(self) -> None:
        """Leave the child to the next sandbox, or end it if it is still busy."""
        child = self._child
        if child is None:
            return
        self._detach(child)
        if self._waiting or not child.is_ready:
            child.end()
        else:
            _spare[self._settings].append(child)


def _settle(answer: asyncio.Future[Judged | None], what: Judged | Exception | None) -> None:
    """Give an answer to whoever still waits for it."""
    if answer.done():
        return
    if isinstance(what, Exception):
        answer.set_exception(what)
    else:
        answer.set_result(what)


def _crashed(data: bytes) -> Verdict:
    return Verdict(reason="decoder_crash", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _judged(entry: dict[str, Any], more: bytes) -> Judged:
    size = entry.pop("thumbnail")
    return Verdict(**entry, thumbnail=more[:size] or None), more[size:]


def _serve(requests: IO[bytes], answers: IO[bytes], judge: Callable[[bytes], Judged], seconds: float) -> None:
    """Answer until the requests end. The timer's signal ends the process, whatever it is doing."""
    _answer(answers, {}, b"")
    while header := requests.read(_LENGTH.size):
        (size,) = _LENGTH.unpack(header)
        body = requests.read(size)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        verdict, resized = judge(body)
        signal.setitimer(signal.ITIMER_PROF, 0)
        thumbnail = verdict.thumbnail or b""
        _answer(answers, asdict(verdict) | {"thumbnail": len(thumbnail)}, thumbnail + resized)


def _answer(answers: IO[bytes], entry: Mapping[str, Any], more: bytes) -> None:
    text = json.dumps(entry).encode()
    answers.write(_LENGTHS.pack(len(text), len(more)) + text + more)
    answers.flush()


def _judge(settings: Mapping[str, Any]) -> Callable[[bytes], Judged]:
    """What this child does with a body; its libraries are loaded by now."""
    limits = Limits(max_pixels=settings["max_pixels"])
    inspect(b"BM")
    if settings["resize"] is None:
        return lambda body: (inspect(body, limits), b"")
    from stages.fetch.resize import Resize

    resize = Resize(settings["resize"])
    return lambda body: resize(body, limits)


def main(settings: Mapping[str, Any]) -> None:
    """Answer requests that come through the socket on stdin until it closes."""
    import resource

    judge = _judge(settings)
    resource.setrlimit(resource.RLIMIT_AS, (settings["memory"], settings["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(0, "rb", _BUFFER) as requests, open(0, "wb", _BUFFER, closefd=False) as answers:
        _serve(requests, answers, judge, settings["seconds"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
