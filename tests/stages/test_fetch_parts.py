"""The fetcher's pure parts: addresses, robots.txt, opt-outs, URLs, buckets."""

from __future__ import annotations

import ipaddress
import socket
from itertools import pairwise

import pyarrow as pa
import pytest

from stages.fetch import chunks, robots
from stages.fetch.addresses import BlockedAddressError, Guard, is_public, networks
from stages.fetch.client import _retry_after, _target, parse_url
from stages.fetch.facts import URL
from stages.fetch.opt_out import DIRECTIVES, opted_out
from stages.fetch.outcome import FetchError, is_transient


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:c0a8:101::1",
        "2001:db8::1",
        "::127.0.0.1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    assert not Guard().allows(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address: str) -> None:
    assert Guard().allows(address)


def test_allowed_networks_open_no_others() -> None:
    guard = Guard(networks(["127.0.0.0/8"]))
    assert guard.allows("127.3.2.1")
    assert guard.allows("::ffff:127.0.0.1")
    assert not guard.allows("10.0.0.1")
    assert not guard.allows("::1")
    with pytest.raises(ValueError, match="allow_private holds 'home'"):
        networks(["home"])


def test_the_socket_is_the_last_check() -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))
    with pytest.raises(BlockedAddressError):
        Guard().socket(info)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "junk",
        "ftp://example.org/a",
        "file:///etc/passwd",
        "http://",
        "http:///a",
        "http://a b/",
        "http://a..b/",
        "http://[::1",
        "http://[]@",
        "http://x:99999/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://" + "a" * 64 + ".org/",
        "//example.org/a",
        "data:image/png;base64,AAAA",
    ],
)
def test_junk_urls(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_url(url)


def test_a_redirect_to_junk_is_a_reason() -> None:
    for location in ("http://[]@", "//[::1", "javascript:1"):
        with pytest.raises(FetchError, match=r"bad_url"):
            _target(parse_url("http://a.org/b"), location)


def test_urls_lose_credentials_and_fragments() -> None:
    assert str(parse_url(" http://me:secret@example.org/a?b=1#c ")) == "http://example.org/a?b=1"
    assert parse_url("http://bücher.example/ü").raw_host == "xn--bcher-kva.example"


ROBOTS = """
# a comment
User-agent: rs-curation
User-agent: other/2.0
Disallow: /private
Allow: /private/open
Disallow: /*.gif$

User-agent: *
Disallow: /
"""


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", True),
        ("/private", False),
        ("/private/a.jpg", False),
        ("/private/open/a.jpg", True),
        ("/a.gif", False),
        ("/a.gif?x", True),
        ("/%70rivate", False),
    ],
)
def test_robots_rules_of_our_group(path: str, allowed: bool) -> None:
    assert robots.parse(ROBOTS, "rs-curation").allows(path) is allowed
    assert robots.parse(ROBOTS, "OTHER").allows(path) is allowed


def test_robots_groups() -> None:
    assert not robots.parse(ROBOTS, "somebody").allows("/a")
    assert robots.parse("", "x").allows("/a")
    assert robots.parse("User-agent: *\nDisallow:\n", "x").allows("/a")
    assert robots.parse("<html>not robots</html>", "x").allows("/a")
    split = "User-agent: x\nDisallow: /a\n\nUser-agent: x\nDisallow: /b\n"
    assert not robots.parse(split, "x").allows("/a")
    assert not robots.parse(split, "x").allows("/b")
    tie = "User-agent: *\nDisallow: /page\nAllow: /page\n"
    assert robots.parse(tie, "x").allows("/page")
    middle = robots.parse("User-agent: *\nDisallow: /a*/c*d$\n", "x")
    assert not middle.allows("/a/b/c/d")
    assert middle.allows("/a/b/c/de")


@pytest.mark.parametrize(
    ("tags", "out"),
    [
        ([], False),
        (["all"], False),
        (["noai"], True),
        (["nofollow, NoImageAI"], True),
        (["none"], True),
        (["noarchive", "noai"], True),
        (["googlebot: noai"], False),
        (["googlebot: nofollow, noai"], False),
        (["googlebot: nofollow, rs-curation: noai"], True),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noimageindex"], True),
        (["max-image-preview:none"], False),
    ],
)
def test_opt_outs(tags: list[str], out: bool) -> None:
    assert opted_out(tags, None, "rs-curation", DIRECTIVES) is out


def test_directives_of_a_recipe_count_in_any_case() -> None:
    assert opted_out(["noai"], None, "x", ["NoAI"])


def test_tdm_reservation_is_an_opt_out() -> None:
    assert opted_out([], "1", "x", DIRECTIVES)
    assert not opted_out([], "0", "x", DIRECTIVES)


@pytest.mark.parametrize(
    ("reason", "status", "transient"),
    [
        ("dns", None, True),
        ("timeout", 200, True),
        ("host_down", None, True),
        ("http_error", 429, True),
        ("http_error", 503, True),
        ("http_error", 404, False),
        ("http_error", None, False),
        ("tls", None, False),
        ("truncated", 200, False),
        (None, 200, False),
    ],
)
def test_what_is_transient(reason: str | None, status: int | None, transient: bool) -> None:
    assert is_transient(reason, status) is transient


def test_retry_after() -> None:
    assert _retry_after("120") == 120
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert _retry_after("soon") is None
    assert _retry_after("Mon, 1 Jan 99999999999999999999 00:00:00 GMT") is None
    assert _retry_after("\u00b2") is None
    assert _retry_after(None) is None


def test_buckets_are_powers_of_two_and_nest() -> None:
    assert [chunks.buckets_for(rows) for rows in (0, 10_000, 100_000, 10**9)] == [4, 8, 64, 1024]
    for number in range(50):
        url = f"http://host{number}.org/a"
        few, many = chunks.bucket_of(url, 8), chunks.bucket_of(url, 64)
        assert chunks.overlaps(few, 8, many, 64)
        assert chunks.overlaps(many, 64, few, 8)
    assert not chunks.overlaps(1, 8, 2, 64)


def test_chunks_never_split_a_url() -> None:
    urls = [f"http://h/{number % 37}" for number in range(400)]
    table = pa.table({"key": [str(n) for n in range(400)], URL: urls, "reason": pa.nulls(400, pa.string())})
    cut = chunks.cut_lane(table, rows=50)
    assert sum(chunk.num_rows for chunk in cut) == 400
    assert all(chunk.num_rows >= 50 for chunk in cut[:-1])
    sets = [set(chunk.column(URL).to_pylist()) for chunk in cut]
    assert sum(map(len, sets)) == 37
    assert all(not a & b for a, b in pairwise(sets))


def test_repeated_keys_keep_the_first() -> None:
    table = pa.table({"key": ["a", "b", "a"], URL: ["u", "u", "u"], "reason": pa.nulls(3, pa.string())})
    (chunk,) = chunks.cut_lane(table)
    assert chunk.column("reason").to_pylist() == [None, None, "duplicate_row"]
