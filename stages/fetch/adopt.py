"""Results of earlier runs, adopted by URL instead of fetched again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.base import OutputFile, Record, Workspace
from stages.blocklist import Blocklist
from stages.fetch.chunks import Place, overlaps
from stages.fetch.facts import URL, Facts, read_facts
from stages.fetch.outcome import is_transient

NEVER = frozenset(["duplicate_row", "blocked_address", "decoder_crash"])
"""Reasons that say nothing lasting of a URL: `blocked_address` depends on `allow_private`, a crash on the decoder."""


POLITE = ("respect_robots", "respect_opt_outs", "respect_tdmrep")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The options a result was fetched under, as far as they decide what it is."""

    version: int
    max_bytes: int
    max_pixels: int
    max_redirects: int
    respect_robots: bool
    respect_opt_outs: bool
    respect_tdmrep: bool
    opt_out_directives: tuple[str, ...]
    resize: Mapping[str, Any] | None
    from_img2dataset: str | None

    def accept(self, facts: Facts, old: Mapping[str, Any]) -> bool:
        """Whether a result fetched under `old` terms is one under these."""
        if old == self.to_json():
            return True
        small = (facts.bytes or 0) <= self.max_bytes and (facts.width or 0) * (facts.height or 0) <= self.max_pixels
        return facts.has_bytes and small and self.accept_images(old)

    def accept_images(self, old: Mapping[str, Any]) -> bool:
        """Whether images fetched under `old` terms are images under these, if they are small enough."""
        polite = all(old[name] or not getattr(self, name) for name in POLITE)
        heeded = set(self.opt_out_directives) <= set(old["opt_out_directives"]) or not self.respect_opt_outs
        same = old["resize"] == self.to_json()["resize"] and old["version"] == self.version
        return polite and heeded and same

    def to_json(self) -> dict[str, Any]:
        """As it comes back from a record."""
        resize = dict(self.resize) if self.resize is not None else None
        return vars(self) | {"opt_out_directives": list(self.opt_out_directives), "resize": resize}


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What earlier runs know about the URLs of one chunk."""

    facts: Mapping[str, Facts] = field(default_factory=dict)
    """By canonical URL: results that hold."""
    attempts: Mapping[str, int] = field(default_factory=dict)
    """By canonical URL: attempts behind results that are to be had again."""
    files: Mapping[str, OutputFile] = field(default_factory=dict)
    """By path: the files that facts point at."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a chunk's URLs before anything is fetched."""

    adopted: Adopted
    imported: Mapping[str, Mapping[str, Any]]
    """By canonical URL: entries of an img2dataset folder (`stages.fetch.folder`)."""


def matching(records: Iterable[Record], places: Iterable[Place], buckets: int, span: tuple[int, int]) -> list[Record]:
    """Records that may hold URLs of some places, whose hashes (`chunks.url_hash`) lie in `span`.

    Args:
        records: of chunks that were fetched.
        places: (bucket, its hot host or None), out of `buckets`.
    """
    wanted = list(places)

    def meets(record: Record) -> bool:
        meta = record.meta
        return (meta["span"][0] <= span[1] and span[0] <= meta["span"][1]) and any(
            overlaps(bucket, buckets, other, meta["buckets"]) and (host is None or theirs in (None, host))
            for bucket, host in wanted
            for other, theirs in meta["places"]
        )

    return [record for record in records if meets(record)]


def adopt(
    ws: Workspace, records: Iterable[Record], terms: Terms, blocklist: Blocklist, *, retry_failed: bool
) -> Adopted:
    """What the records of earlier runs hold; of several results of one URL, an image wins, then the newest."""
    found: dict[str, Facts] = {}
    attempts: dict[str, int] = {}
    files: dict[str, OutputFile] = {}
    for record in records:
        files.update({file.path: file for file in (*record.files, *record.refers) if file.kind == "images"})
        for url, facts in read_record(ws, record):
            attempts[url] = max(attempts.get(url, 0), facts.attempts or 0)
            passing = retry_failed and is_transient(facts.reason, facts.http_status)
            held = terms.accept(facts, record.meta["terms"]) and facts.reason not in NEVER
            if held and not passing and _blocked_alike(facts, blocklist):
                found[url] = max(found.get(url, facts), facts, key=_rank)
    return Adopted(facts=found, attempts=attempts, files=files)


def read_record(ws: Workspace, record: Record) -> Iterator[tuple[str, Facts]]:
    """What a chunk's record tells of each of its URLs."""
    for file in record.files:
        if file.kind == "facts":
            for row in ws.read_table(file.path).to_pylist():
                yield row[URL], read_facts(row)


def _blocked_alike(facts: Facts, blocklist: Blocklist) -> bool:
    """An image blocked then, and not now, has no bytes to adopt."""
    return facts.reason != "blocklisted" or facts.sha256 in blocklist.sha256 or facts.phash in blocklist.phash


def _rank(facts: Facts) -> tuple[bool, float, str]:
    when = facts.fetched_at.timestamp() if facts.fetched_at else 0.0
    return facts.has_bytes, when, str(facts.image)
