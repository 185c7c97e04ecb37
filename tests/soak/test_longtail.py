"""A web of 2,000 hosts, of which some never answer: the download stage ends soon after its last answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.longtail import CONCURRENCY, LANES, Web, run

pytestmark = pytest.mark.soak

TIMEOUT = 8.0


@pytest.mark.timeout(1200)
def test_a_long_tailed_web_is_fetched_to_its_reachable_share(tmp_path: Path) -> None:
    web = Web(2000, 8000)
    curve = run(web, tmp_path, {"timeout_s": TIMEOUT, "first_byte_s": TIMEOUT})
    assert curve.counts["kept"] == web.reachable
    assert set(curve.counts) <= {"kept", "connect", "timeout", "host_down"}
    assert sum(curve.counts.values()) == web.urls
    assert curve.most_at_once <= LANES * CONCURRENCY
    assert curve.seconds - curve.done[-1] < 4 * TIMEOUT
    assert curve.seconds < 10 * web.floor(TIMEOUT)
