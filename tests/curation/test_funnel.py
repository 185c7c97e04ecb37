from __future__ import annotations

import importlib
from typing import Any

import pytest

from curation.funnel import COLUMNS, ConservationError, column, funnel

PUBLISHED = """
laion2b 1980978 1737584 102 343017 333686 1060779
coyo700m 680089 566076 28 245650 94329 226069
laioncoco 3014283 2549738 80 417689 527941 1604028
laion400m 286102 241324 25 141658 23860 75781
wit 98540 93754 0 74081 9299 10374
yfcc15m 27166 25020 0 265 15126 9629
cc12m 18892 16234 0 1870 4330 10034
redcaps 2842 2686 0 228 972 1486
cc3m 12563 11718 1 328 1817 9572
sbu 102 91 0 4 36 51
vg 26 26 0 0 20 6
"""
"""Counts of PUB11 as published: keyword, downloaded, invalid, duplicate, outlier, remain."""


def entry(arrived: int, **dropped: int) -> dict[str, Any]:
    return {"in": arrived, "kept": arrived - sum(dropped.values()), "dropped": dropped}


def manifests(**stages: dict[str, Any]) -> dict[str, Any]:
    return {stage: {"counts": counts} for stage, counts in stages.items()}


def published() -> tuple[dict[str, Any], list[list[int]]]:
    counts: dict[str, dict[str, Any]] = {s: {} for s in ("keywords", "download", "dedup", "outliers", "shards")}
    rows = [line.split() for line in PUBLISHED.strip().splitlines()]
    for name, *numbers in rows:
        hits, images, invalid, twins, outliers, remain = map(int, numbers)
        counts["keywords"][name] = entry(hits + 1000, no_keyword=1000)
        counts["download"][name] = entry(hits, http_error=hits - images, corrupt=invalid)
        counts["dedup"][name] = entry(images - invalid, duplicate_url=twins // 2, duplicate_image=twins - twins // 2)
        counts["outliers"][name] = entry(images - invalid - twins, low_vlm_score=outliers)
        counts["shards"][name] = entry(remain)
    return manifests(**counts), [list(map(int, row[1:])) for row in rows]


def test_the_published_counts_balance_and_come_out_again() -> None:
    given, expected = published()
    names = [line.split()[0] for line in PUBLISHED.strip().splitlines()]
    *rows, total = funnel(given, names)
    assert [row["name"] for row in rows] == names
    assert [list(row) for row in rows] == [list(COLUMNS)] * 11
    shown = ["after_keyword_filtering", "download_image", "invalid_image", "duplicate_image", "outlier_image", "remain"]
    assert [[row[name] for name in shown] for row in rows] == expected
    assert [total[name] for name in shown] == [6_121_583, 5_244_251, 236, 1_224_790, 1_011_416, 3_007_809]
    assert total["amount"] == 6_121_583 + 11_000


def test_each_reason_has_its_column() -> None:
    assert column("download", "timeout") is None
    assert column("download", "duplicate_row") == "duplicate_image"
    assert column("ingest", "duplicate_row") == "other_removed"
    assert column("ingest", "truncated") == "invalid_image"
    assert column("dedup", "test_set_image") == "other_removed"
    assert column("dedup", "blocklisted") == "other_removed"
    assert column("outliers", "unscorable") == "outlier_image"


def test_blocklisted_and_other_reasons_are_counted_as_other() -> None:
    given = manifests(
        keywords={"a": entry(10, blocklisted=2)},
        download={"a": entry(8, blocklisted=1, duplicate_row=1, dns=2)},
        dedup={"a": entry(4, test_set_image=1)},
    )
    assert funnel(given, ["a"])[0] == {
        "name": "a",
        "amount": 10,
        "after_keyword_filtering": 8,
        "download_image": 6,
        "invalid_image": 0,
        "duplicate_image": 1,
        "outlier_image": 0,
        "other_removed": 2,
        "remain": 3,
    }


def test_partial_runs() -> None:
    assert funnel({}, ["a"])[0]["remain"] == 0
    assert funnel({}, [])[0]["remain"] == 0
    row, total = funnel(manifests(keywords={"a": entry(5, no_keyword=3)}), ["a"])
    assert (row["after_keyword_filtering"], row["download_image"], row["remain"]) == (2, None, 2)
    assert total["download_image"] is None
    row = funnel(manifests(ingest={"a": entry(5, cloud=1, corrupt=1)}), ["a"])[0]
    assert (row["amount"], row["download_image"], row["other_removed"], row["remain"]) == (5, 5, 1, 3)


def test_sources_without_rows_keep_their_place() -> None:
    rows = funnel(manifests(keywords={"b": entry(1)}), ["z", "b"])
    assert [row["name"] for row in rows] == ["z", "b", "Total"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"keywords": {"a": {"in": 5, "kept": 3, "dropped": {"no_url": 1}}}}, "keywords, source a: 5 rows in, but 4"),
        ({"keywords": {"a": entry(5)}, "download": {"a": entry(4)}}, "download, source a: 4 rows in.*keywords kept 5"),
        ({"keywords": {"a": entry(5)}, "download": {}}, "download, source a: 0 rows in"),
        ({"keywords": {"a": entry(5)}, "dedup": {"a": entry(5, oddity=1)}}, "'oddity', which has no column"),
    ],
)
def test_what_does_not_add_up_is_a_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConservationError, match=words):
        funnel(manifests(**given), ["a"])


def test_every_reason_a_stage_may_give_has_a_column_and_words() -> None:
    from curation.recipe import STAGES
    from curation.report.labels import REASONS

    for name, place in STAGES.items():
        module, _, cls = place.partition(":")
        reasons = getattr(importlib.import_module(module), cls).reasons
        assert reasons <= set(REASONS), name
        if name != "keywords":
            assert {column(name, reason) for reason in reasons} <= {None, *COLUMNS}
