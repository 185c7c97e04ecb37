"""One run at a time on a root, locally and on an object store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curation import lock
from stages.errors import UserError
from stages.storage import Store
from tests.conftest import S3

HOLD = """
import sys, time
from curation import lock
from stages.storage import Store
with lock.held(Store(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_run_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=rf"in use by another run \(process {first.pid}"),
        lock.held(Store(str(tmp_path))),
    ):
        pass
    first.kill()
    first.wait()
    with lock.held(Store(str(tmp_path))):
        assert (tmp_path / lock.NAME).exists()


def test_a_lease_on_an_object_store(s3: S3) -> None:
    store = Store(s3.url("root"), s3.options)
    with lock.held(store):
        with pytest.raises(UserError, match="in use by another run"), lock.held(store):
            pass
        assert store.exists(lock.NAME)
    assert not store.exists(lock.NAME)


def test_a_lease_that_nobody_renews_is_taken_over(s3: S3) -> None:
    store = Store(s3.url("root"), s3.options)
    store.write(lock.NAME, json.dumps({"renewed": time.time() - 2 * lock.LEASE_S}).encode())
    with lock.held(store):
        assert b"token" in store.read(lock.NAME)
