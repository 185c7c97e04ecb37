"""The fetcher's pure parts: addresses, robots.txt, opt-outs, URLs, buckets."""

from __future__ import annotations

import ipaddress
import socket
from itertools import pairwise

import pyarrow as pa
import pytest

from stages.fetch import chunks, robots, tdmrep
from stages.fetch.addresses import BlockedAddressError, Guard, is_public, networks
from stages.fetch.client import _retry_after
from stages.fetch.encoding import TooLargeError, decoded
from stages.fetch.facts import URL
from stages.fetch.opt_out import DIRECTIVES, heeded
from stages.fetch.outcome import FetchError, is_transient
from stages.fetch.target import MOST_URL, parse_url, redirected
from stages.urls import canonical_url


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
        "http://ex%61mple.org/",
        "http://example.org/" + "a" * MOST_URL,
    ],
)
def test_junk_urls(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_url(url)


def test_a_redirect_to_junk_is_a_reason() -> None:
    for location in ("http://[]@", "//[::1", "javascript:1"):
        with pytest.raises(FetchError, match=r"bad_url"):
            redirected(parse_url("http://a.org/b"), location)


def test_urls_lose_credentials_and_fragments() -> None:
    assert str(parse_url(" http://me:secret@example.org/a?b=1#c ")) == "http://example.org/a?b=1"
    assert str(parse_url("http://me@[2001:db8::1]:8080/#?a=1")) == "http://[2001:db8::1]:8080/"


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("http://bücher.example/ü", "http://xn--bcher-kva.example/%C3%BC"),
        ("HTTP://BÜCHER.example:80/ü", "http://xn--bcher-kva.example/%C3%BC"),
        ("http://a.org/a b?c d", "http://a.org/a%20b?c+d"),
        ("http://a.org/%zz%2f%C3%A9", "http://a.org/%25zz%2F%C3%A9"),
        ("http://a.org/a|b^c`d\\e", "http://a.org/a%7Cb%5Ec%60d%5Ce"),
        ("http://a.org/../../etc/passwd", "http://a.org/etc/passwd"),
        ("http://a.org/a\nb\tc\rd", "http://a.org/abcd"),
        ("http://a.org/\ud800", "http://a.org/"),
    ],
)
def test_odd_urls_are_sent_in_one_spelling(text: str, sent: str) -> None:
    url = parse_url(text)
    assert str(url) == sent
    assert str(url).isascii()
    assert str(url).isprintable()


def test_both_spellings_of_an_international_name_share_a_bucket() -> None:
    assert chunks.site("http://bücher.example/a") == chunks.site("http://XN--BCHER-KVA.example/b")
    assert chunks.site("http://\ud800/") == "\ud800"


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
        (["unavailable_after: Wed, 03 Dec 2036 13:09:53 GMT, noai"], True),
        (["otherbot: unavailable_after: Wed, 03 Dec 2036 13:09:53 GMT, noai"], False),
        (["*: noml"], True),
        (["index, follow", "googlebot: none", "nosnippet"], False),
    ],
)
def test_opt_outs(tags: list[str], out: bool) -> None:
    assert (heeded(tags, [], "rs-curation", DIRECTIVES) is not None) is out


def test_directives_of_a_recipe_count_in_any_case() -> None:
    assert heeded(["noai"], [], "x", ["NoAI"]) == "X-Robots-Tag: noai"


def test_tdm_reservation_is_an_opt_out() -> None:
    assert heeded([], ["0", "1"], "x", DIRECTIVES) == "TDM-Reservation: 1"
    assert heeded([], ["0"], "x", DIRECTIVES) is None


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


def test_tdmrep_files() -> None:
    text = b'[{"location": "/open/*", "tdm-reservation": 0}, {"location": "/*.jpg$", "tdm-reservation": "1"}, 7]'
    rules = tdmrep.parse(text)
    assert rules.heeded("/open/a.jpg") is None
    assert rules.heeded("/b.jpg") == "tdmrep.json: /*.jpg$"
    assert rules.heeded("/b.jpg?x") is None
    for nonsense in (b"", b"<html>", b"{}", b"[" * 100_000, b'[{"location": 1}]', b"\xff"):
        assert tdmrep.parse(nonsense).heeded("/") is None


@pytest.mark.parametrize(("name", "stream"), [("br", "brotli"), ("zstd", "zstd"), ("gzip", "gzip"), ("x-gzip", "gzip")])
def test_encodings_are_undone_within_the_limit(name: str, stream: str) -> None:
    body = compressed(b"plain " * 50, stream)
    assert decoded(body, name.upper(), 300) == b"plain " * 50
    with pytest.raises(TooLargeError) as raised:
        decoded(body, name, 299)
    assert raised.value.beginning == (b"plain " * 50)[:299]
    assert decoded(b"\xff\xd8 no such thing", name, 300) == b"\xff\xd8 no such thing"
    assert decoded(compressed(body, "gzip"), f"{name}, gzip", 300) == b"plain " * 50


def test_encodings_piled_up_or_unknown_are_left_alone() -> None:
    body = compressed(compressed(compressed(b"plain", "gzip"), "gzip"), "gzip")
    assert decoded(body, "gzip,gzip,gzip", 1000) == body
    assert decoded(b"plain", "identity", 1000) == b"plain"
    assert decoded(b"plain", "compress", 1000) == b"plain"


def compressed(data: bytes, stream: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, stream) as out:
        out.write(data)
    return bytes(sink.getvalue().to_pybytes())


def test_what_robots_txt_says_is_told() -> None:
    rules = robots.parse(ROBOTS, "rs-curation")
    assert rules.verdict("/private/a.jpg") == (False, "robots.txt: Disallow: /private")
    assert rules.verdict("/open") == (True, "robots.txt: allowed")
    assert robots.Rules().verdict("/open") == (True, "robots.txt: none")


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


def test_urls_are_canonical_however_they_come() -> None:
    urls = [
        None,
        "",
        "junk",
        "http://a.org",
        "http://a.org/",
        "http://a.org?b",
        "http://a.org/#c",
        "https://a.org:443/d",
    ]
    urls += [
        "HTTP://a.org/",
        "http://A.org/",
        "http://me@a.org/",
        "http://a.org:80",
        "ftp://a.org/",
        "http://a.org/\n#x",
    ]
    urls += ["http://[::1]/", "http://b\u00fccher.org/", "https://a.org/%23", "http://a.org/a b", "//a.org/#", "#"]
    expected = [canonical_url(url or "") for url in urls]
    for kind in (pa.string(), pa.large_string()):
        column = pa.chunked_array([pa.array(urls[:9], kind), pa.array(urls[9:], kind)])
        assert chunks.canonical_urls(column).to_pylist() == expected
    assert chunks.canonical_urls(pa.chunked_array([], pa.string())).to_pylist() == []


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
