import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.urls import canonical_url, host, parent_domains


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("HTTP://Example.COM/A?b=C#frag", "http://example.com/A?b=C"),
        ("http://example.com:80/a", "http://example.com/a"),
        ("https://example.com:443", "https://example.com"),
        ("https://example.com:80/a", "https://example.com:80/a"),
        ("http://example.com:/a", "http://example.com/a"),
        ("http://User:Pass@Example.com:8080/", "http://User:Pass@example.com:8080/"),
        ("http://[2001:DB8::1]:80/x", "http://[2001:db8::1]/x"),
        ("http://[2001:DB8::1]/x", "http://[2001:db8::1]/x"),
        ("//Example.com/a", "//example.com/a"),
        ("a/b.jpg#x", "a/b.jpg"),
        ("http://a:80:80/", "http://a:80:80/"),
        ("", ""),
    ],
)
def test_canonical_forms(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://A.Example.org.:81/x", "a.example.org"),
        ("https://u@h@example.org/", "example.org"),
        ("http://[::1]:80/", "::1"),
        ("mailto:a@b.org", ""),
        ("no url", ""),
    ],
)
def test_hosts(url: str, name: str) -> None:
    assert host(url) == name


@given(st.text())
def test_any_text_is_taken_and_canonical_is_a_fixed_point(text: str) -> None:
    for url in (text, f"http://{text}"):
        once = canonical_url(url)
        assert "#" not in once
        assert isinstance(host(url), str)
        assert canonical_url(once) == once


def test_parent_domains() -> None:
    assert parent_domains("a.b.org") == ["a.b.org", "b.org", "org"]
