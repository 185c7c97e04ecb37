"""Reading by polars: nothing but time may tell it from reading by Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.readers import parquet
from stages.readers.checked import read_checked
from tests.stages.test_keywords import run

HIT = "an aerial view of fields"
CAPTIONS = [
    *(None, "", " ", "\u00a0", "a cat", "\x00", "café", "é" * 7),
    *(HIT, "Aerial\u00a0\u2014view", "satellite  imagery", "x" * 100_000 + " USGS", "aerial view" + "y" * 100_000),
    *(b"\xff aerial view", b"aerial view caf\xc3", b"\xa9 starts within a character", b"long " * 9 + b"\xe2\x80"),
]
URLS = [None, "", "http://a.example/1", "http://blocked.example/2", "http://a.example/é", b"http://a.example/\xff"]
ENTRIES: list[dict[str, Any]] = [
    {},
    {"where": "width > 10 and TEXT != 'a cat'"},
    {"unsafe": [{"column": "punsafe", "over": 0.5}, {"column": "LICENSE", "equals": ["?"]}]},
    {"options": {"language": "en"}, "columns": {"language": "lang"}},
    {"columns": {"url": ["link", "URL"], "caption": ["TEXT", "lang"]}},
]


def text_array(values: Sequence[str | bytes | None], kind: pa.DataType) -> pa.Array:
    """Text that may be none: Arrow does not look at the bytes."""
    data = [value.encode() if isinstance(value, str) else value for value in values]
    return pa.array(data, pa.large_binary() if kind == pa.large_string() else pa.binary()).view(kind)


def nasty_file(path: Path, seed: int, valid: bool, **options: Any) -> Path:
    """1,000 rows in 7 row groups; with `valid`, no URL is missing, so statistics prove it, and all is UTF-8."""
    rng = np.random.default_rng(seed)
    captions = [caption for caption in CAPTIONS if not (valid and isinstance(caption, bytes))]
    urls = URLS[2:5] if valid else URLS
    kind = pa.large_string() if seed % 2 else pa.string()
    table = pa.table(
        {
            "URL": text_array([urls[i] for i in rng.integers(0, len(urls), 1000)], kind),
            "TEXT": text_array([captions[i] for i in rng.integers(0, len(captions), 1000)], kind),
            "LICENSE": pa.array(rng.choice(np.array(["?", "cc-by", None], object), 1000)).dictionary_encode(),
            "lang": rng.choice(np.array(["en", "de", "", None], object), 1000),
            "width": rng.integers(0, 100, 1000),
            "punsafe": rng.random(1000),
        }
    )
    pq.write_table(table, path, row_group_size=150, **options)
    return path


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("entry", ENTRIES, ids=["plain", "where", "unsafe", "language", "alternatives"])
def test_polars_and_arrow_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], valid: bool, seed: int
) -> None:
    monkeypatch.setattr(parquet, "UNIT_ROWS", 400)
    path = nasty_file(tmp_path / "[a]*.parquet", seed, valid, use_dictionary=bool(seed), data_page_size=1 << 14)
    (tmp_path / "block.txt").write_text("blocked.example\n")
    blocklist = [tmp_path / "block.txt"] if seed else []
    source = {"name": "laion400m", **entry}
    by_polars = run(tmp_path / "polars", source, path, blocklist)
    monkeypatch.setattr(parquet, "read_checked", lambda *_: None)
    assert run(tmp_path / "arrow", source, path, blocklist) == by_polars
    assert by_polars[1]["kept"] > 20
    assert valid or by_polars[1]["dropped"]["bad_row"] > 100


def test_rows_across_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = [None if i % 7 == 0 else f"caption {i} é" for i in range(1000)]
    pq.write_table(pa.table({"^a.*$": values, "ab": ["?"] * 1000}), path, row_group_size=64)
    text = read_checked(str(path), "^a.*$", 100, 500)
    assert text is not None
    assert text.array().type == pa.string()
    assert text.array().to_pylist() == values[100:600]
    assert text.take(np.array([0, 5, 499])).to_pylist() == [values[100], values[105], values[599]]


@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("texts", [[b"fine", b"\xff\xfe"], [b"split caf\xc3", b"\xa9 over two rows, neither short"]])
def test_invalid_text_is_refused(tmp_path: Path, texts: list[bytes], use_dictionary: bool) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": text_array(texts, pa.string())}), path, use_dictionary=use_dictionary)
    assert read_checked(str(path), "a", 0, 2) is None


def test_what_is_no_text_or_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"number": [1, 2], "bytes": [b"a", b"b"], "list": [["a"], []]}), path)
    for name in ("number", "bytes", "list", "absent"):
        assert read_checked(str(path), name, 0, 2) is None
    path.write_bytes(b"PAR1 junk PAR1")
    assert read_checked(str(path), "a", 0, 2) is None
    assert read_checked(str(tmp_path / "absent.parquet"), "a", 0, 2) is None
