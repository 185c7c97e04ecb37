"""The report on captions: tokens beyond CLIP's context, diversity, agreement, and the sheet of candidates."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation.finished import Finished
from curation.manifest import Manifest
from curation.report import captioning, facts, page
from stages.schema import CAPTIONS, COMMON, INGEST, extend
from stages.storage import Store
from tests.harness import give_input

TEXTS = ("a long pier", "boats in the harbor next to a pier", "boats boats boats")


def rows() -> list[dict[str, Any]]:
    candidates = [
        {"text": TEXTS[0], "score": 0.2, "rerank": 0.1, "rotation_mean": 0.2, "rotation_variance": 1e-5},
        {"text": TEXTS[1], "score": 0.3, "rerank": 0.4, "rotation_mean": 0.3, "rotation_variance": 2e-5},
        {"text": TEXTS[2], "score": 0.9, "rerank": 0.9, "reason": "loop"},
    ]
    parts = [{"text": f"{TEXTS[1]}.", "origin": "generated"}, {"text": "In Peru.", "origin": "metadata"}]
    return [
        {
            "key": hashlib.md5(bytes([n])).hexdigest(),
            "source": "fmow",
            "url": f"{n}.jpg",
            "caption": "word " * 100 if n == 0 else f"{TEXTS[1]}. In Peru.",
            "status": "kept",
            "labels": ["port"],
            "candidates": candidates,
            "caption_parts": parts,
            "top_caption": TEXTS[1],
        }
        for n in range(12)
    ]


@pytest.fixture
def root(tmp_path: Path) -> Finished:
    from dataclasses import replace

    table = pa.Table.from_pylist(rows(), schema=extend(COMMON, INGEST, CAPTIONS))
    written: Manifest = give_input(tmp_path, "captions", [table])
    counts = {
        "images": 12,
        "candidates": 36,
        "reason loop": 12,
        "reason outranked": 12,
        "origin generated": 12,
        "meta_captions": 9,
    }
    agreed = {"asked": 12, "image_agrees": 9, "caption_agrees": 6}
    summary = {"generated": 12, "sources": {"fmow": counts | agreed}}
    return Finished(store=Store(str(tmp_path)), recipe={}, manifests={"captions": replace(written, summary=summary)})


def test_tokens_quality_and_reasons(root: Finished) -> None:
    found = captioning.collect(root)
    assert found is not None
    [tokens] = found["tokens"]
    assert (tokens["rows"], tokens["max"], tokens["cut"], tokens["tokens_cut"]) == (12, 102, 1, 25)
    [source] = found["sources"]
    assert (source["image_agreement"], source["caption_agreement"], source["degenerate"]) == (0.75, 0.5, 0.3333)
    assert (source["generated"], source["meta"]) == (12, 9)
    assert source["score_quartiles"] == pytest.approx([0.3] * 3)
    assert source["distinct_1"] == round(len(set(TEXTS[1].split())) / (12 * 8), 4)
    assert found["reasons"]["rows"] == [{"source": "fmow", "candidates": 36, "counts": [12, 12]}]


def test_the_sheet_shows_all_candidates_those_that_stand_first(root: Finished) -> None:
    sheet = captioning.choose(root)
    assert len(sheet) == captioning.SHOWN
    assert sheet == captioning.choose(root)
    first = sheet[0]["candidates"]
    assert [each["text"] for each in first] == [TEXTS[1], TEXTS[0], TEXTS[2]]
    assert [each["used"] for each in first] == [True, False, False]


def test_page_and_text_have_the_section(root: Finished) -> None:
    found = facts.collect(root)
    html = page.html(found, {}, [], captioning.choose(root))
    assert 'id="captions"' in html
    assert TEXTS[2] in html
    assert "beyond 77" in page.markdown(found, [])


def test_mtld_is_long_for_rich_texts_and_short_for_poor_ones() -> None:
    poor = ["tree", "road"] * 50
    rich = [f"word{n}" for n in range(100)]
    assert captioning.mtld(poor) == pytest.approx(3.0, abs=0.1)
    assert captioning.mtld(rich) == 100.0
    assert captioning.mtld(rich[:20]) is None
    assert captioning.distinct(["a b a b"], 2) == round(2 / 3, 4)
    assert captioning.distinct([], 1) is None


def test_tokens_are_counted_for_sources_of_the_web_too(tmp_path: Path) -> None:
    """A run of web sources has no stage `captions`; its longest captions are cut all the same."""
    long = "an aerial view of a harbor " * 20
    texts = {"cc3m": ["a pier", long], "laioncoco": [long, long]}
    rows = [
        {
            "key": hashlib.md5(f"{source}{n}".encode()).hexdigest(),
            "source": source,
            "url": f"http://h/{n}",
            "caption": text,
            "status": "kept",
        }
        for source, each in texts.items()
        for n, text in enumerate(each)
    ]
    written = give_input(tmp_path, "dedup", [pa.Table.from_pylist(rows, schema=COMMON)])
    recipe = {"sources": [{"name": name} for name in texts]}
    root = Finished(store=Store(str(tmp_path)), recipe=recipe, manifests={"dedup": written})
    found = captioning.collect(root)
    assert found is not None
    by_source = {row["source"]: row for row in found["tokens"]}
    beyond = 20 * 6 + 2 - 77
    assert {name: (row["cut"], row["tokens_cut"]) for name, row in by_source.items()} == {
        "cc3m": (1, beyond),
        "laioncoco": (2, 2 * beyond),
    }
    assert by_source["laioncoco"]["mean"] == by_source["laioncoco"]["max"] == beyond + 77
    assert (found["sources"], found["reasons"]["rows"], found["scores"]) == ([], [], None)
    whole = facts.collect(root)
    assert "beyond 77" in page.markdown(whole, [])
    assert 'id="captions"' in page.html(whole, {}, [], [])
