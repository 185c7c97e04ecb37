"""Decoding in a child process, for bodies that kill or hang their decoder.

`Sandbox.inspect` gives the verdict of `stages.images.inspect`; when the child dies, exceeds its memory or
takes too long, the verdict is `decoder_crash` and the next body gets a new child. Run as a module, this
file is the child: frames on stdin (8-byte length, body), one JSON verdict a line on stdout.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import IO, Any

from stages.images import Limits, Verdict, inspect

SECONDS = 30.0
"""For one body, the start of a child included."""
MEMORY = 4 << 30
"""Bytes of address space of a child."""
_LENGTH = struct.Struct(">Q")


class Sandbox:
    """A child process that decodes, replaced whenever it dies. For one thread."""

    def __init__(self, limits: Limits, *, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._command = [sys.executable, "-m", "stages.sandbox", str(limits.max_pixels), str(memory)]
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None

    def inspect(self, data: bytes) -> Verdict:
        """The verdict on a body; `decoder_crash` when its decode did not come to an end."""
        child = self._child = self._child or self._start()
        overdue = threading.Timer(self._seconds, child.kill)
        overdue.start()
        try:
            line = _ask(child, data)
        finally:
            overdue.cancel()
        if line:
            return _from_json(json.loads(line))
        self.close()
        return Verdict(reason="decoder_crash", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        return subprocess.Popen(  # noqa: S603 (this interpreter, this module)
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            with contextlib.suppress(BrokenPipeError):
                self._child.communicate()
            self._child = None


def _ask(child: subprocess.Popen[bytes], data: bytes) -> bytes:
    """The child's answer; empty when it died."""
    if child.stdin is None or child.stdout is None:
        raise TypeError("the child has no pipes")
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(_LENGTH.pack(len(data)) + data)
        child.stdin.flush()
    return child.stdout.readline()


def _to_json(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"thumbnail": verdict.thumbnail and verdict.thumbnail.hex()}


def _from_json(entry: dict[str, Any]) -> Verdict:
    return Verdict(**entry | {"thumbnail": entry["thumbnail"] and bytes.fromhex(entry["thumbnail"])})


def _serve(requests: IO[bytes], answers: IO[bytes], limits: Limits) -> None:
    while header := requests.read(_LENGTH.size):
        (size,) = _LENGTH.unpack(header)
        verdict = inspect(requests.read(size), limits)
        answers.write(json.dumps(_to_json(verdict)).encode() + b"\n")
        answers.flush()


def main(max_pixels: int, memory: int) -> None:
    """Answer requests until stdin ends."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    _serve(sys.stdin.buffer, sys.stdout.buffer, Limits(max_pixels=max_pixels))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
