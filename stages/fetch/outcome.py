"""What became of one URL."""

from __future__ import annotations

from dataclasses import dataclass

FAILURES = frozenset(
    [
        "dns",
        "connect",
        "timeout",
        "http_error",
        "host_down",
        "tls",
        "bad_url",
        "blocked_address",
        "too_large",
        "too_many_redirects",
        "robots",
        "opt_out",
    ]
)
"""Why a URL has no bytes."""
TRANSIENT = frozenset(["dns", "connect", "timeout", "host_down"])
"""Failures that may pass, whatever the status; `http_error` depends on it (`is_transient`)."""
TRANSIENT_STATUS = frozenset([408, 429])


def is_transient(reason: str | None, http_status: int | None) -> bool:
    """Whether a failure may pass by itself: what a fetch retries, and what `--retry-failed` fetches again."""
    if reason == "http_error":
        return http_status is not None and (http_status in TRANSIENT_STATUS or 500 <= http_status <= 599)
    return reason in TRANSIENT


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """The end of one fetch: `data` when `reason` is None, else why there is none."""

    reason: str | None = None
    http_status: int | None = None
    data: bytes = b""
    attempts: int = 0
    """Attempts that sent something; 0 when the URL or its host ruled that out."""
    honoured: str | None = None
    """The host's wish that was asked for or met: see the column of this name."""


class FetchError(Exception):
    """An attempt failed for `reason`."""

    def __init__(self, reason: str, http_status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.http_status = http_status
        self.retry_after = retry_after
        """Seconds that the server asked to wait."""

    @property
    def is_transient(self) -> bool:
        """See `is_transient`."""
        return is_transient(self.reason, self.http_status)
