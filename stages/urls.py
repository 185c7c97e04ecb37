"""URLs as the web writes them: how two compare, and which host one names. Junk is never an error."""

from __future__ import annotations

import re

_URL = re.compile(r"(?s)(?:([A-Za-z][A-Za-z0-9+.\-]*):)?//([^/?#]*)(.*)")
_DEFAULT_PORTS = {"http": "80", "https": "443", "ftp": "21"}


def canonical_url(url: str) -> str:
    """The form under which two URLs compare: scheme and host in lower case, no default port, no fragment.

    Path, query and user information stay as they are. What is no absolute URL only loses its fragment.
    """
    match = _URL.fullmatch(url)
    if match is None:
        return url.partition("#")[0]
    scheme, authority, rest = (match[1] or "").lower(), match[2], match[3].partition("#")[0]
    user, at, host, port = _split_authority(authority)
    if port in ("", _DEFAULT_PORTS.get(scheme)):
        port = ""
    prefix = f"{scheme}://" if scheme else "//"
    return f"{prefix}{user}{at}{host.lower()}{':' if port else ''}{port}{rest}"


def host(url: str) -> str:
    """The host in lower case, without user, port, brackets and a trailing dot; empty when there is none."""
    match = _URL.fullmatch(url)
    if match is None:
        return ""
    name = _split_authority(match[2])[2]
    return name.removeprefix("[").removesuffix("]").removesuffix(".").lower()


def parent_domains(name: str) -> list[str]:
    """A host and every domain above it, longest first: `a.b.org` gives `a.b.org`, `b.org`, `org`."""
    labels = name.split(".")
    return [".".join(labels[start:]) for start in range(len(labels))]


def _split_authority(authority: str) -> tuple[str, str, str, str]:
    """(user information, "@" or "", host, port); what is no number stays with the host."""
    user, at, place = authority.rpartition("@")
    name, colon, port = place.rpartition(":")
    whole = ":" not in name or (name.startswith("[") and name.endswith("]"))
    if colon and whole and re.fullmatch("[0-9]*", port):
        return user, at, name, port
    return user, at, place, ""
