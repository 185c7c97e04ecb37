"""Decoding in a child process, so that a body which kills, hangs or bloats its decoder costs one row.

A `Sandbox` belongs to one event loop. Bodies go to its child one after another, answers come back in the same order;
many may be on their way at once. The child is under limits that the kernel enforces: a timer over each decode, and a
cap on its address space. When it dies, the body it was busy with is a `decoder_crash`; a new child takes the others.
A child is kept when its sandbox closes, for the next one with the same settings in this process.

On the wire, a request is an 8-byte length and the body. An answer is a fixed record (`_ANSWER`), the thumbnail and the
resized image if there is one. Both sides put as many of them into one system call as there are; so that the fetcher
knows of which body a child died, the child counts those it begins in memory that both see. Run as a module, this file
is the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from stages.errors import UnitError
from stages.images import FORMATS, REASONS, Limits, Verdict, inspect

SECONDS = 10.0
"""Of a processor, for one body: how busy the machine is changes no verdict."""
MEMORY = 4 << 30
"""Bytes of address space of a child."""
BACKLOG = 64 << 20
"""Bytes that wait for the child before `room` asks for patience."""
_LENGTH = struct.Struct(">Q")
_ANSWER = struct.Struct(">BBiiQ32s?QHQ")
"""Reason and format (1 + their place in `_REASONS` and `_FORMATS`, 0: none), width and height (-1: unknown), bytes,
sha256, whether there is a hash, the hash, bytes of the thumbnail and of the resized image."""
_REASONS = sorted(REASONS)
_FORMATS = sorted(FORMATS.values())
_READY = b"\1"
"""What a child says first."""
_BUFFER = 1 << 20
_FLUSHED = 1 << 16
"""Bytes of answers that a child keeps back at most."""
_PIECES = 64
"""Of one system call: below every system's limit, and more than a socket takes at once."""

_KEEP_PAGES = {f"MALLOC_{name}_": str(1 << 28) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD")} | {
    "MALLOC_TOP_PAD_": str(1 << 26)
}
"""The allocator of the C library keeps what an image took for the next: fresh pages cost a tenth of the decoding."""

Judged = tuple[Verdict, bytes]
"""A verdict, and the resized image (empty when nothing was resized)."""


class _LostError(Exception):
    """The child died of another body before it came to this one."""


class _Child:
    """A process that decodes, and our end of the socket to it."""

    def __init__(self, settings: str) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as file:
            file.truncate(_LENGTH.size)
            self._begun = mmap.mmap(file.fileno(), _LENGTH.size)
            self.process = subprocess.Popen(  # noqa: S603 (this interpreter, this module)
                [sys.executable, "-m", "stages.sandbox", settings, str(file.fileno())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[file.fileno()],
                env=_environment(),
            )
        self.socket.setblocking(False)
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self.is_ready = False
        self.received = bytearray()
        self.unsent: deque[bytes | memoryview] = deque()
        self.answered = 0
        """Bodies whose answers have come."""

    @property
    def begun(self) -> int:
        """Bodies that it has begun to decode."""
        return int(_LENGTH.unpack_from(self._begun)[0])

    def end(self) -> None:
        """Kill it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.socket.close()

    def send(self) -> bool:
        """Send as much as it takes now; whether that was all."""
        while self.unsent:
            try:
                sent = self.socket.sendmsg(list(islice(self.unsent, _PIECES)))
            except BlockingIOError:
                return False
            while sent:
                piece = self.unsent.popleft()
                if len(piece) > sent:
                    self.unsent.appendleft(memoryview(piece)[sent:])
                sent -= min(len(piece), sent)
        return True

    def answers(self) -> Iterator[Judged]:
        """Take the whole answers out of what was received."""
        data, at = self.received, 0
        if not self.is_ready:
            self.is_ready, at = True, len(_READY)
        while len(data) - at >= _ANSWER.size:
            record = _ANSWER.unpack_from(data, at)
            start = at + _ANSWER.size
            middle = start + record[-2]
            end = middle + record[-1]
            if len(data) < end:
                break
            yield _judged(record, bytes(data[start:middle])), bytes(data[middle:end])
            self.answered += 1
            at = end
        del data[:at]


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **_KEEP_PAGES}


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
        child = self._child or self._start(loop)
        answer: asyncio.Future[Judged | None] = loop.create_future()
        self._waiting.append(answer)
        if not child.unsent:
            loop.call_soon(self._send, child)  # together with what else comes in this round of the loop
        child.unsent += filter(None, (_LENGTH.pack(len(data)), data))  # sending nothing would never be done
        return await answer

    def _send(self, child: _Child) -> None:
        """Send what waits; the rest when the child has read some."""
        if child is not self._child:
            return
        loop = asyncio.get_running_loop()
        try:
            is_sent = child.send()
        except ConnectionError:  # it died: `_read` hears of it
            is_sent = True
        if is_sent:
            loop.remove_writer(child.socket)
        else:
            loop.add_writer(child.socket, self._send, child)

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
        for judged in child.answers():
            _settle(self._waiting.popleft(), judged)

    def _mourn(self, child: _Child) -> None:
        """It died of the body it began last, or, when it had answered that, of the next in line."""
        self._detach(child)
        child.end()
        waiting, self._waiting = self._waiting, deque()
        if not child.is_ready:
            error = UnitError(f"the decoder's process does not start: {sys.executable} -m stages.sandbox")
            for answer in waiting:
                _settle(answer, error)
            return
        fatal = max(child.begun - child.answered, 1)
        for number, answer in enumerate(waiting, 1):
            _settle(answer, None if number == fatal else _LostError())

    def _detach(self, child: _Child) -> None:
        self._child = None
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(child.socket)
            self._loop.remove_writer(child.socket)

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


def _judged(record: tuple[Any, ...], thumbnail: bytes) -> Verdict:
    reason, kind, width, height, size, digest, has_hash, phash, _, _ = record
    return Verdict(
        reason=_REASONS[reason - 1] if reason else None,
        bytes=size,
        sha256=digest.hex(),
        format=_FORMATS[kind - 1] if kind else None,
        width=width if width >= 0 else None,
        height=height if height >= 0 else None,
        phash=phash if has_hash else None,
        thumbnail=thumbnail or None,
    )


def _record(verdict: Verdict, resized: bytes) -> bytes:
    thumbnail = verdict.thumbnail or b""
    return (
        _ANSWER.pack(
            _REASONS.index(verdict.reason) + 1 if verdict.reason else 0,
            _FORMATS.index(verdict.format) + 1 if verdict.format else 0,
            -1 if verdict.width is None else verdict.width,
            -1 if verdict.height is None else verdict.height,
            verdict.bytes,
            bytes.fromhex(verdict.sha256),
            verdict.phash is not None,
            verdict.phash or 0,
            len(thumbnail),
            len(resized),
        )
        + thumbnail
    )


def _serve(channel: socket.socket, begun: mmap.mmap, judge: Callable[[bytes], Judged], seconds: float) -> None:
    """Answer until the requests end. The timer's signal ends the process, whatever it is doing."""
    channel.sendall(_READY)
    answers = bytearray()
    for number, body in enumerate(_bodies(channel, answers), 1):
        _LENGTH.pack_into(begun, 0, number)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        verdict, resized = judge(body)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers += _record(verdict, resized)
        answers += resized


def _bodies(channel: socket.socket, answers: bytearray) -> Iterator[bytes]:
    """The bodies asked about."""
    received = bytearray()
    while piece := _more(channel, answers):
        received += piece
        at = 0
        while len(received) - at >= _LENGTH.size:
            start = at + _LENGTH.size
            end = start + _LENGTH.unpack_from(received, at)[0]
            if len(received) < end:
                break
            yield bytes(memoryview(received)[start:end])
            at = end
        del received[:at]


def _more(channel: socket.socket, answers: bytearray) -> bytes:
    """What comes next. Before it waits for that, or when they are many, the answers so far are sent."""
    if len(answers) < _FLUSHED:
        with contextlib.suppress(BlockingIOError):
            return channel.recv(_BUFFER, socket.MSG_DONTWAIT)
    channel.sendall(answers)
    answers.clear()
    return channel.recv(_BUFFER)


def _judge(settings: Mapping[str, Any]) -> Callable[[bytes], Judged]:
    """What this child does with a body; its libraries are loaded by now."""
    limits = Limits(max_pixels=settings["max_pixels"])
    inspect(b"BM")
    if settings["resize"] is None:
        return lambda body: (inspect(body, limits), b"")
    from stages.fetch.resize import Resize

    resize = Resize(settings["resize"])
    return lambda body: resize(body, limits)


def main(settings: Mapping[str, Any], shared: int) -> None:
    """Answer requests that come through the socket on stdin until it closes; `shared` is the counter's file."""
    import resource

    judge = _judge(settings)
    resource.setrlimit(resource.RLIMIT_AS, (settings["memory"], settings["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.set_threshold(10_000, 50, 100)  # decoders leave next to no cycles
    with socket.socket(fileno=0) as channel, mmap.mmap(shared, _LENGTH.size) as begun:
        _serve(channel, begun, judge, settings["seconds"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
