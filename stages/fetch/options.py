"""How to fetch."""

from __future__ import annotations

from dataclasses import dataclass

from stages.fetch.addresses import Network
from stages.fetch.opt_out import DIRECTIVES

BACKOFF = 1.0
"""Seconds before the second attempt at a URL; doubled before each one after it."""


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How to fetch; see the options of the same names in `stages.download.DownloadConfig`."""

    user_agent: str
    timeout_s: float = 15.0
    first_byte_s: float = 10.0
    retries: int = 2
    max_bytes: int = 50_000_000
    max_redirects: int = 5
    per_host: int = 8
    per_host_rate: float | None = None
    concurrency: int = 256
    """Requests at once, to all hosts together."""
    allowed: tuple[Network, ...] = ()
    respect_robots: bool = True
    respect_opt_outs: bool = True
    respect_tdmrep: bool = False
    opt_out_directives: tuple[str, ...] = DIRECTIVES
    nameservers: tuple[str, ...] = ()
    backoff_s: float = BACKOFF

    @property
    def agent(self) -> str:
        """The product token under which robots.txt and X-Robots-Tag may name us."""
        return self.user_agent.split("/")[0].split(" ")[0].lower()
