from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from PIL import Image

from stages.errors import UnitError
from stages.images import Limits, inspect
from stages.sandbox import Sandbox
from tests.stages.test_images import encoded, files, needs_real_data, picture

T = TypeVar("T")
SLOW = encoded(Image.new("RGB", (9000, 9000)), "PNG", compress_level=1)
"""Takes most of a second."""


def run(sandbox: Sandbox, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, then close."""

    async def whole() -> T:
        try:
            return await work
        finally:
            sandbox.close()

    return asyncio.run(whole())


async def all_of(sandbox: Sandbox, bodies: list[bytes]) -> list[str | None]:
    return [verdict.reason for verdict, _ in await asyncio.gather(*map(sandbox.inspect, bodies))]


def test_verdicts_are_those_of_inspect() -> None:
    sandbox = Sandbox(Limits(max_pixels=60 * 40))
    bodies = [encoded(picture(), "JPEG"), b"<html>", b"", encoded(picture(61), "PNG"), encoded(picture(), "GIF") * 90]

    async def work() -> list[Any]:
        return await asyncio.gather(*map(sandbox.inspect, bodies))

    assert run(sandbox, work()) == [(inspect(body, Limits(max_pixels=60 * 40)), b"") for body in bodies]


@pytest.mark.timeout(60)
def test_an_empty_body_alone_holds_nothing_up() -> None:
    sandbox = Sandbox(Limits())
    assert run(sandbox, all_of(sandbox, [b""])) == ["empty_body"]


@needs_real_data
def test_hostile_files_have_the_same_verdicts_and_kill_no_child() -> None:
    """Within the time and the memory of a child, whose process is the same at the end."""
    sandbox = Sandbox(Limits())
    bodies = [path.read_bytes() for path in files("decode", "*")]

    async def work() -> tuple[set[int], list[Any]]:
        children, verdicts = set(), []
        for body in bodies:
            verdicts.append((await sandbox.inspect(body))[0])
            assert sandbox._child is not None
            children.add(sandbox._child.process.pid)
        return children, verdicts

    children, verdicts = run(sandbox, work())
    assert len(verdicts) > 600
    assert len(children) == 1
    assert verdicts == [inspect(body) for body in bodies]


def test_a_decoder_that_crashes_costs_one_body() -> None:
    """Bodies before and after it, on their way at once, have their verdicts."""
    sandbox = Sandbox(Limits(), seconds=60)
    good = encoded(picture(), "PNG")

    async def work() -> list[str | None]:
        first = await all_of(sandbox, [good])
        rest = asyncio.create_task(all_of(sandbox, [SLOW, good, good]))
        await asyncio.sleep(0.2)
        assert sandbox._child is not None
        os.kill(sandbox._child.process.pid, signal.SIGSEGV)
        return first + await rest

    assert run(sandbox, work()) == [None, "decoder_crash", None, None]


def test_a_child_that_dies_idle_costs_nothing() -> None:
    sandbox = Sandbox(Limits())
    good = encoded(picture(), "PNG")

    async def work() -> list[str | None]:
        first = await all_of(sandbox, [good])
        assert sandbox._child is not None
        sandbox._child.process.kill()
        await asyncio.sleep(0.2)
        return first + await all_of(sandbox, [good])

    assert run(sandbox, work()) == [None, None]


def test_whoever_gives_up_leaves_the_others_their_verdicts() -> None:
    sandbox = Sandbox(Limits())
    good, large = encoded(picture(), "PNG"), encoded(picture(), "BMP") + bytes(8 << 20)

    async def work() -> list[str | None]:
        for seconds in (0.0, 0.001, 0.01):
            quitting = [asyncio.create_task(sandbox.inspect(large)) for _ in range(3)]
            await asyncio.sleep(seconds)
            for task in quitting:
                task.cancel()
            await asyncio.wait(quitting)
        return await all_of(sandbox, [good, b"<html>", good])

    assert run(sandbox, work()) == [None, "not_an_image", None]


def test_a_decode_that_takes_too_long_is_cut_short() -> None:
    sandbox = Sandbox(Limits(), seconds=0.1)
    good = encoded(picture(), "PNG")
    assert run(sandbox, all_of(sandbox, [good, SLOW, good])) == [None, "decoder_crash", None]


def test_a_decode_that_wants_too_much_memory_fails_alone() -> None:
    sandbox = Sandbox(Limits(), memory=400 << 20)
    good = encoded(picture(), "PNG")
    assert run(sandbox, all_of(sandbox, [good, encoded(picture(9000, 9000), "PNG"), good])) == [
        None,
        "decoder_crash",
        None,
    ]


def test_a_child_serves_the_next_sandbox() -> None:
    good = encoded(picture(), "PNG")
    found = []
    for _ in range(2):
        sandbox = Sandbox(Limits(max_pixels=1234567))

        async def work(sandbox: Sandbox = sandbox) -> int:
            await sandbox.inspect(good)
            assert sandbox._child is not None
            return sandbox._child.process.pid

        found.append(run(sandbox, work()))
    assert found[0] == found[1]


def test_bodies_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.sandbox.BACKLOG", 100)
    sandbox = Sandbox(Limits())

    async def work() -> bool:
        await sandbox.room()
        waiting = asyncio.create_task(sandbox.inspect(encoded(picture(), "PNG")))
        await asyncio.sleep(0)
        room = asyncio.create_task(sandbox.room())
        await asyncio.sleep(0)
        blocked = not room.done()
        await waiting
        await asyncio.wait_for(room, 5)
        return blocked

    assert run(sandbox, work())


def test_a_decoder_that_cannot_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    sandbox = Sandbox(Limits(max_pixels=7654321))
    with pytest.raises(UnitError, match="does not start"):
        run(sandbox, sandbox.inspect(b"x"))
