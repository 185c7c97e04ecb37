from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest

from demo.web import BUSY, CDN, HOSTS, Page, Web, free_port, serving


def _get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_pages_by_host_and_path() -> None:
    web = Web(free_port())
    first = web.add(CDN[0], "/a.jpg", Page(body=b"one"))
    second = web.add(CDN[1], "/a.jpg", Page(body=b"two", headers={"X-Robots-Tag": "noai"}))
    with serving(web) as requests:
        assert _get(first) == (200, b"one")
        with urllib.request.urlopen(second) as answer:
            assert answer.read() == b"two"
            assert answer.headers["X-Robots-Tag"] == "noai"
        assert _get(web.url(CDN[2], "/a.jpg"))[0] == 404
        assert requests[CDN[0], "/a.jpg"] == 1


def test_a_page_may_refuse_at_first() -> None:
    web = Web(free_port())
    url = web.add(BUSY, "/b.jpg", Page(body=b"x", first=(429, {"Retry-After": "1"})))
    with serving(web):
        assert [_get(url)[0] for _ in range(3)] == [429, 200, 200]


def test_an_endless_body_goes_on() -> None:
    web = Web(free_port())
    url = web.add(CDN[0], "/endless.jpg", Page(pace="endless"))
    with serving(web), urllib.request.urlopen(url, timeout=5) as answer:
        assert len(answer.read(3_000_000)) == 3_000_000
        assert answer.headers["Content-Length"] is None


def test_the_next_port_is_taken_where_one_is_in_use() -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind((HOSTS[-1], port))
        taken.listen()
        assert free_port(port) > port
        with pytest.raises(OSError, match="in use"), serving(Web(port)):
            pass


def test_a_path_is_taken_once() -> None:
    web = Web()
    web.add(CDN[0], "/a", Page())
    with pytest.raises(ValueError, match="already"):
        web.add(CDN[0], "/a", Page())
