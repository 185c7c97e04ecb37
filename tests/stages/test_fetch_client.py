"""The fetcher against a server that misbehaves."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from stages.fetch import client, hosts, tdmrep
from stages.fetch.addresses import networks
from stages.fetch.client import Fetcher
from stages.fetch.options import FetchOptions
from stages.fetch.outcome import Fetched
from tests.nameserver import NameServer, naming
from tests.webserver import WebServer, serving

BODY = b"some bytes" * 300


@pytest.fixture
def server() -> Iterator[WebServer]:
    with serving(WebServer(pages={"/a": BODY, "/big": b"x" * 3_000_000})) as running:
        yield running


def options(**changes: Any) -> FetchOptions:
    settings: dict[str, Any] = {
        "user_agent": "rs-curation/0.1 (+https://example.org/about)",
        "timeout_s": 0.6,
        "retries": 1,
        "backoff_s": 0.02,
        "allowed": networks(["127.0.0.0/8"]),
    }
    return FetchOptions(**(settings | changes))


def fetch(urls: Sequence[str], **changes: Any) -> list[Fetched]:
    async def run() -> list[Fetched]:
        fetcher = Fetcher(options(**changes))
        try:
            return await asyncio.gather(*(fetcher.fetch(url) for url in urls))
        finally:
            await fetcher.close()

    return asyncio.run(run())


def outcome(server: WebServer, path: str, **changes: Any) -> tuple[str | None, int | None, int]:
    (fetched,) = fetch([server.url(path)], **changes)
    return fetched.reason, fetched.http_status, fetched.attempts


def test_a_body_comes_as_it_is(server: WebServer) -> None:
    (fetched,) = fetch([server.url("/a")])
    assert fetched == Fetched(http_status=200, data=BODY, attempts=1, honoured="robots.txt: none")
    assert server.agents == {"rs-curation/0.1 (+https://example.org/about)"}


def test_definitive_statuses_are_not_retried(server: WebServer) -> None:
    assert outcome(server, "/none") == ("http_error", 404, 1)
    assert outcome(server, "/_/status/410") == ("http_error", 410, 1)
    assert server.hits["/none"] == 1


def test_transient_statuses_are_retried(server: WebServer) -> None:
    assert outcome(server, "/_/status/500", retries=2) == ("http_error", 500, 3)
    assert outcome(server, "/_/flaky/502/1/a") == (None, 200, 2)


def test_a_throttled_host_is_left_alone_for_the_time_it_asks(server: WebServer) -> None:
    began = time.monotonic()
    assert outcome(server, "/_/flaky/429/1/a") == (None, 200, 2)
    assert time.monotonic() - began >= hosts.FIRST_PAUSE


def test_a_host_that_only_throttles_is_given_up(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 URLs answered 429 neither take long nor hammer the host."""
    monkeypatch.setattr(hosts, "MOST_PAUSE", 0.2)
    monkeypatch.setattr(hosts, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(hosts.Host.__init__, "__defaults__", (None, 1.0))
    server.robots = ""
    began = time.monotonic()
    done = fetch([server.url(f"/_/throttle/3600/{number}") for number in range(10_000)], timeout_s=10)
    assert time.monotonic() - began < 60
    assert {(each.reason, each.http_status) for each in done} == {("http_error", 429), ("host_down", 429)}
    assert server.images_asked() < 50


def test_a_dead_port_breaks_the_circuit() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        done = fetch([f"http://127.0.0.1:{port}/{number}" for number in range(100)], respect_robots=False)
    assert {each.reason for each in done} == {"connect", "host_down"}
    assert sum(each.attempts for each in done) < 10
    assert all(each.attempts == 0 for each in done if each.reason == "host_down")


def test_names_that_do_not_resolve() -> None:
    assert fetch(["http://nowhere.invalid/a"])[0].reason == "dns"


def test_redirects_are_followed_and_counted(server: WebServer) -> None:
    assert outcome(server, f"/_/to?url={server.url('/a')}") == (None, 200, 1)
    assert outcome(server, "/_/to?url=../a") == (None, 200, 1)
    assert outcome(server, "/_/loop/1", max_redirects=3) == ("too_many_redirects", 301, 1)
    assert server.hits["/_/loop/4"] == 1
    assert server.hits["/_/loop/5"] == 0


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data", "blocked_address"),
        ("http://[::1]:80/", "blocked_address"),
        ("http://[::ffff:10.0.0.1]/", "blocked_address"),
        ("file:///etc/passwd", "bad_url"),
        ("ftp://example.org/", "bad_url"),
    ],
)
def test_redirects_pass_the_guard_again(server: WebServer, target: str, reason: str) -> None:
    assert outcome(server, f"/_/to?url={target}")[0] == reason


def test_private_addresses_are_blocked_by_default(server: WebServer) -> None:
    urls = [server.url("/a"), server.url("/a", "localhost"), "http://10.0.0.1/", "http://[fd00::1]/"]
    done = fetch(urls, allowed=())
    assert [each.reason for each in done] == ["blocked_address"] * 4
    assert not server.hits


def test_a_name_that_leads_to_a_private_address_is_allowed_with_its_network(server: WebServer) -> None:
    assert fetch([server.url("/a", "localhost")])[0].reason is None


def test_bodies_are_capped(server: WebServer) -> None:
    assert outcome(server, "/big", max_bytes=2_999_999)[0] == "too_large"
    assert outcome(server, "/big", max_bytes=3_000_000) == (None, 200, 1)
    assert outcome(server, "/_/endless", max_bytes=5_000_000, timeout_s=10) == ("too_large", 200, 1)


def test_slow_and_silent_servers_are_cut(server: WebServer) -> None:
    began = time.monotonic()
    assert outcome(server, "/_/slow", retries=0) == ("timeout", 200, 1)
    assert outcome(server, "/_/silent", retries=0) == ("timeout", None, 1)
    assert time.monotonic() - began < 5


def test_a_connection_that_breaks_off_is_transient(server: WebServer) -> None:
    assert outcome(server, "/_/cut") == ("connect", None, 2)


def test_broken_bodies_do_not_count_as_a_dead_host(server: WebServer) -> None:
    done = fetch([*(server.url(f"/_/cut/{number}") for number in range(12)), server.url("/a")], retries=0)
    assert [each.reason for each in done] == ["connect"] * 12 + [None]


def test_insecure_hosts_are_insecure_however_often(server: WebServer) -> None:
    urls = [server.url(f"/{number}").replace("http:", "https:") for number in range(12)]
    assert {each.reason for each in fetch(urls, respect_robots=False)} == {"tls"}


def test_compressed_bodies_are_inflated_within_the_cap(server: WebServer) -> None:
    (fetched,) = fetch([server.url("/_/gzip/a")])
    assert fetched.data == BODY
    assert outcome(server, "/_/gzip/big", max_bytes=1_000_000)[0] == "too_large"


def test_plain_http_on_a_tls_url_is_a_tls_error(server: WebServer) -> None:
    assert fetch([server.url("/a").replace("http:", "https:")])[0].reason == "tls"


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_bombs_of_every_encoding_are_too_large(server: WebServer, encoding: str) -> None:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, {"br": "brotli"}.get(encoding, encoding)) as out:
        for _ in range(100):
            out.write(bytes(1 << 20))
    server.pages["/bomb"] = sink.getvalue().to_pybytes()
    server.headers["/bomb"] = [("Content-Encoding", encoding)]
    assert outcome(server, "/bomb", max_bytes=1_000_000, timeout_s=20) == ("too_large", 200, 1)


def test_headers_without_end_are_cut(server: WebServer) -> None:
    began = time.monotonic()
    assert outcome(server, "/_/headers", timeout_s=20, retries=0)[0] == "http_error"
    assert outcome(server, "/_/long-header/20000", timeout_s=20, retries=0)[0] == "http_error"
    assert time.monotonic() - began < 10
    assert outcome(server, "/_/long-header/9000")[0] is None
    assert outcome(server, "/_/slow-headers", retries=0) == ("timeout", None, 1)


def test_the_first_byte_has_a_limit_of_its_own(server: WebServer) -> None:
    began = time.monotonic()
    assert outcome(server, "/_/silent", timeout_s=25, first_byte_s=0.2, retries=0) == ("timeout", None, 1)
    assert time.monotonic() - began < 10
    assert outcome(server, "/_/pieces/20/0.05", timeout_s=25, first_byte_s=0.5) == (None, 200, 1)


def test_large_bodies_that_stall_cost_the_others_nothing(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LARGE_BODIES", 1)
    paths = ["/_/stall/1500000", *(f"/big?{number}" for number in range(4))]
    done = fetch([server.url(path) for path in paths], timeout_s=1.5, retries=0)
    assert [each.reason for each in done] == ["timeout", None, None, None, None]


def test_tarpits_break_the_circuit(server: WebServer) -> None:
    done = fetch([server.url(f"/_/slow/{number}") for number in range(100)], retries=0)
    assert {(each.reason, each.http_status) for each in done} == {("timeout", 200), ("host_down", None)}
    assert server.images_asked() <= 2 * options().per_host


def test_a_rate_is_kept(server: WebServer) -> None:
    server.robots = ""
    began = time.monotonic()
    done = fetch([server.url(f"/a?{number}") for number in range(12)], per_host_rate=20.0, timeout_s=10)
    assert {each.reason for each in done} == {None}
    assert time.monotonic() - began >= 12 / 20  # 13 requests, with robots.txt


def test_hosts_that_only_redirects_lead_to_get_a_share(server: WebServer) -> None:
    """They are another lane's, and only that one may use the whole limit."""
    server.delay = 0.02
    urls = [server.url(f"/_/to?url={server.url(f'/a?{number}')}", "localhost") for number in range(40)]
    assert {each.reason for each in fetch(urls, per_host=8, timeout_s=20)} == {None}
    assert server.most_active_by_host == {"localhost": 8, "127.0.0.1": 2}
    both = [*urls, *(server.url(f"/a?{number}") for number in range(40))]
    assert {each.reason for each in fetch(both, per_host=8, timeout_s=20)} == {None}
    assert server.most_active_by_host["127.0.0.1"] == 8


def test_a_host_that_waits_holds_no_place(server: WebServer) -> None:
    """URLs of a throttled host leave all requests at once to the others."""

    async def run() -> int:
        fetcher = Fetcher(options(concurrency=2, per_host=2, timeout_s=20))
        waiting = [
            asyncio.create_task(fetcher.fetch(server.url(f"/_/throttle/30/{number}", "localhost")))
            for number in range(200)
        ]
        await asyncio.sleep(0.3)
        good = [fetcher.fetch(server.url(f"/a?{number}")) for number in range(50)]
        done = await asyncio.wait_for(asyncio.gather(*good), 20)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await fetcher.close()
        return sum(each.reason is None for each in done)

    assert asyncio.run(run()) == 50
    assert sum(server.hits[f"/_/throttle/30/{number}"] for number in range(200)) <= 2


def test_names_are_resolved_by_the_servers_given(server: WebServer) -> None:
    with naming(NameServer(names={"images.example": (60, ["127.0.0.1"])})) as names:
        urls = [server.url(f"/a?{number}", "images.example") for number in range(20)]
        done = fetch([*urls, "http://none.example/a"], nameservers=(names.address,), timeout_s=10)
    assert [each.reason for each in done] == [None] * 20 + ["dns"]
    assert names.asked["images.example"] == 1


def test_robots_txt_is_asked_once_and_honoured(server: WebServer) -> None:
    server.robots = "User-agent: rs-curation\nDisallow: /a\n"
    done = fetch([server.url("/a"), server.url("/big"), server.url("/a?x")])
    assert [each.reason for each in done] == ["robots", None, "robots"]
    assert [each.honoured for each in done] == [
        "robots.txt: Disallow: /a",
        "robots.txt: allowed",
        "robots.txt: Disallow: /a",
    ]
    assert server.hits == {"/robots.txt": 1, "/big": 1}
    assert outcome(server, "/a", respect_robots=False)[0] is None


def test_robots_txt_that_fails_is_transient(server: WebServer) -> None:
    server.robots_status = 500
    assert outcome(server, "/a") == ("http_error", 500, 2)
    assert server.hits["/a"] == 0
    server.robots_status = 403
    assert outcome(server, "/a")[0] is None


def test_opt_out_headers(server: WebServer) -> None:
    server.headers = {
        "/a": [("X-Robots-Tag", "noarchive"), ("X-Robots-Tag", "noai")],
        "/big": [("TDM-Reservation", "1")],
    }
    assert outcome(server, "/a")[0] == "opt_out"
    assert outcome(server, "/big")[0] == "opt_out"
    assert outcome(server, "/a", respect_opt_outs=False)[0] is None
    done = fetch([server.url("/a"), server.url("/big")])
    assert [each.honoured for each in done] == ["X-Robots-Tag: noai", "TDM-Reservation: 1"]
    assert fetch([server.url("/a")], respect_robots=False, respect_opt_outs=False)[0].honoured is None


def test_tdmrep_is_asked_once_where_wished(server: WebServer) -> None:
    server.pages[tdmrep.PATH] = b'[{"location": "/*", "tdm-reservation": 1, "tdm-policy": "http://a.org/"}]'
    server.headers = {"/big": [("TDM-Reservation", "0")]}
    assert outcome(server, "/a")[0] is None
    assert server.hits[tdmrep.PATH] == 0
    done = fetch([server.url("/a"), server.url("/a?1"), server.url("/big")], respect_tdmrep=True)
    assert [(each.reason, each.honoured) for each in done] == [
        ("opt_out", "tdmrep.json: /*"),
        ("opt_out", "tdmrep.json: /*"),
        (None, "robots.txt: none"),
    ]
    assert server.hits[tdmrep.PATH] == 1


def test_a_host_gets_no_more_requests_at_once_than_allowed(server: WebServer) -> None:
    server.delay = 0.02
    done = fetch([server.url(f"/a?{number}") for number in range(40)], per_host=3)
    assert {each.reason for each in done} == {None}
    assert server.most_active == 3


def test_large_bodies_wait_for_each_other(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LARGE_BODIES", 1)
    done = fetch([server.url(f"/big?{number}") for number in range(12)], timeout_s=10)
    assert [len(each.data) for each in done] == [3_000_000] * 12


def test_a_timeout_is_tried_again_only_at_a_host_that_has_answered(server: WebServer) -> None:
    assert outcome(server, "/_/silent", retries=1, respect_robots=False) == ("timeout", None, 1)
    assert outcome(server, "/_/silent", retries=1) == ("timeout", None, 2)
