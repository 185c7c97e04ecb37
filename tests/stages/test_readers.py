"""Readers on files that are not quite what the recipe says."""

from __future__ import annotations

import bz2
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import readers
from stages.readers import BrokenFile, lines
from stages.sources import Source, SourceFile, resolve

TEXT = b"url\tcaption\nhttp://a/1\tan aerial view\n"


def source(path: Path, format: str, **more: Any) -> Source:
    file = SourceFile(url=str(path), size=path.stat().st_size, version="1")
    entry = {"name": "mine", "format": format, "columns": {"url": "url", "caption": "caption"}, **more}
    return resolve(entry, {"data": (file,)})


def urls(found: Source) -> Sequence[str | None]:
    batches = [batch for piece in readers.pieces(found) for batch in readers.read(found, piece) if batch.rows]
    return [url for batch in batches for url in batch.load(batch.find("url")).to_pylist()]


def parquet_bytes() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"url": ["http://a/1"]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["tsv", "csv", "jsonl", "json"])
@pytest.mark.parametrize(
    ("data", "kind"),
    [(gzip.compress(TEXT), "gzip"), (bz2.compress(TEXT), "bzip2"), (parquet_bytes(), "parquet")],
)
def test_other_data_under_the_name_of_text_is_told(tmp_path: Path, format: str, data: bytes, kind: str) -> None:
    path = tmp_path / f"rows.{format}"
    path.write_bytes(data)
    with pytest.raises(BrokenFile, match=f"holds {kind}"):
        urls(source(path, format))


def test_endings_count_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "rows.TSV.GZ"
    path.write_bytes(gzip.compress(TEXT))
    assert urls(source(path, "tsv")) == ["http://a/1"]


def test_keys_that_a_batch_lacks_by_chance_are_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "RANGE_BYTES", 100)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 50)
    records: list[dict[str, Any]] = [{"url": f"http://a/{number}", "caption": "x"} for number in range(8)]
    records += [{"caption": "x"} for _ in range(30)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = source(path, "jsonl")
    assert len(readers.pieces(found)) > 5
    assert urls(found) == [record.get("url") for record in records]


def test_keys_that_no_object_has_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"link": "http://a/1", "caption": "x"}\n')
    with pytest.raises(Exception, match="no column 'url'; there are link, caption"):
        urls(source(path, "jsonl"))
