import re
from itertools import product
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.errors import UserError
from stages.matcher import Matcher
from stages.patterns import Pack, Term, alternation, load_pack, pack_path, pattern
from stages.storage import Store

NASTY = [
    "",
    "aerial view",
    "AERIAL\u00a0VIEWS of a river",
    "an aerial\n\tview",
    "aerial_-_view",
    "aerial\u2013view",
    "aerial\u2015view",
    "aerial\u2016view",
    "aerial\u2003view",
    "aerialview",
    "unaerial view",
    "éaerial view",
    "9aerial view",
    "_aerial view",
    "\x00aerial view",
    "aerial\x00view",
    "satellite\u017f imagery",
    "\u017fatellite imagery",
    "space view \u212a",
    "u\u017fg\u017f",
    "USGS",
    "USGS\n",
    "USGS.",
    "USGSa",
    "USGSé",
    "USGS1",
    "İ aerial İmage",
    "satellıte image",
    "صورة aerial view جوية",
    "صورة جوية",
    "modish",
    "MODIS\u00a0data",
    "a" * 100_000 + " aerial view",
    "aerial view" + "b" * 100_000,
    "aerial " * 20_000,
    "aerial" + " " * 50_000 + "view",
]
PIECES = [
    "aerial",
    "View",
    "satellite",
    "imag",
    "USGS",
    "modis",
    " ",
    "-",
    "_",
    "\u00a0",
    "\u2010",
    "\u2016",
    "\n",
    "\r",
]
PIECES += ["\x00", "\u017f", "\u212a", "İ", "ı", "x", "é", "9", "م", "\U0001f30d", "\x0b", "\x85", "space", "borne"]

captions = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def engine_hits(term: str, texts: list[str]) -> dict[str, list[bool]]:
    rows = pa.table({"c": pa.array(texts)})
    query = duckdb.execute("select regexp_matches(c, $p) from rows", {"p": term}).fetchall()
    return {
        "re": [re.search(term, text) is not None for text in texts],
        "arrow": pc.match_substring_regex(rows["c"], term).to_pylist(),
        "duckdb": [row[0] for row in query],
        "polars": pl.Series(texts, dtype=pl.String).str.contains(term).to_list(),
    }


@pytest.mark.parametrize("name", ["rs5m", "rs5m_exact", "rs"])
def test_engines_agree_on_nasty_captions(name: str) -> None:
    pack = load_pack(name)
    for expression in (alternation(pack.terms), *(t.pattern for t in pack.terms[::7])):
        found = engine_hits(expression, NASTY)
        assert found["arrow"] == found["re"]
        assert found["duckdb"] == found["re"]
        assert found["polars"] == found["re"]


@settings(max_examples=150, deadline=None)
@given(st.lists(captions, min_size=1, max_size=5))
@example(["USGS\n", "USGS\r\n", "aerial", " view"])
def test_engines_and_matcher_agree(texts: list[str]) -> None:
    terms = (Term("aerial view"), Term("satellite imag"), Term("USGS", False), Term("space-borne imag", False))
    matcher = Matcher(terms)
    rows, numbers = matcher.hits(pa.array(texts))
    for number, term in enumerate(terms):
        found = engine_hits(term.pattern, texts)
        assert found["arrow"] == found["re"] == found["duckdb"] == found["polars"]
        assert [row in rows[numbers == number] for row in range(len(texts))] == found["re"]


@pytest.mark.parametrize(
    ("term", "open_end", "text", "hits"),
    [
        ("satellite imag", True, "Satellite imagery", True),
        ("satellite imag", True, "satellite-imaging", True),
        ("USGS", False, "usgs_map", True),
        ("USGS", False, "USGSX", False),
        ("MODIS", False, "modish chair", False),
        ("MODIS", True, "modish chair", True),
        ("space photo", True, "aerospace photo", False),
        ("space photo", True, "3space photo", True),
        ("Sentinel-1", True, "sentinel 1A", True),
        ("Sentinel-1", True, "sentinel1", False),
    ],
)
def test_grammar(term: str, open_end: bool, text: str, hits: bool) -> None:
    assert bool(re.search(pattern(term, open_end=open_end), text)) is hits


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_matcher_finds_what_re_finds_in_slices_with_nulls(kind: pa.DataType) -> None:
    pack = load_pack("rs5m")
    texts: list[str | None] = [*NASTY, None, "remote sensing"] * 2
    column = pa.array(texts, kind).slice(3)
    expected = [
        (row, number)
        for row, text in enumerate(texts[3:])
        for number, term in enumerate(pack.terms)
        if text is not None and re.search(term.pattern, text)
    ]
    rows, numbers = Matcher(pack.terms).hits(column)
    assert list(zip(rows.tolist(), numbers.tolist(), strict=True)) == expected
    without = Matcher(pack.terms)
    without._database = None
    fallback = without.hits(column)
    assert np.array_equal(fallback[0], rows)
    assert np.array_equal(fallback[1], numbers)


def test_words_split_over_two_rows_are_no_hit() -> None:
    rows, _ = Matcher((Term("aerial view"),)).hits(pa.array(["aerial ", "view", "x aerial", " view"]))
    assert rows.tolist() == []


def test_matcher_finds_every_run_of_separators() -> None:
    separators = "\t\n\v\f\r -_\u00a0\u2010\u2011\u2012\u2013\u2014\u2015"
    runs = ["".join(run) for length in (1, 2, 3) for run in product(separators, repeat=length)]
    texts = [f"An Aerial{run}VIEW{runs[-number]}of" for number, run in enumerate(runs)]
    rows, terms = Matcher((Term("aerial view of"), Term("view of"), Term("aerial viewer"))).hits(pa.array(texts))
    assert rows.tolist() == [row for row in range(len(texts)) for _ in range(2)]
    assert terms.tolist() == [0, 1] * len(texts)


def test_paper_packs() -> None:
    pack, exact = load_pack("rs5m"), load_pack("rs5m_exact")
    assert (len(pack.terms), len(exact.terms)) == (41, 42)
    assert {t.text for t in exact.terms} - {t.text for t in pack.terms} == {"Freesound"}
    closed = {"Gaofen", "USGS", "NAIP", "MODIS", "EOSDIS", "WorldView", "ArcGIS", "Maxar", "Landsat"}
    assert {t.text for t in pack.terms if not t.open_end} == closed
    assert all(t.open_end for t in exact.terms)
    ours = load_pack("rs")
    assert all(t.notes["why"] for t in (*pack.terms, *ours.terms, *ours.exclude))


def test_digest_ignores_notes_only() -> None:
    one = Pack("a", (Term("x", True, {"why": "a"}),))
    assert one.digest() == Pack("b", (Term("x", True, {"why": "b"}),)).digest()
    assert one.digest() != Pack("a", (Term("x", False),)).digest()
    assert one.digest() != Pack("a", (Term("x"),), (Term("y"),)).digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("terms: []", "terms is empty"),
        ("terms: [a b, A b]", "twice"),
        ("terms: [{term: a, ned: open}]", "did you mean 'end'"),
        ("terms: [{term: a, end: closed}]", "accepted are open and word"),
        ("terms: ['a.*']", "letters and digits"),
        ("terms: [a  b]", "single spaces"),
        ("- a", "a mapping with terms is needed"),
        ("terms: [", "no valid YAML"),
    ],
)
def test_pack_errors_are_sentences(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pack.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        load_pack(str(path))


def test_unknown_pack() -> None:
    with pytest.raises(UserError, match="did you mean 'rs5m'"):
        load_pack("rs5")
    with pytest.raises(UserError, match="no such file"):
        load_pack("/nowhere/pack.yaml")


def test_a_pack_by_any_kind_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my packs [1]"
    folder.mkdir()
    (folder / "own pack.yaml").write_text("terms: [{term: salt marsh}]\n")
    monkeypatch.chdir(folder)
    absolute = folder / "own pack.yaml"
    for name in ("own pack.yaml", "./own pack.yaml", str(absolute), f"file://{absolute}"):
        assert [term.text for term in load_pack(name).terms] == ["salt marsh"]
        path = pack_path(name)
        assert Store(path).exists(path)
