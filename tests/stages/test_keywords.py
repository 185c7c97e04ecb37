"""The keywords stage on every source's public schema, through the real workspace and commits."""

from __future__ import annotations

import bz2
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import UserError
from stages.keys import make_key
from stages.keywords import KeywordsConfig, KeywordsStage
from stages.patterns import load_pack
from stages.readers.yfcc import COLUMNS
from stages.sources import SourceFile, named_files, resolve
from tests.harness import read_output, run_stage

NOTHING = {"in": 0, "kept": 0, "dropped": {}}
HIT, MISS = "an aerial view of fields", "a cat on a sofa"


def file_of(path: Path) -> SourceFile:
    return SourceFile(url=str(path), size=path.stat().st_size, version=str(path.stat().st_mtime_ns))


def run(
    tmp_path: Path,
    entry: Mapping[str, Any],
    files: Mapping[str, Sequence[Path]] | Path,
    blocklist: Sequence[Path] = (),
    pack: str = "rs5m",
    only: Sequence[Path] = (),
    leave: Sequence[Path] = (),
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(kept rows, counts of the source)."""
    named = {"data": [files]} if isinstance(files, Path) else files
    found = {role: tuple(file_of(path) for path in paths) for role, paths in named.items()}
    source = resolve(entry, found, tuple(map(file_of, only)), tuple(map(file_of, leave)))
    stage = KeywordsStage(KeywordsConfig(pack=pack, blocklist=[str(path) for path in blocklist]), [source])
    stage.check()
    done = run_stage(stage, tmp_path / "root", sources=[source.name])
    return read_output(tmp_path / "root", done).to_pylist(), done.counts.get(source.name, {})


def parquet(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(dict(columns)), path, **options)
    return path


def test_laion_drops_unsafe_rows_and_reads_any_case(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        {
            "SAMPLE_ID": [1, 2, 3, 4, 5, 6],
            "url": ["http://a/1", "http://a/2", "http://a/3", None, "http://a/5", ""],
            "Text": [HIT, HIT, MISS, HIT, None, HIT],
            "LICENSE": ["cc-by", "?", None, "?", "?", "?"],
            "NSFW": ["UNLIKELY", "NSFW", "UNLIKELY", None, None, None],
            "punsafe": [0.1, 0.2, 0.9, 0.1, 0.1, 0.1],
        },
    )
    rows, counts = run(tmp_path, {"name": "laion2b", "path": str(path)}, path)
    assert counts == {"in": 6, "kept": 1, "dropped": {"no_caption": 1, "no_url": 2, "unsafe_score": 2}}
    assert rows == [
        {
            "key": make_key("laion2b", "http://a/1", HIT),
            "source": "laion2b",
            "url": "http://a/1",
            "caption": HIT,
            "status": "kept",
            "reason": None,
            "keywords": ["aerial view"],
            "row": {"file": str(path), "row_group": 0, "row": 0},
            "captions": [{"text": HIT, "source": "laion2b", "origin": "alt_text"}],
            "licence": "cc-by",
            "page": None,
        }
    ]


def test_a_licence_is_the_rows_own_where_there_is_a_column(tmp_path: Path) -> None:
    rows = {"URL": ["http://a/1", "http://a/2", "http://a/3"], "TEXT": [HIT] * 3}
    path = parquet(tmp_path / "a.parquet", rows | {"LICENSE": ["?", None, "cc-by"]})
    found, _ = run(tmp_path / "a", {"name": "laion2b"}, path)
    assert [row["licence"] for row in found] == [None, None, "cc-by"]
    found, _ = run(tmp_path / "b", {"name": "laion2b"}, parquet(tmp_path / "b.parquet", rows))
    assert [row["licence"] for row in found] == ["CC-BY-4.0"] * 3


def test_laioncoco_keeps_each_caption_with_its_origin(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        {
            "URL": ["http://a/1", "http://a/2", "http://a/3"],
            "TEXT": ["IMG_1.jpg", HIT, MISS],
            "top_caption": ["a field", "aerial photo", MISS],
            "all_captions": [["a field", "satellite image", HIT], None, []],
            "punsafe": [0.0, None, 0.0],
        },
    )
    rows, counts = run(tmp_path, {"name": "laioncoco"}, path)
    assert counts == {"in": 3, "kept": 2, "dropped": {"no_keyword": 1}}
    assert [row["caption"] for row in rows] == ["satellite image", HIT]
    assert rows[0]["keywords"] == ["aerial view", "satellite imag"]
    texts = [(entry["text"], entry["origin"]) for entry in rows[0]["captions"]]
    assert texts == [
        ("IMG_1.jpg", "alt_text"),
        ("a field", "generated"),
        ("satellite image", "generated"),
        (HIT, "generated"),
    ]
    assert rows[0]["key"] == make_key("laioncoco", "http://a/1", "satellite image")


def test_coyo_and_row_groups(tmp_path: Path) -> None:
    count = 10
    columns = {
        "id": range(count),
        "url": [f"http://a/{i}" for i in range(count)],
        "text": [HIT if i % 2 else MISS for i in range(count)],
        "nsfw_score_opennsfw2": [0.0] * 9 + [0.99],
        "nsfw_score_gantman": [None] * count,
    }
    path = parquet(tmp_path / "a.parquet", {k: list(v) for k, v in columns.items()}, row_group_size=3)
    rows, counts = run(tmp_path, {"name": "coyo700m"}, path)
    assert counts == {"in": 10, "kept": 4, "dropped": {"no_keyword": 5, "unsafe_score": 1}}
    places = [(row["row"]["row_group"], row["row"]["row"]) for row in rows]
    assert places == [(0, 1), (1, 0), (1, 2), (2, 1)]


WIT = """language page_url image_url page_title section_title hierarchical_section_title
caption_reference_description caption_attribution_description caption_alt_text_description mime_type
original_height original_width is_main_image attribution_passes_lang_id page_changed_recently
context_page_description context_section_description"""


def wit_line(language: str, url: str, captions: tuple[str, str, str]) -> str:
    return "\t".join([language, "http://wiki/p", url, "t", "s", "h", *captions, "image/jpeg", *"9999999"])


@pytest.mark.parametrize("header", [True, False])
def test_wit(tmp_path: Path, header: bool) -> None:
    lines = ["\t".join(WIT.split())] if header else []
    lines += [
        wit_line("en", "http://a/1", (HIT, "no", "no")),
        wit_line("en", "http://a/2", ("", 'English: "satellite image', HIT)),
        wit_line("en", "http://a/3", ("", "", "aerial photo")),
        wit_line("de", "http://a/4", (HIT, "", "")),
        wit_line("en", "http://a/5", ("", "", "")),
        "en\tshort",
    ]
    path = tmp_path / "wit_v1.tsv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    rows, counts = run(tmp_path, {"name": "wit"}, path)
    assert counts == {"in": 6, "kept": 3, "dropped": {"bad_row": 1, "language": 1, "no_caption": 1}}
    assert [row["caption"] for row in rows] == [HIT, 'English: "satellite image', "aerial photo"]
    assert {row["page"] for row in rows} == {"http://wiki/p"}
    offset = len(lines[0]) + 1 if header else 0
    assert rows[0]["row"] == {"file": str(path), "row_group": -1, "row": offset}


def test_cc3m_and_cc12m_have_opposite_columns(tmp_path: Path) -> None:
    three, twelve = tmp_path / "cc3m.tsv", tmp_path / "cc12m.tsv"
    text = f'{HIT}\thttp://a/1\n"{HIT}\thttp://a/2\r\n{MISS}\thttp://a/3\nx\ty\tz\n\n\thttp://a/4\n'
    three.write_text(text, newline="")
    rows, counts = run(tmp_path / "three", {"name": "cc3m"}, three)
    assert counts == {"in": 5, "kept": 2, "dropped": {"bad_row": 1, "no_caption": 1, "no_keyword": 1}}
    assert [(row["url"], row["caption"]) for row in rows] == [("http://a/1", HIT), ("http://a/2", f'"{HIT}')]
    assert [row["row"]["row"] for row in rows] == [0, len(HIT) + 12]
    twelve.write_text(f"http://a/1\t{HIT}\n")
    rows, _ = run(tmp_path / "twelve", {"name": "cc12m"}, twelve)
    assert [(row["url"], row["caption"]) for row in rows] == [("http://a/1", HIT)]


def yfcc_line(number: int, title: str, description: str, marker: str = "0", long: bool = False) -> str:
    values = dict.fromkeys(COLUMNS, "") | {
        "photo_id": str(number),
        "title": quote_plus(title),
        "description": quote_plus(description),
        "download_url": f"http://live/{number}.jpg",
        "license_url": "http://cc/by",
        "page_url": "http://flickr/p",
        "marker": marker,
    }
    fields = list(values.values())
    return "\t".join(["7", fields[0], "hash", *fields[1:]] if long else fields)


@pytest.mark.parametrize("long", [False, True])
def test_yfcc_joins_its_subset_and_decodes(tmp_path: Path, long: bool) -> None:
    metadata, subset = tmp_path / "yfcc100m_dataset.bz2", tmp_path / "yfcc100m_subset_data.tsv"
    lines = [
        yfcc_line(11, "Zürich & more", "an aerial view, 1+1, 100%", long=long),
        yfcc_line(12, MISS, MISS, long=long),
        yfcc_line(13, HIT, "", long=long),
        yfcc_line(14, HIT, "", marker="1", long=long),
        "broken",
    ]
    metadata.write_bytes(bz2.compress("\n".join(lines).encode()))
    subset.write_text("0\t14\tx\n1\t11\tx\n2\t12\tx\n3\t99\tx\n")
    files = {"metadata": [metadata], "subset": [subset]}
    rows, counts = run(tmp_path, {"name": "yfcc15m"}, files)
    assert counts == {"in": 4, "kept": 1, "dropped": {"bad_row": 1, "filtered": 1, "no_keyword": 1}}
    assert [entry["text"] for entry in rows[0]["captions"]] == ["Zürich & more", "an aerial view, 1+1, 100%"]
    assert (rows[0]["caption"], rows[0]["licence"]) == ("an aerial view, 1+1, 100%", "http://cc/by")


def test_redcaps(tmp_path: Path) -> None:
    path = tmp_path / "earthporn_2017.json"
    made = [
        {"image_id": "a", "author": "x", "url": "http://i/1", "raw_caption": "Aerial View", "caption": HIT, "score": 1},
        {"image_id": "b", "image_url": "http://i/2", "raw_caption": HIT, "caption": "", "permalink": "/r/x"},
        {"image_id": "c", "url": 7, "caption": HIT},
        "no object",
    ]
    path.write_text(json.dumps({"info": {"annotations": "x"}, "annotations": made}))
    rows, counts = run(tmp_path, {"name": "redcaps"}, path)
    assert counts == {"in": 4, "kept": 2, "dropped": {"bad_row": 2}}
    assert [(row["url"], row["caption"], row["page"]) for row in rows] == [
        ("http://i/1", HIT, None),
        ("http://i/2", HIT, "/r/x"),
    ]


def test_sbu(tmp_path: Path) -> None:
    path = tmp_path / "sbu.json"
    urls = [f"http://i/{i}" for i in range(40_000)]
    texts = [HIT if i % 1000 == 0 else MISS for i in range(40_000)]
    path.write_text(json.dumps({"image_urls": urls, "user_ids": ["u"] * 40_000, "captions": texts}))
    rows, counts = run(tmp_path, {"name": "sbu"}, path)
    assert counts == {"in": 40_000, "kept": 40, "dropped": {"no_keyword": 39_960}}
    assert [row["row"]["row"] for row in rows] == list(range(0, 40_000, 1000))


def test_sbu_lists_of_different_length(tmp_path: Path) -> None:
    path = tmp_path / "sbu.json"
    path.write_text(json.dumps({"image_urls": ["http://a"], "captions": []}))
    with pytest.raises(RuntimeError, match=r"sbu\.json: its lists image_urls, captions differ in length"):
        run(tmp_path, {"name": "sbu"}, path)


def test_visual_genome(tmp_path: Path) -> None:
    images, regions = tmp_path / "image_data.json", tmp_path / "region_descriptions.json"
    images.write_text(json.dumps([{"image_id": i, "url": f"http://vg/{i}"} for i in (1, 2, 3)]))
    phrases = {1: ["a tree", HIT, "a tree"], 2: [MISS], 9: [HIT]}
    told = [{"id": i, "regions": [{"image_id": i, "phrase": p} for p in ps]} for i, ps in phrases.items()]
    regions.write_text(json.dumps(told))
    rows, counts = run(tmp_path, {"name": "vg"}, {"images": [images], "regions": [regions]})
    assert counts == {"in": 4, "kept": 1, "dropped": {"no_caption": 1, "no_keyword": 1, "no_url": 1}}
    assert (rows[0]["url"], rows[0]["caption"]) == ("http://vg/1", HIT)
    assert [entry["text"] for entry in rows[0]["captions"]] == ["a tree", HIT]


MINE = {"name": "mine", "columns": {"url": "link", "caption": "alt"}}


def test_csv_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    data = f'\ufefflink,alt\nhttp://a/1,"{HIT}, said ""he""\nand she"\nhttp://a/2\nhttp://a/3,{HIT}\n'.encode()
    path.write_bytes(data + b"http://a/4,\xff aerial view\n")
    rows, counts = run(tmp_path, MINE | {"format": "csv"}, path)
    assert counts == {"in": 4, "kept": 2, "dropped": {"bad_row": 2}}
    assert rows[0]["caption"] == f'{HIT}, said "he"\nand she'
    assert data[rows[1]["row"]["row"] :].startswith(b"http://a/3")


def test_tsv_by_position_and_invalid_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(
        f"{HIT}\tx\thttp://a/1\n".encode() + b"\xff aerial view\tx\thttp://a/2\n" + b"aerial\x00 aerial view\t\tu"
    )
    entry = {"name": "mine", "format": "tsv", "columns": {"url": 2, "caption": 0}}
    rows, counts = run(tmp_path, entry, path)
    assert counts == {"in": 3, "kept": 2, "dropped": {"bad_row": 1}}
    assert [(row["url"], row["caption"]) for row in rows] == [("http://a/1", HIT), ("u", "aerial\x00 aerial view")]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"Link": "http://a/1", "ALT": HIT + " \ud800"})
    path.write_text(f'{good}\n[1]\n{{"link": 1\n\n{{"Link": "http://a/2", "ALT": 5}}\n{{"other": 1}}\n')
    rows, counts = run(tmp_path, MINE | {"format": "jsonl"}, path)
    assert counts == {"in": 5, "kept": 1, "dropped": {"bad_row": 3, "no_url": 1}}
    assert rows[0]["caption"] == HIT + " \ufffd"


def test_byte_ranges_lose_and_repeat_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cc12m.tsv"
    texts = [f"http://a/{i}\t{HIT} {'é' * (i % 37)}\r\n" for i in range(200)]
    path.write_text("".join(texts), newline="")
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr("stages.readers.lines.RANGE_BYTES", max(size, 40))
        monkeypatch.setattr("stages.readers.lines.CHUNK_BYTES", size)
        rows, counts = run(tmp_path / str(size), {"name": "cc12m"}, path)
        assert counts == {"in": 200, "kept": 200, "dropped": {}}
        assert [row["url"] for row in rows] == [f"http://a/{i}" for i in range(200)]


def test_blocklists_and_id_lists(tmp_path: Path) -> None:
    urls = ["http://x.Example.org/1", "http://b/2", "HTTP://C:80/3#f", "http://d/4", "http://e/5", "no url"]
    path = parquet(tmp_path / "a.parquet", {"link": urls, "alt": [HIT, HIT, HIT, MISS, HIT, HIT], "n": list(range(6))})
    block, only, leave = tmp_path / "block.txt", tmp_path / "only.txt", tmp_path / "except.txt"
    block.write_text(f"# a comment\nexample.org\nhttp://c/3\nd\n{'ab' * 32}\n".replace("\nd\n", "\n*.d.de\n"))
    only.write_text("0\n1\n2\n3\n4\nno url\n")
    leave.write_text("http://e/5\n")
    entry = {**MINE, "format": "parquet", "columns": {"url": "link", "caption": "alt", "id": "n"}}
    rows, counts = run(tmp_path, entry, path, [block], only=[only], leave=[leave])
    assert counts == {"in": 6, "kept": 2, "dropped": {"blocklisted": 2, "filtered": 1, "no_keyword": 1}}
    assert [row["url"] for row in rows] == ["http://b/2", "no url"]


def test_bad_blocklist_line(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("example.org\nnot a domain\n")
    stage = KeywordsStage(KeywordsConfig(blocklist=[str(tmp_path / "b.txt")]))
    with pytest.raises(UserError, match="line 2: 'not a domain' is no URL, domain"):
        stage.check()


def test_where_and_exclude(tmp_path: Path) -> None:
    pack = tmp_path / "pack.yaml"
    pack.write_text("terms: [satellite, aerial view]\nexclude: [{term: satellite dish}]\n")
    path = parquet(
        tmp_path / "a.parquet",
        {
            "link": list("abcd"),
            "alt": ["a satellite", "Satellite-dish, aerial view", "aerial view", "aerial view"],
            "w": [10, 10, None, 1],
        },
    )
    rows, counts = run(tmp_path, MINE | {"format": "parquet", "where": "W > 5"}, path, pack=str(pack))
    assert counts == {"in": 4, "kept": 1, "dropped": {"excluded": 1, "filtered": 2}}
    assert rows[0]["keywords"] == ["satellite"]


def test_sources_of_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.tsv"
    empty.touch()
    assert run(tmp_path / "1", {"name": "cc3m"}, empty) == ([], NOTHING)
    nulls = parquet(tmp_path / "n.parquet", {"link": pa.nulls(5), "alt": pa.nulls(5)})
    rows, counts = run(tmp_path / "2", MINE | {"format": "parquet"}, nulls)
    assert (rows, counts) == ([], {"in": 5, "kept": 0, "dropped": {"no_url": 5}})


def test_missing_column_names_those_there_are(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"href": ["a"], "alt": [HIT]})
    with pytest.raises(RuntimeError, match=r"a\.parquet: no column 'link'; there are href, alt"):
        run(tmp_path, MINE | {"format": "parquet"}, path)


@pytest.mark.parametrize("damage", ["footer", "page", "gzip", "csv.gz", "json.gz", "json"])
def test_broken_files_fail_or_are_left_out(tmp_path: Path, damage: str) -> None:
    entry: dict[str, Any] = dict(MINE, format="parquet")
    path = tmp_path / "a.parquet"
    if damage in ("footer", "page"):
        parquet(path, {"link": [f"u{i}" for i in range(9999)], "alt": [f"{HIT} {i}" for i in range(9999)]})
        data = bytearray(path.read_bytes())
        middle = len(data) // 3
        path.write_bytes(data[:-20] if damage == "footer" else data[:middle] + b"\xff" * 9000 + data[middle + 9000 :])
    elif damage.endswith(".gz"):
        path, entry = tmp_path / f"a.{damage}", dict(MINE, format=damage.removesuffix(".gz"))
        text = b"[" + b'{"link": "u", "alt": "x"},' * 9999 if "json" in damage else b"link,alt\n" * 99999
        path.write_bytes(gzip.compress(text)[:-99])
    elif damage == "gzip":
        path, entry = tmp_path / "a.tsv.gz", {"name": "cc3m"}
        path.write_bytes(gzip.compress(f"{HIT}\tu\n".encode() * 99999)[:-200])
    else:
        path, entry = tmp_path / "a.json", dict(MINE, format="json")
        path.write_text('[{"link": "u", "alt": "aerial view"}, {"link"')
    with pytest.raises(RuntimeError, match=re.escape(path.name)):
        run(tmp_path / "fail", entry, path)
    rows, counts = run(tmp_path / "drop", entry | {"on_bad_file": "drop"}, path)
    assert (rows, counts) == ([], NOTHING)


def test_parts_hold_the_same_bytes_every_time(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"link": ["a", "b"], "alt": [HIT, MISS]})
    source = resolve(MINE | {"format": "parquet"}, {"data": (file_of(path),)})
    stage = KeywordsStage(KeywordsConfig(), [source])
    one, two = (run_stage(stage, tmp_path / name, sources=["mine"]) for name in ("one", "two"))
    assert [file.sha256 for file in one.outputs] == [file.sha256 for file in two.outputs]


def test_huge_row_group_is_streamed_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [HIT if i % 5 == 0 else MISS for i in range(1000)]
    path = parquet(tmp_path / "a.parquet", {"link": [f"u{i}" for i in range(1000)], "alt": texts, "w": [1] * 1000})
    entry = MINE | {"format": "parquet", "where": "w = 1"}
    whole = run(tmp_path / "whole", entry, path)
    monkeypatch.setattr("stages.readers.parquet.UNIT_ROWS", 100)
    monkeypatch.setattr("stages.readers.parquet.STREAM_ROWS", 64)
    assert run(tmp_path / "streamed", entry, path) == whole


def test_independent_count_on_every_engine_term(tmp_path: Path) -> None:
    pack = load_pack("rs5m")
    texts = [f"x {term.text} y" for term in pack.terms] + [f"x{term.text}" for term in pack.terms]
    path = parquet(tmp_path / "a.parquet", {"link": [f"u{i}" for i in range(len(texts))], "alt": texts})
    rows, counts = run(tmp_path, MINE | {"format": "parquet"}, path)
    expected = {
        text: [term.text for term in pack.terms if re.search(term.pattern, text)]
        for text in texts
        if any(re.search(term.pattern, text) for term in pack.terms)
    }
    assert {row["caption"]: row["keywords"] for row in rows} == expected
    assert counts["kept"] == len(expected)


def test_named_files() -> None:
    assert named_files({"format": "visual_genome"}) == (("images", "regions"), ())
    assert named_files({"format": "yfcc"}) == (("metadata",), ("subset",))
