"""Dedup is exact: its tables agree with a plain reading of its definition."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from curation.workspace import StageRun, UnitWorkspace
from stages.base import OutputFile, Unit
from stages.dedup import DedupConfig, DedupStage
from stages.errors import UserError
from stages.hamming import pairs_in_band
from stages.keys import make_key
from stages.narrow import comparable_urls
from stages.schema import CAPTION, COMMON, DOWNLOAD, conform, extend
from stages.storage import Store
from stages.urls import canonical_url
from tests.harness import give_input, read_output, run_stage

SOURCES = ("first", "second", "third")
SCHEMA = extend(COMMON, pa.schema([("captions", pa.list_(CAPTION))]), DOWNLOAD)


def row(source: str, url: str, caption: str = "a view", **values: Any) -> dict[str, Any]:
    """A kept row as download writes it."""
    return {
        "key": make_key(source, url, caption),
        "source": source,
        "url": url,
        "caption": caption,
        "status": "kept",
        "captions": [{"text": caption, "source": source, "origin": "alt_text"}],
        "width": 100,
        "height": 100,
        "sha256": hashlib.sha256(f"{source} {url}".encode()).hexdigest(),
        "phash": None,
        **values,
    }


def run(rows: list[dict[str, Any]], root: Path, parts: int = 1, **config: Any) -> dict[str, dict[str, Any]]:
    """Output rows by key, from the rows dealt to `parts` input files."""
    tables = [pa.Table.from_pylist(rows[part::parts], schema=SCHEMA) for part in range(parts)]
    give_input(root, "download", tables)
    written = run_stage(DedupStage(DedupConfig(**config)), root, "download", sources=SOURCES)
    return {each["key"]: each for each in read_output(root, written).to_pylist()}


def by_definition(rows: list[dict[str, Any]], radius: int) -> dict[str, tuple[str | None, str]]:
    """(reason, cluster) of each key: every row against every kept row before it."""
    kept: list[dict[str, Any]] = []
    result: dict[str, tuple[str | None, str]] = {}
    for this in sorted(rows, key=total_order):
        matches = [(other, strength) for other in kept if (strength := match(this, other, radius)) is not None]
        if matches:
            reason = ("duplicate_url", "duplicate_bytes", "duplicate_image")[min(s for _, s in matches)]
            result[this["key"]] = (reason, matches[0][0]["key"])
        else:
            result[this["key"]] = (None, this["key"])
            kept.append(this)
    return result


def total_order(this: dict[str, Any]) -> tuple[int, int, int, str]:
    pixels = (this["width"] or 0) * (this["height"] or 0)
    return SOURCES.index(this["source"]), -pixels, -len(this["caption"] or ""), this["key"]


def match(this: dict[str, Any], other: dict[str, Any], radius: int) -> int | None:
    if canonical_url(this["url"]) == canonical_url(other["url"]):
        return 0
    if this["sha256"] is not None and this["sha256"] == other["sha256"]:
        return 1
    if this["phash"] is None or other["phash"] is None:
        return None
    return 2 if (this["phash"] ^ other["phash"]).bit_count() <= radius else None


def components(rows: list[dict[str, Any]], radius: int) -> dict[str, str]:
    """The first key of each row's connected component, by flooding."""
    ordered = sorted(rows, key=total_order)
    result: dict[str, str] = {}
    for start in ordered:
        queue = [start] if start["key"] not in result else []
        while queue:
            this = queue.pop()
            if this["key"] not in result:
                result[this["key"]] = start["key"]
                queue += [o for o in ordered if o["key"] not in result and match(this, o, radius) is not None]
    return result


def random_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows with many URLs, bytes and hashes in common or close to each other."""
    rng = random.Random(seed)
    hashes = [rng.getrandbits(64) for _ in range(count // 8)]
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        phash = rng.choice(hashes)
        for _ in range(rng.randrange(6)):
            phash ^= 1 << rng.randrange(64)
        host = rng.choice(["http://A.org", "http://a.org", "http://a.org:80", "http://b.org"])
        this = row(
            rng.choice(SOURCES),
            f"{host}/{rng.randrange(count)}{rng.choice(['', '#x'])}",
            "c" * rng.randrange(1, 4),
            phash=rng.choice([phash, phash, phash, None]),
            sha256=f"{rng.randrange(count):064x}",
            width=rng.choice([10, 20, None]),
            height=rng.choice([10, 20]),
        )
        rows[this["key"]] = this
    return list(rows.values())


@pytest.mark.parametrize("radius", range(9))
def test_agrees_with_its_definition(radius: int, tmp_path: Path) -> None:
    rows = random_rows(radius, 400)
    found = run(rows, tmp_path, parts=3, radius=radius)
    assert {k: (r["reason"], r["cluster"]) for k, r in found.items()} == by_definition(rows, radius)
    assert {k: r["component"] for k, r in found.items()} == components(rows, radius)
    assert all((r["status"] == "kept") == (r["reason"] is None) for r in found.values())


def test_order_and_number_of_parts_change_nothing(tmp_path: Path) -> None:
    rows = random_rows(99, 300)
    one = run(rows, tmp_path / "one", parts=1)
    random.Random(5).shuffle(rows)
    assert run(rows, tmp_path / "many", parts=7) == one


def test_several_units_read_their_own_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(3, 300)
    monkeypatch.setattr("stages.narrow.ROWS_PER_UNIT", 60)
    found = run(rows, tmp_path, parts=9)
    assert {k: (r["reason"], r["cluster"]) for k, r in found.items()} == by_definition(rows, 2)


@pytest.mark.parametrize("radius", range(9))
def test_partitioned_search_writes_the_same_bytes(radius: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.narrow.ROWS_PER_UNIT", 300)
    searched = []

    def counted(hashes: Any, radius: int, band: int) -> Any:
        searched.append(band)
        return pairs_in_band(hashes, radius, band)

    monkeypatch.setattr("stages.hamming.pairs_in_band", counted)
    listed = tmp_path / "listed.txt"
    rows = random_rows(50 + radius, 1200)
    listed.write_text("".join(f"{each['phash'] or 7:016x}\n" for each in rows[:3]))
    for name, limit in (("whole", 10**6), ("dealt", 250)):
        run(rows, tmp_path / name, parts=5, radius=radius, partition_rows=limit, blocklist=[str(listed)])
    whole, dealt = (sorted((tmp_path / name / "dedup").glob("part-*")) for name in ("whole", "dealt"))
    assert len(whole) == 5
    assert [file.read_bytes() for file in whole] == [file.read_bytes() for file in dealt]
    assert sorted(searched) == [band for band in range(radius + 1) if radius for _ in range(5)]


def test_a_chain_keeps_its_ends(tmp_path: Path) -> None:
    a = row("first", "http://a.org/1", phash=0b0000, width=300)
    b = row("first", "http://a.org/2", phash=0b0011, width=200)
    c = row("first", "http://a.org/3", phash=0b1111, width=100)
    found = run([c, b, a], tmp_path, radius=2)
    assert [found[each["key"]]["reason"] for each in (a, b, c)] == [None, "duplicate_image", None]
    assert found[b["key"]]["cluster"] == a["key"]
    assert {found[each["key"]]["component"] for each in (a, b, c)} == {a["key"]}


def test_the_reason_is_the_strongest_match_with_any_kept_row(tmp_path: Path) -> None:
    near = row("first", "http://a.org/1", phash=1)
    same_url = row("second", "http://a.org/2", "long caption", phash=1 << 40 | 1 << 50 | 1 << 60)
    this = row("third", "http://A.org:80/2#top", phash=0)
    found = run([this, same_url, near], tmp_path)
    assert (found[this["key"]]["reason"], found[this["key"]]["cluster"]) == ("duplicate_url", near["key"])


def test_survivors_by_source_then_pixels_then_caption_then_key(tmp_path: Path) -> None:
    def copies(*values: tuple[str, int, str]) -> list[dict[str, Any]]:
        return [
            row(source, f"http://a.org/{n}", caption, width=width, sha256="ab" * 32)
            for n, (source, width, caption) in enumerate(values)
        ]

    for number, rows in enumerate(
        [
            copies(("second", 900, "long caption"), ("first", 1, "x")),
            copies(("first", 10, "long caption"), ("first", 20, "x")),
            copies(("first", 10, "x"), ("first", 10, "long caption")),
        ]
    ):
        found = run(rows, tmp_path / str(number))
        assert found[rows[1]["key"]]["status"] == "kept"
        assert found[rows[0]["key"]]["reason"] == "duplicate_bytes"
    tied = copies(("first", 10, "same"), ("first", 10, "same"))
    found = run(tied, tmp_path / "tied")
    assert [k for k, r in found.items() if r["status"] == "kept"] == [min(each["key"] for each in tied)]


def test_flat_images_compare_by_url_and_bytes_alone(tmp_path: Path) -> None:
    rows = [row("first", f"http://a.org/{n}", phash=None) for n in range(3)]
    rows.append({**row("first", "http://a.org/9", "z"), "sha256": rows[0]["sha256"]})
    found = run(rows, tmp_path)
    assert sorted(str(each["reason"]) for each in found.values()) == ["None", "None", "None", "duplicate_bytes"]


def test_twins_captions_stay_with_the_survivor(tmp_path: Path) -> None:
    keeper = row("first", "http://a.org/1", "one", sha256="aa" * 32)
    again = row("second", "http://a.org/2", "one", sha256="aa" * 32, width=900)
    other = row("second", "http://a.org/3", "two", sha256="aa" * 32)
    other["captions"] = [*other["captions"], {"text": "made", "source": "second", "origin": "generated"}]
    found = run([other, again, keeper], tmp_path, parts=3)
    assert [(c["text"], c["source"], c["origin"]) for c in found[keeper["key"]]["captions"]] == [
        ("one", "first", "alt_text"),
        ("one", "second", "alt_text"),
        ("two", "second", "alt_text"),
        ("made", "second", "generated"),
    ]
    assert found[keeper["key"]]["caption"] == "one"
    assert found[other["key"]]["captions"] == other["captions"]


def test_rows_dropped_before_are_absent(tmp_path: Path) -> None:
    gone = {**row("first", "http://a.org/1", sha256="aa" * 32), "status": "dropped", "reason": "truncated"}
    kept = row("second", "http://a.org/2", sha256="aa" * 32)
    found = run([gone, kept], tmp_path)
    assert list(found) == [kept["key"]]
    assert found[kept["key"]]["status"] == "kept"


def test_no_rows_at_all(tmp_path: Path) -> None:
    assert run([], tmp_path / "empty_part") == {}
    give_input(tmp_path / "no_part", "download", [])
    assert run_stage(DedupStage(DedupConfig()), tmp_path / "no_part", "download").counts == {}


def test_blocklisted_images_and_what_is_near_them_never_enter(tmp_path: Path) -> None:
    listed = tmp_path / "listed.txt"
    listed.write_text(f"{'ab' * 32}\n{0b1111:016x}\n")
    by_bytes = row("first", "http://a.org/1", sha256="ab" * 32, phash=0xFFFF << 40)
    twin = row("second", "http://a.org/2", phash=0xFFFF << 40)
    near = row("first", "http://a.org/3", phash=0b0011)
    far = row("first", "http://a.org/4", phash=0b0000)
    found = run([by_bytes, twin, near, far], tmp_path, blocklist=[str(listed)], radius=2)
    reasons = [found[each["key"]]["reason"] for each in (by_bytes, twin, near, far)]
    assert reasons == ["blocklisted", None, "blocklisted", None]


def test_paths_of_ones_own_files_are_no_urls() -> None:
    urls = ["a/1.jpg", "a/1.jpg", "HTTP://A.org:80/X#y", "http://a.org/X", None, "//a.org/z", "http://ü.org/"]
    compared = comparable_urls(
        pa.chunked_array([urls]), pa.chunked_array([["s", "t", "s", "t", "s", "t", "s"]])
    ).to_pylist()
    assert compared[0] != compared[1]
    assert None not in compared[:2]
    assert compared[2:] == ["http://a.org/X", "http://a.org/X", None, "//a.org/z", "http://ü.org/"]


def test_urls_compare_as_their_canonical_forms() -> None:
    hosts = ["http://a.org", "HTTP://a.org", "http://A.org", "https://a.org:443", "http://a.org:8080", "//a.org", "a"]
    ends = ["", "/", "/x", "?q=#", "/#y", "#", "/a\nb", "/a b?http://c.org/#z", "/ü"]
    urls = [host + end for host in hosts for end in ends] + ["mailto:x@a.org", ""]
    compared = comparable_urls(pa.chunked_array([urls]), pa.chunked_array([["s"] * len(urls)])).to_pylist()
    assert compared == [canonical_url(url) if "//" in url[:8] else f"s\0{url}" for url in urls]


@pytest.mark.parametrize("radius", [-1, 9])
def test_a_radius_out_of_range_is_refused(radius: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 8"):
        DedupConfig(radius=radius)


def test_summary_names_the_largest_clusters(tmp_path: Path) -> None:
    rows = [row("first", f"http://a.org/{n}", sha256="aa" * 32, width=n + 1) for n in range(5)]
    rows += [row("first", f"http://b.org/{n}", sha256="bb" * 32, width=n + 1) for n in range(2)]
    give_input(tmp_path, "download", [pa.Table.from_pylist(rows, schema=SCHEMA)])
    summary = run_stage(DedupStage(DedupConfig()), tmp_path, "download", sources=SOURCES).summary
    assert summary["largest"] == [[rows[4]["key"], 5], [rows[6]["key"], 2]]
    assert summary["cluster_sizes"] == {"2": 1, "5": 1}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = random_rows(11, 200)
    digests = []
    for name in ("one", "two"):
        run(rows, tmp_path / name, parts=2)
        digests.append([f.read_bytes() for f in sorted((tmp_path / name / "dedup").glob("part-*"))])
    assert digests[0] == digests[1]
    assert pq.read_schema(next((tmp_path / "one" / "dedup").glob("part-*"))).field("component").type == pa.string()


def test_says_whose_rows_stood_for_whose(tmp_path: Path) -> None:
    rows = [row("first", f"http://a.org/{n}", sha256=f"{n:064x}") for n in range(4)]
    rows += [row("second", f"http://b.org/{n}", sha256=f"{n:064x}") for n in range(2, 6)]
    rows += [row("third", "http://c.org/1", sha256="ee" * 32), row("third", "http://a.org/0")]
    listed = tmp_path / "listed.txt"
    listed.write_text(f"{'ee' * 32}\n")
    rows.append(row("second", "http://b.org/9", sha256=f"{5:064x}"))
    give_input(tmp_path, "download", [pa.Table.from_pylist(rows, schema=SCHEMA)])
    stage = DedupStage(DedupConfig(blocklist=[str(listed)]))
    assert run_stage(stage, tmp_path, "download", sources=SOURCES).summary["between"] == {
        "first": {"kept": 4, "twins_of": {}},
        "second": {"kept": 2, "twins_of": {"first": 2, "second": 1}},
        "third": {"kept": 0, "twins_of": {"first": 1}},
    }


def input_of(rows: int, root: Path) -> UnitWorkspace:
    """The workspace of a stage whose input has so many rows."""
    part = OutputFile(path="download/part-0.parquet", rows=rows, bytes=0, sha256="")
    give_input(root, "download", [], extra=[part])
    run = StageRun(store=Store(str(root)), stage="dedup", fingerprint="x", input_stage="download")
    return UnitWorkspace(run, "cut", Unit(id="cut"))


def test_long_searches_want_a_confirmation(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    small, large = input_of(10**6, tmp_path / "small"), input_of(10**9, tmp_path / "large")
    stage = DedupStage(DedupConfig(radius=8))
    assert "1,000,000 rows within 8 bits take about 0.2 minutes of one core, with 139 pairs" in stage.estimate(small)
    assert stage.estimate(large).endswith("more than max_minutes (60) allows")
    assert stage.phases()[0].cut(small)
    with pytest.raises(UserError, match=r"^stages\.dedup\.max_minutes: found 60, but .* minutes of one core"):
        stage.phases()[0].cut(large)
    confirmed = DedupStage(DedupConfig(radius=8, max_minutes=10**6))
    assert confirmed.phases()[0].cut(large)
    assert DedupStage(DedupConfig()).phases()[0].cut(large), "the default's radius is quick for a billion"


def test_a_crowd_of_equal_and_near_hashes_takes_no_quadratic_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    flips = [rng.integers(0, 64, 60_000).astype(np.uint64) for _ in range(3)]
    near = np.bitwise_or.reduce([np.uint64(1) << bits for bits in flips])
    rows = 120_000
    table = pa.table(
        {
            "key": [f"{number:032x}" for number in range(rows)],
            "source": ["first"] * rows,
            "url": [f"http://a.org/{number}" for number in range(rows)],
            "caption": ["a view"] * rows,
            "status": ["kept"] * rows,
            "sha256": [f"{number:064x}" for number in range(rows)],
            "phash": np.concatenate([np.zeros(60_000, np.uint64), near]),
            "width": [100] * rows,
            "height": [100] * rows,
        }
    )
    give_input(tmp_path, "download", [conform(table, SCHEMA)])
    begun = time.process_time()
    written = run_stage(DedupStage(DedupConfig(radius=2)), tmp_path, "download", sources=SOURCES)
    assert time.process_time() - begun < 60, "all against all would compare 7,200,000,000 pairs"
    result = read_output(tmp_path, written)
    hashes = dict(zip(result["key"].to_pylist(), result["phash"].to_numpy().tolist(), strict=True))
    assert all(
        (hashes[key] ^ hashes[cluster]).bit_count() <= 2
        for key, cluster in zip(result["key"].to_pylist(), result["cluster"].to_pylist(), strict=True)
    )
    kept = result.filter(pc.equal(result["status"], "kept"))["phash"].to_numpy()
    distance = np.bitwise_count(kept[:, None] ^ kept[None, :])
    assert (distance + np.eye(len(kept), dtype=int) * 64 > 2).all()


@pytest.mark.skipif("CURATION_REAL_DATA" not in os.environ, reason="CURATION_REAL_DATA is not set")
@pytest.mark.parametrize("radius", [0, 2, 8])
def test_agrees_with_its_definition_on_real_images(radius: int, tmp_path: Path) -> None:
    from stages.images import inspect

    folder = Path(os.environ["CURATION_REAL_DATA"])
    paths = sorted((folder / "rs" / "hurricane").rglob("*.*"))[::8] + sorted((folder / "dedup").rglob("*.*"))
    rows: list[dict[str, Any]] = []
    for path in paths:
        verdict = inspect(path.read_bytes())
        if verdict.reason is None:
            seen = {name: getattr(verdict, name) for name in ("width", "height", "sha256", "phash")}
            rows.append(row(SOURCES[len(rows) % 3], f"http://real.org/{path.relative_to(folder)}", **seen))
    found = run(rows, tmp_path, radius=radius)
    assert {k: (r["reason"], r["cluster"]) for k, r in found.items()} == by_definition(rows, radius)
    assert sum(r["reason"] == "duplicate_bytes" for r in found.values()) > 0
