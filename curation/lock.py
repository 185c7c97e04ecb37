"""One run at a time on a root: flock where there is a file system, a short lease on object stores."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from stages.errors import UserError
from stages.storage import Store

NAME = ".lock"
LEASE_S = 60.0
"""A lease that was not renewed for this long belongs to a dead run."""


@contextlib.contextmanager
def held(store: Store) -> Iterator[None]:
    """Hold the root's lock; it goes with the process, however that ends.

    Raises:
        UserError: another run holds it.
    """
    with _flock(store) if store.is_local else _lease(store):
        yield


def _owner() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _refuse(store: Store, text: bytes) -> UserError:
    try:
        owner = json.loads(text)
        who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return UserError(f"{store.url} is in use by another run ({who}); wait for it or use another --root")


@contextlib.contextmanager
def _flock(store: Store) -> Iterator[None]:
    import fcntl

    path = Path(store.full(NAME))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _refuse(store, file.read()) from error
        file.truncate(0)
        file.write(json.dumps(_owner()).encode())
        file.flush()
        yield
        file.truncate(0)


@contextlib.contextmanager
def _lease(store: Store) -> Iterator[None]:
    token = uuid.uuid4().hex
    if not store.create(NAME, _lease_text(token)):
        _take_over_stale(store, token)
    stop = threading.Event()
    beat = threading.Thread(target=_renew, args=(store, token, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        store.remove(NAME)


def _lease_text(token: str) -> bytes:
    return json.dumps(_owner() | {"token": token, "renewed": time.time()}).encode()


def _take_over_stale(store: Store, token: str) -> None:
    text = store.read(NAME)
    try:
        age = time.time() - float(json.loads(text)["renewed"])
    except (ValueError, KeyError, TypeError):
        age = LEASE_S + 1
    if age <= LEASE_S:
        raise _refuse(store, text)
    store.remove(NAME)
    if not store.create(NAME, _lease_text(token)):
        raise _refuse(store, store.read(NAME))


def _renew(store: Store, token: str, stop: threading.Event) -> None:
    while not stop.wait(LEASE_S / 6):
        store.write(NAME, _lease_text(token))
