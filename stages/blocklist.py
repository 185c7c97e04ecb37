"""Blocklists: URLs, domains and images that never enter a dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.errors import UserError
from stages.storage import Store
from stages.urls import canonical_url, host, parent_domains

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_PHASH = re.compile(r"[0-9a-fA-F]{16}")
_DOMAIN = re.compile(r"(?:\*\.|\.)?((?:[\w-]+\.)+[\w-]+)\.?")
_AUTHORITY = r"(?s)^(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//(?P<authority>[^/?#]*)"


@dataclass(frozen=True)
class Blocklist:
    """What never enters, by kind."""

    urls: frozenset[str] = frozenset()
    """Canonical URLs (`stages.urls.canonical_url`)."""
    domains: frozenset[str] = frozenset()
    """Hosts in lower case; each stands for all below it, too."""
    sha256: frozenset[str] = frozenset()
    phash: frozenset[int] = frozenset()

    def blocks_url(self, url: str) -> bool:
        """Whether the URL, its host or a domain above it is listed."""
        if canonical_url(url) in self.urls:
            return True
        return not self.domains.isdisjoint(parent_domains(host(url)))

    def blocked_urls(self, urls: pa.Array) -> np.ndarray:
        """`blocks_url` for a string column, as a boolean array; null is never blocked.

        Hosts are taken by RE2 and looked up once each; only URLs of a listed URL's host are compared whole.
        """
        blocked = np.zeros(len(urls), bool)
        if not self.urls and not self.domains:
            return blocked
        found = pc.struct_field(pc.extract_regex(urls, _AUTHORITY), "authority")
        authorities = pc.dictionary_encode(found)
        hosts = [host(f"//{name}") for name in authorities.dictionary.to_pylist()]
        by_domain = np.array([not self.domains.isdisjoint(parent_domains(name)) for name in hosts], bool)
        listed_hosts = {host(url) for url in self.urls}
        to_compare = np.array([name in listed_hosts for name in hosts], bool)
        codes = authorities.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        has_host = codes >= 0
        blocked[has_host] = by_domain[codes[has_host]]
        compare = np.zeros(len(urls), bool)
        compare[has_host] = to_compare[codes[has_host]]
        compare |= ~has_host & ("" in listed_hosts)
        for index in np.flatnonzero(compare & ~blocked):
            url = urls[int(index)].as_py()
            blocked[index] = url is not None and canonical_url(url) in self.urls
        return blocked


@lru_cache(maxsize=4)
def load(paths: tuple[str, ...]) -> Blocklist:
    """Read list files: one URL, domain, sha256 (64 hex digits) or phash (16) a line; `#` starts a comment line.

    Raises:
        UserError: a file that is not there, or a line that is none of the four.
    """
    entries: dict[str, set[str]] = {"url": set(), "domain": set(), "sha256": set(), "phash": set()}
    for path in paths:
        for number, line in enumerate(_lines(path), 1):
            if line and not line.startswith("#"):
                kind, value = _entry(line, path, number)
                entries[kind].add(value)
    return Blocklist(
        urls=frozenset(entries["url"]),
        domains=frozenset(entries["domain"]),
        sha256=frozenset(entries["sha256"]),
        phash=frozenset(int(value, 16) for value in entries["phash"]),
    )


def _lines(path: str) -> Sequence[str]:
    try:
        text = Store(path).read(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"blocklist {path!r}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"blocklist {path!r} is not UTF-8 text (byte {error.start})") from error
    return [line.strip() for line in text.split("\n")]


def _entry(line: str, path: str, number: int) -> tuple[str, str]:
    if "://" in line:
        return "url", canonical_url(line)
    if _SHA256.fullmatch(line):
        return "sha256", line.lower()
    if _PHASH.fullmatch(line):
        return "phash", line.lower()
    if domain := _DOMAIN.fullmatch(line):
        return "domain", domain[1].lower()
    raise UserError(
        f"blocklist {path!r}, line {number}: {line[:80]!r} is no URL, domain, sha256 (64 hex digits) "
        "or phash (16 hex digits)"
    )
