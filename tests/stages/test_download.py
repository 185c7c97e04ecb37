"""The download stage through the real workspace, from a server on this machine."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.manifest import Manifest
from curation.workspace import StageRun, UnitWorkspace
from stages.base import OutputFile, Record, Unit
from stages.download import DownloadConfig, DownloadStage, FetchPhase
from stages.errors import UserError
from stages.fetch import chunks
from stages.keys import make_key
from stages.schema import COMMON, DOWNLOAD, KEYWORDS, extend
from stages.storage import Store
from tests.harness import give_input, read_output, run_stage
from tests.stages.test_images import encoded, picture
from tests.webserver import WebServer, serving

Row = tuple[str, str] | tuple[str, str, str]
"""(url, caption) or (url, caption, source)."""
LOCAL = ("127.0.0.0/8",)


@pytest.fixture
def server() -> Iterator[WebServer]:
    pages = {f"/{seed}.jpg": encoded(picture(seed=seed), "JPEG") for seed in range(8)}
    pages |= {"/page.jpg": b"<html>", "/eps.jpg": b"%!PS-Adobe-3.0", "/empty.jpg": b""}
    pages |= {"/cut.jpg": pages["/0.jpg"][:-200], "/a.gif": encoded(picture(), "GIF")}
    with serving(WebServer(pages=pages)) as running:
        yield running


def rows_table(rows: Sequence[Row], dropped: int = 0) -> pa.Table:
    records = []
    for number, row in enumerate(rows):
        url, caption, source = (*row, "web")[:3]
        status, reason = ("dropped", "language") if number < dropped else ("kept", None)
        key = make_key(source, url, caption)
        records.append(
            {"key": key, "source": source, "url": url, "caption": caption, "status": status, "reason": reason}
        )
    return pa.Table.from_pylist(records, schema=extend(COMMON, KEYWORDS))


def stage(**changes: Any) -> DownloadStage:
    settings: dict[str, Any] = {"allow_private": LOCAL, "timeout_s": 2.0, "retries": 0}
    return DownloadStage(DownloadConfig(**(settings | changes)))


def download(
    root: Path, rows: Sequence[Row] | None, generation: int = 0, fingerprint: str | None = None, **changes: Any
) -> tuple[Manifest, list[Any]]:
    if rows is not None:
        give_input(root, "keywords", [rows_table(rows)])
    written = run_stage(stage(**changes), root, "keywords", generation=generation, fingerprint=fingerprint)
    return written, read_output(root, written).to_pylist()


def reasons(rows: Sequence[Any]) -> dict[str, str | None]:
    return {row["caption"]: row["reason"] for row in rows}


def image_bytes(root: Path, row: Any) -> bytes:
    place = row["image"]
    (data,) = Store(str(root)).read_ranges(place["tar"], [(place["offset"], place["size"])])
    return data


def test_every_row_ends_as_kept_or_with_its_reason(tmp_path: Path, server: WebServer) -> None:
    rows = [
        (server.url("/1.jpg"), "good"),
        (server.url("/a.gif"), "gif"),
        (server.url("/none.jpg"), "404"),
        (server.url("/page.jpg"), "html"),
        (server.url("/eps.jpg"), "eps"),
        (server.url("/empty.jpg"), "empty"),
        (server.url("/cut.jpg"), "cut"),
        ("http://10.0.0.1/a.jpg", "private"),
        ("not a url", "junk"),
    ]
    written, done = download(tmp_path, rows)
    assert reasons(done) == {
        "good": None,
        "gif": None,
        "404": "http_error",
        "html": "not_an_image",
        "eps": "unsupported_format",
        "empty": "empty_body",
        "cut": "truncated",
        "private": "blocked_address",
        "junk": "bad_url",
    }
    assert written.counts["web"]["in"] == 9
    assert written.counts["web"]["kept"] == 2
    good = next(row for row in done if row["caption"] == "good")
    assert image_bytes(tmp_path, good) == server.pages["/1.jpg"]
    assert (good["width"], good["height"], good["format"], good["http_status"]) == (60, 40, "jpeg", 200)
    assert good["attempts"] == 1
    assert good["fetched_at"].tzinfo is not None
    assert set(extend(COMMON, KEYWORDS, DOWNLOAD).names) == set(good)


def test_tars_are_plain_and_named_by_key(tmp_path: Path, server: WebServer) -> None:
    written, done = download(tmp_path, [(server.url("/1.jpg"), "one"), (server.url("/a.gif"), "two")])
    names = []
    for file in written.outputs:
        if file.kind == "images":
            with tarfile.open(tmp_path / file.path) as tar:
                names += tar.getnames()
                assert file.rows == len(tar.getnames())
    assert sorted(names) == sorted(row["key"] + {"jpeg": ".jpg", "gif": ".gif"}[row["format"]] for row in done)


def test_a_url_met_twice_is_fetched_once(tmp_path: Path, server: WebServer) -> None:
    url = server.url("/1.jpg")
    spelled = url.replace("http://", "HTTP://") + "#top"
    _, done = download(tmp_path, [(url, "a"), (url, "b"), (spelled, "c"), (url, "a")])
    assert server.hits["/1.jpg"] == 1
    assert sorted((row["caption"], row["reason"] or "") for row in done) == [
        ("a", ""),
        ("a", "duplicate_row"),
        ("b", ""),
        ("c", ""),
    ]
    kept = [row for row in done if row["reason"] is None]
    assert len({json.dumps(row["image"]) for row in kept}) == 1


def test_dropped_rows_of_the_input_are_not_ours(tmp_path: Path, server: WebServer) -> None:
    give_input(
        tmp_path, "keywords", [rows_table([(server.url("/1.jpg"), "a"), (server.url("/2.jpg"), "b")], dropped=1)]
    )
    written = run_stage(stage(), tmp_path, "keywords")
    assert [row["caption"] for row in read_output(tmp_path, written).to_pylist()] == ["b"]


def test_chunks_commit_one_by_one(tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks.cut_lane, "__defaults__", (3,))
    rows = [(server.url(f"/{n % 8}.jpg?{n}"), str(n)) for n in range(20)]
    written, done = download(tmp_path, rows)
    assert {row["reason"] for row in done} == {None}
    assert sum(file.kind == "facts" for file in written.outputs) == 7
    assert server.images_asked() == 20
    assert server.hits["/robots.txt"] == 1
    assert {image_bytes(tmp_path, row) for row in done} == {server.pages[f"/{n}.jpg"] for n in range(8)}


def test_another_run_adopts_images_and_failures(tmp_path: Path, server: WebServer) -> None:
    rows: list[Row] = [(server.url("/1.jpg"), "one"), (server.url("/none.jpg"), "none")]
    before, first = download(tmp_path, rows)
    rows += [(server.url("/2.jpg"), "new"), (server.url("/1.jpg"), "another caption")]
    server.hits.clear()
    written, done = download(tmp_path, rows)
    assert server.hits == {"/robots.txt": 1, "/2.jpg": 1}
    old = {row["caption"]: row for row in first}
    for row in done:
        if row["caption"] in old:
            assert row == old[row["caption"]]
    old_tars = {file.path for file in before.outputs if file.kind == "images"}
    assert old_tars <= {file.path for file in written.outputs}


def test_other_limits_refetch_only_what_they_touch(tmp_path: Path, server: WebServer) -> None:
    rows = [(server.url("/1.jpg"), "one"), (server.url("/none.jpg"), "none")]
    download(tmp_path, rows)
    server.hits.clear()
    _, done = download(tmp_path, None, max_bytes=10_000)
    assert reasons(done) == {"one": None, "none": "http_error"}
    assert server.hits == {"/robots.txt": 1, "/none.jpg": 1}
    server.hits.clear()
    _, done = download(tmp_path, None, max_bytes=100)
    assert reasons(done)["one"] == "too_large"
    assert server.hits["/1.jpg"] == 1


def test_buckets_of_any_number_are_adopted(tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [f"127.0.0.{number}" for number in range(1, 2)] + ["localhost"]
    rows = [(server.url(f"/{n}.jpg", host), f"{host}{n}") for n in range(8) for host in hosts]
    download(tmp_path, rows)
    for fewest in (64, 2):
        monkeypatch.setattr(chunks, "FEWEST", fewest)
        server.hits.clear()
        _, done = download(tmp_path, rows, user_agent="x", generation=fewest)
        assert len(done) == 16
        assert not server.hits


def test_retry_failed_fetches_transient_failures_alone(tmp_path: Path, server: WebServer) -> None:
    rows = [(server.url(path), path) for path in ("/1.jpg", "/none.jpg", "/_/flaky/500/1/2.jpg", "/_/status/500")]
    _, first = download(tmp_path, rows)
    assert reasons(first)["/_/flaky/500/1/2.jpg"] == "http_error"
    server.hits.clear()
    preview_stage = stage(retry_failed=True)
    assert preview(tmp_path, preview_stage) == (2, 2)
    _, done = download(tmp_path, None, generation=1, retry_failed=True)
    assert server.hits["/1.jpg"] == server.hits["/none.jpg"] == 0
    by_path = {row["caption"]: row for row in done}
    assert (by_path["/_/flaky/500/1/2.jpg"]["reason"], by_path["/_/flaky/500/1/2.jpg"]["attempts"]) == ("http_error", 2)
    assert (by_path["/_/status/500"]["reason"], by_path["/_/status/500"]["attempts"]) == ("http_error", 2)
    server.hits["/_/flaky/500/1/2.jpg"] = 5
    _, done = download(tmp_path, None, generation=2, retry_failed=True)
    assert reasons(done)["/_/flaky/500/1/2.jpg"] is None


def preview(root: Path, the_stage: DownloadStage) -> tuple[int, int] | None:
    run = StageRun(
        store=Store(str(root)), stage="download", fingerprint="new", input_stage="keywords", sources=("web",)
    )
    return the_stage.preview(UnitWorkspace(run, "fetch", Unit(id="preview")))


def test_blocklists_cover_urls_domains_bytes_and_hashes(tmp_path: Path, server: WebServer) -> None:
    _, first = download(tmp_path, [(server.url(f"/{n}.jpg"), str(n)) for n in range(4)])
    facts = {row["caption"]: row for row in first}
    listed = tmp_path / "blocked.txt"
    listed.write_text(f"{facts['0']['sha256']}\n{facts['1']['phash']:016x}\n{server.url('/2.jpg')}\n")
    server.hits.clear()
    _, done = download(tmp_path, None, blocklist=(str(listed),))
    assert reasons(done) == {"0": "blocklisted", "1": "blocklisted", "2": "blocklisted", "3": None}
    assert all(row["image"] is None for row in done if row["reason"])
    assert not server.hits
    _, done = download(tmp_path, None, generation=1)
    assert set(reasons(done).values()) == {None}
    assert stage(blocklist=(str(listed),)).named_files() == [str(listed)]


def test_resizing_as_img2dataset_does(tmp_path: Path, server: WebServer) -> None:
    options = {"image_size": 32, "resize_mode": "keep_ratio", "encode_format": "webp"}
    _, done = download(tmp_path, [(server.url("/1.jpg"), "good")], resize=options)
    (row,) = done
    assert (row["reason"], row["format"], row["width"], row["height"]) == (None, "webp", 48, 32)
    assert row["bytes"] == len(image_bytes(tmp_path, row))


def test_an_img2dataset_folder_stands_in_for_the_web(tmp_path: Path, server: WebServer) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    table = [
        {"url": server.url("/1.jpg"), "key": "000000000", "status": "success", "error_message": None},
        {
            "url": server.url("/2.jpg"),
            "key": "000000001",
            "status": "failed_to_download",
            "error_message": "HTTP Error 403: Forbidden",
        },
    ]
    pq.write_table(pa.Table.from_pylist(table), folder / "00000.parquet")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name, data in (("000000000.txt", b"caption"), ("000000000.jpg", server.pages["/5.jpg"])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows = [(server.url(f"/{n}.jpg"), str(n)) for n in (1, 2, 3)]
    _, done = download(tmp_path, rows, from_img2dataset=str(folder))
    assert reasons(done) == {"1": None, "2": "http_error", "3": None}
    assert server.hits == {"/robots.txt": 1, "/3.jpg": 1}
    first = next(row for row in done if row["caption"] == "1")
    assert first["image"]["tar"] == f"{folder}/00000.tar"
    assert image_bytes(tmp_path, first) == server.pages["/5.jpg"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"allow_private": ("home",)}, "allow_private holds 'home'"),
        ({"first_byte_s": 0}, "first_byte_s is 0"),
        ({"per_host_rate": -1.0}, "per_host_rate is -1.0"),
        ({"placeholder_urls": -1}, "placeholder_urls is -1"),
        ({"nameservers": ("dns.example",)}, "nameservers holds 'dns.example'"),
        ({"nameservers": ("127.0.0.1:0",)}, "nameservers holds '127.0.0.1:0'"),
        ({"resize": {"size": 3}}, "resize.size is unknown"),
        ({"resize": {"image_size": "x"}}, "resize.image_size is 'x'"),
        ({"resize": {"resize_mode": "squash"}}, "resize.resize_mode is 'squash'"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DownloadConfig(**changes)


def test_nameservers_are_addresses_with_or_without_a_port() -> None:
    servers = ("9.9.9.9", "127.0.0.1:5353", "2620:fe::fe", "[::1]:53")
    assert DownloadConfig(nameservers=servers).fetch_options().nameservers == servers


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="from_img2dataset"):
        stage(from_img2dataset=str(tmp_path)).check()


def test_a_hot_host_has_a_lane_of_its_own(tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "ROWS_PER_BUCKET", 10)
    monkeypatch.setattr(chunks, "FEWEST", 1)
    monkeypatch.setattr(chunks, "MOST", 1)
    monkeypatch.setattr(chunks, "hot_above", lambda rows, buckets: 10)
    rows = [(server.url(f"/{n % 8}.jpg?{n}"), str(n)) for n in range(20)]
    rows += [(server.url(f"/{n}.jpg", "localhost"), f"local {n}") for n in range(8)]
    written, done = download(tmp_path, rows)
    assert {row["reason"] for row in done} == {None}
    run = StageRun(store=Store(str(tmp_path)), stage="download", fingerprint=written.fingerprint)
    ws = UnitWorkspace(run, "fetch", Unit(id="cut"))
    assert {unit.lane: unit.rows for unit in FetchPhase(DownloadConfig()).cut(ws)} == {"0000 127.0.0.1": 20, "0000": 8}
    server.hits.clear()
    monkeypatch.undo()
    _, again = download(tmp_path, None, generation=1)
    assert sorted(map(str, again)) == sorted(map(str, done))
    assert not server.hits


def test_lanes_of_hot_hosts_start_early_but_not_alone() -> None:
    def record(bucket: int, hot: dict[str, int]) -> Record:
        told = [(bucket, None, 5), *((bucket, host, rows) for host, rows in hot.items())]
        file = OutputFile(path=f"{bucket}.parquet", rows=1, bytes=1, sha256="")
        meta = {"chunks": told, "buckets": 2}
        return Record(phase="chunks", unit=str(bucket), digest=None, files=(file,), counts={}, meta=meta, seconds=0)

    lanes = chunks.lanes_of([record(0, {"a": 10, "b": 30}), record(1, {"c": 20})])
    assert [lane[0].lane for lane in lanes] == ["0000 b", "0000", "0001 c", "0001", "0000 a"]


PLACEHOLDERS = [
    *((f"/gone.jpg?{n}", f"caption {n}") for n in range(4)),  # 4 URLs, 4 captions: no picture of any of them
    *((f"/logo.gif?{n}", "one caption") for n in range(6)),  # one picture under many URLs, but of one thing
    *(("/0.jpg", f"words {n}") for n in range(5)),  # one URL under many captions
    *((f"/few.jpg?{n}", f"rarely {n}") for n in range(3)),
]


def placeholder_rows(server: WebServer) -> list[Row]:
    server.pages |= {"/gone.jpg": server.pages["/5.jpg"], "/few.jpg": server.pages["/6.jpg"]}
    server.pages["/logo.gif"] = server.pages["/a.gif"]
    elsewhere = [(server.url("/gone.jpg", "localhost"), "the same bytes on another host")]
    return [*((server.url(path), caption) for path, caption in PLACEHOLDERS), *elsewhere]


def test_placeholders_are_told_from_pictures(tmp_path: Path, server: WebServer) -> None:
    written, done = download(tmp_path, placeholder_rows(server), placeholder_urls=4)
    dropped = [row for row in done if row["status"] == "dropped"]
    assert {(row["caption"], row["reason"]) for row in dropped} == {
        (caption, "placeholder") for path, caption in PLACEHOLDERS if path.startswith("/gone")
    }
    assert all(row["sha256"] and row["image"] is None for row in dropped)
    assert written.counts["web"]["dropped"] == {"placeholder": 4}
    assert written.summary == {"placeholders": 1, "left_out": 0}


def test_what_was_a_placeholder_may_be_a_picture_again(tmp_path: Path, server: WebServer) -> None:
    rows = placeholder_rows(server)
    download(tmp_path, rows, placeholder_urls=4)
    server.hits.clear()
    _, done = download(tmp_path, None, placeholder_urls=5)
    assert {row["reason"] for row in done} == {None}
    assert {image_bytes(tmp_path, row) for row in done if "gone" in row["url"]} == {server.pages["/gone.jpg"]}
    _, done = download(tmp_path, None, placeholder_urls=0, generation=1)
    assert {row["reason"] for row in done} == {None}
    _, done = download(tmp_path, None, placeholder_urls=3, generation=2)
    assert Counter(row["reason"] for row in done) == {"placeholder": 7, None: len(rows) - 7}
    assert not server.hits
