from __future__ import annotations

import io
import re
from collections import Counter
from itertools import combinations
from math import ceil

import imagehash
import numpy as np
import pytest
from PIL import Image

from demo import planted
from demo.answers import expected_counts, expected_funnel, served
from demo.corpus import DISTINCT_BITS, SOURCES, Corpus
from stages.patterns import load_pack


def _hash(corpus: Corpus, url: str) -> imagehash.ImageHash:
    return imagehash.phash(Image.open(io.BytesIO(served(corpus.web, url)[0])).convert("RGB"))


def test_same_seed_same_bytes() -> None:
    corpora = Corpus(5), Corpus(5)
    for corpus in corpora:
        planted.twins_by_sight(corpus)
        planted.no_images(corpus)
    first, second = corpora
    assert first.rows == second.rows
    assert first.web.pages == second.web.pages
    other = Corpus(6)
    planted.twins_by_sight(other)
    assert other.web.pages != first.web.pages


def test_every_source_and_every_reason_is_planted(corpus: Corpus) -> None:
    assert {row.source for row in corpus.rows} == set(SOURCES)
    reasons = {reason for row in corpus.rows for reason in row.reasons}
    wanted = """
        bad_row no_url no_caption language filtered unsafe_score blocklisted no_keyword dns connect timeout
        http_error tls bad_url blocked_address too_large too_many_redirects robots opt_out empty_body
        not_an_image unsupported_format truncated too_many_pixels duplicate_row duplicate_url duplicate_bytes
        duplicate_image low_vlm_score low_detector_score
    """
    assert reasons >= set(wanted.split())


def test_keywords_by_a_plain_regular_expression(corpus: Corpus) -> None:
    pack = load_pack("rs5m")
    whole = re.compile("|".join(term.pattern for term in pack.terms))
    for row in corpus.rows:
        if row.caption and not set(row.reasons) & {"bad_row", "language"}:
            hits = whole.search(row.caption) is not None
            assert hits == (row.reasons != ("no_keyword",)), row


def test_twins_lie_within_the_radius_and_nothing_else_does(corpus: Corpus) -> None:
    by_key = {row.key: row for row in corpus.rows}
    seen = [row for row in corpus.rows if row.stage in ("dedup", "outliers", "shards")]
    for row in seen:
        if row.reasons == ("duplicate_image",):
            assert row.twin is not None
            twin = by_key[row.twin]
            assert _hash(corpus, row.url or "") - _hash(corpus, twin.url or "") <= planted.RADIUS
    survivors = [row for row in seen if row.stage != "dedup"]
    hashes = np.array([int(str(_hash(corpus, row.url or "")), 16) for row in survivors], np.uint64)
    for first, second in combinations(range(len(hashes)), 2):
        assert int(np.bitwise_count(hashes[first] ^ hashes[second])) > planted.RADIUS


def test_distinct_scenes_differ_by_far(corpus: Corpus) -> None:
    assert all((a ^ b).bit_count() > DISTINCT_BITS for a, b in combinations(corpus._hashes, 2))


def test_the_quantiles_cut_between_overhead_and_ground(corpus: Corpus) -> None:
    outliers = sum(row.stage == "outliers" for row in corpus.rows)
    rows = corpus.kept + outliers
    assert ceil(0.8 * rows) == corpus.kept
    assert rows - ceil(0.9 * rows) < outliers


def test_expected_counts_balance(corpus: Corpus) -> None:
    counts = expected_counts(corpus.rows)
    for (stage, source), entry in counts.items():
        assert entry["in"] == entry["kept"] + sum(entry["dropped"].values()), (stage, source)
    total = expected_funnel(corpus.rows)[-1]
    assert total["remain"] == corpus.kept
    assert total["amount"] == len(corpus.rows)
    removed = sum(total[name] for name in ("invalid_image", "duplicate_image", "outlier_image", "other_removed"))
    assert total["download_image"] - removed == total["remain"]


def test_keys_repeat_only_where_planted(corpus: Corpus) -> None:
    repeated = {key for key, rows in Counter(row.key for row in corpus.rows).items() if rows > 1}
    assert repeated == {row.key for row in corpus.rows if row.reasons == ("duplicate_row",)}


def test_the_bomb_is_small_and_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90_000_000)  # the decoder lifts it for its process
    data = planted.bomb(12_000)
    assert len(data) < 30_000
    with pytest.warns(Image.DecompressionBombWarning):
        image = Image.open(io.BytesIO(data))
    image.load()
    assert image.size == (12_000, 12_000)
    assert image.getextrema() == (0, 0)
