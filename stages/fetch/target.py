"""URLs that may be asked: http and https, hosts in their usual notation, no credentials."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from yarl import URL

from stages.fetch.outcome import FetchError

MOST_URL = 8192
"""Characters of a URL."""
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


def parse_url(text: str) -> URL:
    """An absolute http(s) URL of up to `MOST_URL` characters, without credentials and fragment.

    Raises:
        ValueError: it is none.
    """
    if len(text) > MOST_URL:
        raise ValueError(f"a URL of {len(text)} characters: {text[:100]!r}")
    url = _url(text)
    if url.scheme not in ("http", "https") or not _is_host(url.raw_host or ""):
        raise ValueError(f"not an absolute http(s) URL: {text[:100]!r}")
    if not 0 < (url.port or 0) < 65536:
        raise ValueError(f"no such port: {text[:100]!r}")
    return url.with_user(None).with_fragment(None)


def _url(text: str) -> URL:
    """Raise ValueError, and nothing else, for what is no URL."""
    try:
        return URL(text.strip())
    except IndexError as error:  # yarl's, for some stray brackets
        raise ValueError(f"no URL: {text[:100]!r}") from error


@lru_cache(8192)
def _is_host(host: str) -> bool:
    """A name of the DNS or an address in its usual notation; not `2130706433`, `0x7f.1` and their like."""
    if ":" in host:
        return True
    labels = host.removesuffix(".").split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        return False
    return not _NUMBER.fullmatch(labels[-1]) or _is_ipv4(host)


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def redirected(url: URL, location: str) -> URL:
    """Where a redirect leads.

    Raises:
        FetchError: nowhere that may be asked.
    """
    try:
        return parse_url(str(url.join(_url(location))))
    except ValueError:
        raise FetchError("bad_url") from None
