"""Runs of the download stage that are killed, repeated, split over processes, or met by dead hosts."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from curation.worker import do_lane
from curation.workspace import StageRun, UnitWorkspace
from stages.base import OutputFile, Record, Unit
from stages.blocklist import Blocklist
from stages.download import AgainPhase, DownloadConfig, FetchPhase
from stages.errors import UnitError
from stages.fetch import chunks
from stages.fetch.adopt import adopt
from stages.fetch.chunks import ChunkPhase, PartitionPhase
from stages.fetch.preview import settled_urls
from stages.storage import Store
from tests.harness import give_input, run_phase
from tests.stages.test_download import LOCAL, Row, download, preview, reasons, rows_table, stage
from tests.stages.test_fetch_client import fetch
from tests.stages.test_images import encoded, picture
from tests.webserver import WebServer, serving

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def server() -> Iterator[WebServer]:
    pages = {f"/{seed}.jpg": encoded(picture(seed=seed), "JPEG") for seed in range(4)}
    with serving(WebServer(pages=pages)) as running:
        yield running


def child(work: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    process = SPAWN.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def small_chunks() -> None:
    chunks.cut_lane.__defaults__ = (5,)


def download_slowly(root: str) -> None:
    small_chunks()
    download(Path(root), None, fingerprint="run", placeholder_urls=0)


def test_a_killed_run_fetches_one_chunk_again(
    tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.robots, server.delay = "", 0.05
    monkeypatch.setattr(chunks.cut_lane, "__defaults__", (5,))
    rows: list[Row] = [(server.url(f"/{n % 4}.jpg?{n}"), str(n)) for n in range(40)]
    give_input(tmp_path, "keywords", [rows_table(rows)])
    process = child(download_slowly, str(tmp_path))
    until = time.monotonic() + 60
    while server.images_asked() < 18 and time.monotonic() < until:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    before = server.images_asked()
    assert 18 <= before < 40
    server.delay = 0.0
    written, done = download(tmp_path, None, fingerprint="run", placeholder_urls=0)
    assert {row["reason"] for row in done} == {None}
    assert written.counts["web"]["kept"] == 40
    assert server.images_asked() <= 40 + 5


def fetch_lanes(root: str, lanes: list[str], config: DownloadConfig, barrier: Barrier) -> None:
    run = StageRun(store=Store(root), stage="download", fingerprint="run", input_stage="keywords", sources=("web",))
    phase = FetchPhase(config)
    units = [unit for unit in phase.cut(UnitWorkspace(run, "fetch", Unit(id="cut"))) if unit.lane in lanes]
    barrier.wait(60)
    assert all(outcome.record for outcome in do_lane(run, phase, units))


def test_limits_hold_over_processes(tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lanes at once, two hosts: neither sees more requests at once than a host may."""
    server.delay = 0.05
    monkeypatch.setattr(chunks, "hot_above", lambda rows, buckets: 10)
    hosts = ("127.0.0.1", "localhost")
    rows: list[Row] = [(server.url(f"/{n % 4}.jpg?{n}", host), f"{host} {n}") for n in range(60) for host in hosts]
    give_input(tmp_path, "keywords", [rows_table(rows)])
    run = StageRun(
        store=Store(str(tmp_path)), stage="download", fingerprint="run", input_stage="keywords", sources=("web",)
    )
    for phase in (PartitionPhase(), ChunkPhase()):
        run_phase(run, phase)
    config = DownloadConfig(allow_private=LOCAL, per_host=3)
    lanes = sorted({unit.lane or "" for unit in FetchPhase(config).cut(UnitWorkspace(run, "fetch", Unit(id="cut")))})
    assert [lane.split()[1] for lane in lanes] == sorted(hosts, key=lambda host: lanes[1].endswith(host))
    barrier = SPAWN.Barrier(2)
    processes = [child(fetch_lanes, str(tmp_path), [lane], config, barrier) for lane in lanes]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert server.images_asked() == 120
    assert server.most_active_by_host == {"127.0.0.1": 3, "localhost": 3}


def test_rows_of_a_dead_host_come_back(tmp_path: Path, server: WebServer) -> None:
    """They are `host_down` without a request each, and `--retry-failed` fetches them, and nothing else."""
    reserved = WebServer(pages=server.pages)
    with serving(reserved):
        port = reserved.port
    rows: list[Row] = [(f"http://127.0.0.1:{port}/{n % 4}.jpg?{n}", str(n)) for n in range(40)]
    rows += [(server.url("/1.jpg", "localhost"), "good"), (server.url("/none.jpg", "localhost"), "none")]
    settings: dict[str, Any] = {"respect_robots": False, "placeholder_urls": 0}
    _, first = download(tmp_path, rows, **settings)
    found = reasons(first)
    assert {found[str(n)] for n in range(40)} == {"connect", "host_down"}
    old = {row["caption"]: row for row in first}
    server.hits.clear()
    with serving(WebServer(pages=server.pages, port=port)) as alive:
        written, second = download(tmp_path, None, generation=1, retry_failed=True, **settings)
        assert alive.images_asked() == 40
    assert not server.hits
    assert reasons(second) == {str(n): None for n in range(40)} | {"good": None, "none": "http_error"}
    for row in second:
        before = old[row["caption"]]
        if row["caption"] in ("good", "none"):
            assert row == before
        else:
            assert row["attempts"] == before["attempts"] + 1
            assert before["fetched_at"] is None or row["fetched_at"] > before["fetched_at"]
    assert written.counts["web"] == {"in": 42, "kept": 41, "dropped": {"http_error": 1}}


CHANGES: list[dict[str, Any]] = [
    {},
    {"max_bytes": 10_000_000},
    {"max_pixels": 2_000},
    {"respect_tdmrep": True},
    {"opt_out_directives": ("noai",)},
    {"retry_failed": True},
    {"retry_failed": True, "max_redirects": 3},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_the_plan_counts_what_is_adopted(tmp_path: Path, server: WebServer, changes: dict[str, Any]) -> None:
    paths = ["/1.jpg", "/2.jpg", "/none.jpg", "/_/status/500", "/_/status/429", "//1.jpg"]
    rows: list[Row] = [(server.url(path), path) for path in paths]
    rows += [("http://10.0.0.1/", "blocked"), ("junk", "junk")]
    download(tmp_path, [*rows, rows[0]])
    changed = stage(**changes)
    run = StageRun(store=Store(str(tmp_path)), stage="download", fingerprint="new", input_stage="keywords")
    ws = UnitWorkspace(run, "plan", Unit(id="plan"))
    retry = changed.config.retry_failed
    records, terms = ws.earlier_records("fetch"), changed.config.terms()
    known = adopt(ws, records, terms, Blocklist(), retry_failed=retry)
    assert set(settled_urls(ws, records, terms, Blocklist(), retry_failed=retry).to_pylist()) == set(known.facts)
    counted = preview(tmp_path, changed)
    assert counted is not None
    assert sum(counted) == 9
    assert counted[0] == len([row for row in [*rows, rows[0]] if row[0] in known.facts])


def fetch_with_few_files(urls: list[str], hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
    try:
        done = fetch(urls, per_host=100, timeout_s=20, respect_robots=False)
    except UnitError as error:
        sys.exit(7 if "ulimit" in str(error) else 1)
    assert {each.reason for each in done} == {None}


@pytest.mark.parametrize(("hard", "code"), [(60, 7), (1000, 0)])
def test_a_lack_of_files_is_nobodys_dead_host(server: WebServer, hard: int, code: int) -> None:
    server.delay = 1.0
    process = child(fetch_with_few_files, [server.url(f"/1.jpg?{n}") for n in range(100)], hard)
    process.join(60)
    assert process.exitcode == code


def test_stragglers_hold_up_no_chunk(tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a lane's chunks all but the last leave out what takes long, and it is all fetched in the end."""
    monkeypatch.setattr(chunks.cut_lane, "__defaults__", (10,))
    monkeypatch.setattr("stages.download.GRACE", 0.5)
    monkeypatch.setattr("stages.fetch.hosts.BREAK_AFTER", 1000)
    rows: list[Row] = [(server.url(f"/{n % 4}.jpg?{n}"), str(n)) for n in range(40)]
    rows += [(server.url(f"/_/silent/{n}"), f"silent {n}") for n in range(8)]
    rows += [(server.url(f"/_/silent/{n}"), f"silent {n} again") for n in range(8)]
    written, done = download(tmp_path, rows, placeholder_urls=0, timeout_s=3.0, per_host=20)
    found = reasons(done)
    assert {found[str(n)] for n in range(40)} == {None}
    assert {found[f"silent {n}{again}"] for n in range(8) for again in ("", " again")} == {"timeout"}
    assert {server.hits[f"/{n}.jpg"] for n in range(4)} == {10}
    run = StageRun(store=Store(str(tmp_path)), stage="download", fingerprint=written.fingerprint)
    first, again = run.records("fetch"), run.records("again")
    left = sum(record.meta["left"] for record in first)
    assert left > 0
    assert written.summary == {"placeholders": 0, "left_out": left}
    assert first[-1].meta["left"] == 0
    assert sum(file.rows for record in again for file in record.files if file.kind == "facts") == left
    assert {record.meta["left"] for record in again} == {0}
    server.hits.clear()
    _, adopted = download(tmp_path, None, generation=1, placeholder_urls=0, per_host=20)
    assert sorted(map(str, adopted)) == sorted(map(str, done))
    assert not server.hits


class Told:
    """A workspace of records alone."""

    def __init__(self, records: dict[str, list[Record]]) -> None:
        self.records = records

    def phase_records(self, phase: str) -> list[Record]:
        return self.records[phase]


def test_what_small_lanes_left_out_goes_together_and_no_lane_is_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.download.CHUNK_ROWS", 10)
    left = {0: [4, 0], 1: [3], 2: [6, 6, 6], 3: [0], 4: [5], 5: [1]}
    file = OutputFile(path="chunks.parquet", rows=1, bytes=1, sha256="", kind="facts")
    made: dict[str, Any] = {"digest": None, "files": (file,), "counts": {}, "seconds": 0.0}
    told = [(bucket, None, 50) for bucket, counts in left.items() for _ in counts]
    chunked = Record(phase="chunks", unit="0000", meta={"chunks": told, "buckets": 8}, **made)
    lanes = chunks.lanes_of([chunked])
    fetched = [
        Record(phase="fetch", unit=chunk.id, meta={"left": count}, **made)
        for lane in lanes
        for chunk, count in zip(lane, left[lane[0].bucket], strict=True)
    ]
    ws: Any = Told({"chunks": [chunked], "fetch": fetched})
    units = AgainPhase(DownloadConfig()).cut(ws)
    assert [([chunk["bucket"] for chunk in unit.spec["chunks"]], unit.rows) for unit in units] == [
        ([2, 2], 12),
        ([2], 6),
        ([0, 1, 4], 12),
        ([5], 1),
    ]
    of_bucket = {chunk["bucket"]: unit.lane for unit in units for chunk in unit.spec["chunks"]}
    assert all(unit.lane == of_bucket[chunk["bucket"]] for unit in units for chunk in unit.spec["chunks"])
    assert len({unit.id for unit in units}) == len(units)
