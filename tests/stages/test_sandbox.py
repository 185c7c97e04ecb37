from __future__ import annotations

from stages.images import Limits, inspect
from stages.sandbox import Sandbox
from tests.stages.test_images import encoded, picture


def test_verdicts_are_those_of_inspect() -> None:
    sandbox = Sandbox(Limits())
    try:
        for data in (encoded(picture(), "JPEG"), b"<html>", b""):
            assert sandbox.inspect(data) == inspect(data)
    finally:
        sandbox.close()


def test_a_dead_child_costs_one_body() -> None:
    sandbox = Sandbox(Limits(), seconds=60)
    data = encoded(picture(), "PNG")
    try:
        assert sandbox.inspect(data).reason is None
        assert sandbox._child is not None
        sandbox._child.kill()
        verdict = sandbox.inspect(data)
        assert (verdict.reason, verdict.sha256) == ("decoder_crash", inspect(data).sha256)
        assert sandbox.inspect(data).reason is None
    finally:
        sandbox.close()


def test_a_decode_that_hangs_is_cut() -> None:
    sandbox = Sandbox(Limits(), seconds=0.01)
    assert sandbox.inspect(encoded(picture(2000, 2000), "PNG")).reason == "decoder_crash"
    sandbox.close()
