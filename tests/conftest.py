"""Fixtures for the whole suite."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real Ray cluster of two CPUs in this process, one for all tests that take it."""
    import ray

    from curation.execute import start_ray

    start_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images and captions; the test is skipped where there is none."""
    folder = os.environ.get("CURATION_REAL_DATA")
    if not folder:
        pytest.skip("CURATION_REAL_DATA is not set")
    return Path(folder)


@dataclass(frozen=True)
class S3:
    """A real S3 server on loopback."""

    options: dict[str, Any]
    bucket: str

    def url(self, path: str) -> str:
        return f"s3://{self.bucket}/{path}"


SECRET = "wJalrXUtnFEMI-test-secret-0123456789"


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(_s3_server: str) -> S3:
    """An empty bucket on the S3 server, and the options that reach it."""
    import s3fs

    options = {"key": "AKIATESTKEY0123", "secret": SECRET, "client_kwargs": {"endpoint_url": _s3_server}}
    bucket = f"b{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(**options).mkdir(bucket)
    return S3(options, bucket)
