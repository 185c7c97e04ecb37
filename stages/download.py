"""The download stage: every kept row's image, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from stages import blocklist
from stages.base import Phase, Record, Result, Stage, Unit, Workspace, operational, semantic
from stages.fetch import folder, opt_out, resize
from stages.fetch.addresses import check_nameserver, networks
from stages.fetch.adopt import Known, Terms, adopt, matching
from stages.fetch.chunks import (
    CHUNK_ROWS,
    Chunk,
    ChunkPhase,
    PartitionPhase,
    Place,
    canonical_urls,
    kept_rows,
    lanes_of,
    url_hash,
)
from stages.fetch.facts import URL, facts_table
from stages.fetch.options import FetchOptions
from stages.fetch.outcome import FAILURES, is_transient
from stages.fetch.preview import settled_urls
from stages.fetch.settle import SettlePhase, facts_path
from stages.fetch.stragglers import GRACE
from stages.images import MAX_PIXELS, REASONS, Limits
from stages.schema import DOWNLOAD

if TYPE_CHECKING:
    from stages.fetch.lane import Lane

__all__ = ["DownloadConfig", "DownloadStage", "is_transient"]

VERSION = 1
"""Of what a fetch gives: results of another version are not adopted."""
FEW_LANES = 4
"""With no more of them, none waits for another to end."""
PRODUCT = "rs-curation/0.1"


POSITIVE = ("timeout_s", "first_byte_s", "max_bytes", "max_pixels", "per_host", "per_host_rate", "concurrency")


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """How images are fetched."""

    timeout_s: float = operational(15.0, help="seconds for one attempt, redirects and body included")
    first_byte_s: float = operational(10.0, help="seconds from the request to the answer's headers")
    retries: int = operational(2, help="attempts after the first one, for transient failures")
    max_bytes: int = semantic(50_000_000, help="larger bodies are too_large")
    max_pixels: int = semantic(MAX_PIXELS, help="larger images are too_many_pixels")
    max_redirects: int = semantic(5, help="redirects followed")
    per_host: int = operational(8, help="requests at once to one host")
    per_host_rate: float | None = operational(None, help="requests a second to one host; null sets no limit")
    concurrency: int = operational(256, help="requests at once of one bucket of hosts")
    allow_private: tuple[str, ...] = operational((), help="networks that may be connected to though not public")
    nameservers: tuple[str, ...] = operational((), help="DNS servers, as address or address:port; none: the system's")
    user_agent: str | None = operational(None, help="User-Agent header, whole")
    contact: str | None = operational(None, help="URL or address shown in the default User-Agent")
    respect_robots: bool = semantic(True, help="honour robots.txt")
    respect_opt_outs: bool = semantic(True, help="honour X-Robots-Tag and TDM-Reservation headers")
    respect_tdmrep: bool = semantic(False, help="ask each host for /.well-known/tdmrep.json, and honour it")
    opt_out_directives: tuple[str, ...] = semantic(opt_out.DIRECTIVES, help="X-Robots-Tag directives that count")
    placeholder_urls: int = semantic(
        10,
        help="URLs of a host that share bytes, and captions that differ, from which on they are placeholder; 0: none",
    )
    resize: dict[str, Any] | None = semantic(None, help="options of img2dataset's resizer; null keeps the bytes")
    from_img2dataset: str | None = semantic(None, help="an img2dataset output folder, used instead of fetching")
    blocklist: tuple[str, ...] = semantic((), help="files of urls, domains, sha256 or phash that never enter")
    retry_failed: bool = operational(False, help="fetch transient failures of earlier runs again")

    def __post_init__(self) -> None:
        """Raise ValueError for what no type can tell."""
        for name in POSITIVE:
            if (getattr(self, name) or 0) <= 0 and not (name == "per_host_rate" and self.per_host_rate is None):
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: a number above 0")
        for name in ("retries", "max_redirects", "placeholder_urls"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: 0 or more")
        networks(self.allow_private)
        for server in self.nameservers:
            check_nameserver(server)
        if not self.agent.isprintable() or not self.agent.isascii():
            raise ValueError(
                f"user_agent or contact make {self.agent!r}; accepted: printable ASCII, as headers take it"
            )
        if self.resize is not None:
            resize.check(self.resize)

    @property
    def agent(self) -> str:
        """The User-Agent header."""
        contact = f" (+{self.contact})" if self.contact else ""
        return self.user_agent or f"{PRODUCT}{contact}"

    def fetch_options(self) -> FetchOptions:
        """What the fetcher needs."""
        return FetchOptions(
            user_agent=self.agent,
            timeout_s=self.timeout_s,
            retries=self.retries,
            max_bytes=self.max_bytes,
            max_redirects=self.max_redirects,
            first_byte_s=self.first_byte_s,
            per_host=self.per_host,
            per_host_rate=self.per_host_rate,
            concurrency=self.concurrency,
            allowed=networks(self.allow_private),
            nameservers=self.nameservers,
            respect_robots=self.respect_robots,
            respect_opt_outs=self.respect_opt_outs,
            respect_tdmrep=self.respect_tdmrep,
            opt_out_directives=self.opt_out_directives,
        )

    def terms(self) -> Terms:
        """What a result of an earlier run must have been fetched under."""
        return Terms(
            version=VERSION,
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
            max_redirects=self.max_redirects,
            respect_robots=self.respect_robots,
            respect_opt_outs=self.respect_opt_outs,
            respect_tdmrep=self.respect_tdmrep,
            opt_out_directives=self.opt_out_directives,
            resize=self.resize,
            from_img2dataset=self.from_img2dataset,
        )


class FetchPhase(Phase):
    """One chunk a unit; what each URL gave is stored for good, whatever becomes of the rows.

    URLs that would hold up the chunks behind are left out, for `AgainPhase`.
    """

    name = "fetch"

    def __init__(self, config: DownloadConfig) -> None:
        self.config = config

    def cut(self, ws: Workspace) -> list[Unit]:
        """A unit for each chunk; chunks of a lane run one after another, in a hurry if others wait behind."""
        lanes = lanes_of(ws.phase_records("chunks"))
        return [
            Unit(
                id=chunk.id,
                spec={
                    "chunks": [asdict(chunk)],
                    "is_hurried": chunk.host is None and (chunk != lane[-1] or len(lanes) > FEW_LANES),
                },
                rows=chunk.rows,
                lane=chunk.lane,
            )
            for lane in lanes
            for chunk in lane
        ]

    def setup(self, ws: Workspace) -> Lane:
        """The lane's event loop and fetcher."""
        from stages.fetch.lane import Lane

        config = self.config
        limits = Limits(max_pixels=config.max_pixels)
        return Lane(config.fetch_options(), limits, blocklist.load(config.blocklist), config.resize)

    def close(self, state: Lane) -> None:
        """Close the lane's connections."""
        state.close()

    def work(self, unit: Unit, ws: Workspace, state: Lane, prepared: pa.Table | None = None) -> Result:
        """Adopt, import or fetch the unit's URLs; one tar of images, one table of facts."""
        chunks = [Chunk(**chunk) for chunk in unit.spec["chunks"]]
        urls = self._urls(unit, ws, chunks)
        hashes = [url_hash(url) for url in urls] or [0]
        span = min(hashes), max(hashes)
        places = list(dict.fromkeys(chunk.place for chunk in chunks))
        state.known = self._known(ws, state, places, chunks[0].buckets, span)
        facts = state.facts(urls, ws, GRACE if unit.spec["is_hurried"] else None)
        ws.write_table("facts/urls", facts_table(facts), kind="facts")
        told = {"places": places, "buckets": chunks[0].buckets, "span": span, "terms": self.config.terms().to_json()}
        left = len(urls) - len(facts)
        return Result(meta=told | {"chunks": [chunk.id for chunk in chunks], "left": left})

    def _urls(self, unit: Unit, ws: Workspace, chunks: Sequence[Chunk]) -> dict[str, str]:
        """The URLs to settle, each with the key that names its image."""
        return wanted(pa.concat_tables([_read(ws, chunk) for chunk in chunks]))

    def _known(self, ws: Workspace, state: Lane, places: Sequence[Place], buckets: int, span: tuple[int, int]) -> Known:
        """What earlier runs, and an img2dataset folder, know of the URLs in some places."""
        config = self.config
        records = matching(earlier(ws), places, buckets, span)
        adopted = adopt(ws, records, config.terms(), blocklist.load(config.blocklist), retry_failed=config.retry_failed)
        numbers = tuple(sorted({bucket for bucket, _ in places})) if config.from_img2dataset else ()
        if numbers == state.buckets:
            return Known(adopted=adopted, imported=state.known.imported)
        state.buckets = numbers
        imported = {url: entry for bucket in numbers for url, entry in folder.known_urls(ws, bucket).items()}
        return Known(adopted=adopted, imported=imported)


class AgainPhase(FetchPhase):
    """What chunks left out in their hurry: that of many chunks is a unit, and nobody hurries any more."""

    name = "again"

    def cut(self, ws: Workspace) -> list[Unit]:
        """Units of about as many URLs as a chunk has rows; small lanes are put together, each of them whole."""
        left = {record.unit: record for record in ws.phase_records("fetch") if record.meta["left"]}
        units: list[Unit] = []
        small: list[Chunk] = []
        for lane in lanes_of(ws.phase_records("chunks")):
            mine = [chunk for chunk in lane if chunk.id in left]
            if _left(mine, left) >= CHUNK_ROWS:
                units += [_unit(group, left) for group in _groups(mine, left)]
                continue
            small += mine
            if _left(small, left) >= CHUNK_ROWS:
                units.append(_unit(small, left))
                small = []
        return [*units, _unit(small, left)] if small else units

    def _urls(self, unit: Unit, ws: Workspace, chunks: Sequence[Chunk]) -> dict[str, str]:
        settled = {url for path in unit.spec["facts"] for url in ws.read_table(path, [URL]).column(URL).to_pylist()}
        return {url: key for url, key in super()._urls(unit, ws, chunks).items() if url not in settled}


def _left(chunks: Sequence[Chunk], left: Mapping[str, Record]) -> int:
    """URLs that the chunks have left out."""
    return sum(left[chunk.id].meta["left"] for chunk in chunks)


def _groups(chunks: Sequence[Chunk], left: Mapping[str, Record]) -> list[list[Chunk]]:
    """Chunks in their order, in groups that have just left out enough."""
    groups: list[list[Chunk]] = [[]]
    for chunk in chunks:
        if _left(groups[-1], left) >= CHUNK_ROWS:
            groups.append([])
        groups[-1].append(chunk)
    return groups


def _unit(chunks: Sequence[Chunk], left: Mapping[str, Record]) -> Unit:
    return Unit(
        id=chunks[0].id,
        spec={
            "chunks": [asdict(chunk) for chunk in chunks],
            "facts": [facts_path(left[chunk.id]) for chunk in chunks],
            "is_hurried": False,
        },
        rows=_left(chunks, left),
        lane=chunks[0].lane,
    )


def earlier(ws: Workspace) -> list[Record]:
    """Records of facts from earlier runs."""
    return [record for phase in (FetchPhase, AgainPhase) for record in ws.earlier_records(phase.name)]


def _read(ws: Workspace, chunk: Chunk) -> pa.Table:
    return ws.read_table(chunk.file, row_groups=[chunk.row_group])


def wanted(table: pa.Table) -> dict[str, str]:
    """The rows' URLs, each with the key that names its image; repeated rows want nothing."""
    fresh = table.filter(table.column("reason").is_null())
    urls: dict[str, str] = {}
    for url, key in zip(fresh.column(URL).to_pylist(), fresh.column("key").to_pylist(), strict=True):
        urls.setdefault(url, key)
    return urls


class DownloadStage(Stage):
    """Fetches images, politely and once each; keeps original bytes, validated and hashed."""

    name = "download"
    version = 3
    config_class = DownloadConfig
    reasons = FAILURES | REASONS | {"blocklisted", "duplicate_row"}
    requires = frozenset({"key", "source", "url", "caption"})
    adds = DOWNLOAD
    keeps_results = True

    def phases(self) -> list[Phase]:
        """Shard by host, cut into chunks, fetch, fetch again what was left out, settle rows."""
        before: list[Phase] = [PartitionPhase(), ChunkPhase()]
        if self.config.from_img2dataset:
            before.append(folder.FolderPhase(self.config.from_img2dataset))
        return [*before, FetchPhase(self.config), AgainPhase(self.config), SettlePhase(self.config.placeholder_urls)]

    def named_files(self) -> list[str]:
        """Blocklists, and the tables of an img2dataset folder."""
        imported = folder.tables(self.config.from_img2dataset) if self.config.from_img2dataset else []
        return [*self.config.blocklist, *imported]

    def check(self) -> None:
        """Read the blocklists, and look for the folder's tables."""
        blocklist.load(self.config.blocklist)
        if self.config.from_img2dataset:
            folder.tables(self.config.from_img2dataset)

    def summary(self, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """`placeholders`: pictures (of a host each) that stand for lost ones; `left_out`: URLs fetched at the end."""
        return {
            "placeholders": sum(record.meta["placeholders"] for record in records[SettlePhase.name]),
            "left_out": sum(record.meta["left"] for record in records[FetchPhase.name]),
        }

    def preview(self, ws: Workspace) -> tuple[int, int] | None:
        """(rows whose URL earlier runs settled, rows to fetch)."""
        config = self.config
        blocked = blocklist.load(config.blocklist)
        known = settled_urls(ws, earlier(ws), config.terms(), blocked, retry_failed=config.retry_failed)
        settled = rows = 0
        for file in ws.input_files():
            urls = canonical_urls(kept_rows(ws, file.path, ["url", "status"]).column("url"))
            settled += pc.sum(pc.is_in(urls, known)).as_py() or 0
            rows += len(urls)
        return settled, rows - settled
