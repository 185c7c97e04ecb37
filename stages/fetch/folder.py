"""An output folder of img2dataset (`webdataset` or `files`) in place of the web.

Its tables tell what became of each URL; its images are referenced where they are.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.base import Phase, Result, Unit, Workspace
from stages.errors import UnitError, UserError
from stages.fetch.chunks import bucket_of
from stages.fetch.facts import URL
from stages.schema import IMAGE
from stages.storage import Store
from stages.urls import canonical_url

ENTRY = pa.schema([(URL, pa.string()), ("reason", pa.string()), ("http_status", pa.int32()), ("image", IMAGE)])
IMAGE_EXTENSIONS = frozenset(["jpg", "png", "webp", "jpeg", "gif", "bmp", "tif", "tiff", "avif"])
_NEEDED = ("url", "key", "status", "error_message")
_REASONS = (
    ("timed out", "timeout"),
    ("timeout", "timeout"),
    ("name or service", "dns"),
    ("getaddrinfo", "dns"),
    ("name resolution", "dns"),
    ("certificate", "tls"),
    ("ssl", "tls"),
    ("unknown url type", "bad_url"),
    ("no host given", "bad_url"),
    ("disallowed", "opt_out"),
)


def tables(folder: str) -> list[str]:
    """The folder's parquet tables, sorted, as full paths.

    Raises:
        UserError: there are none.
    """
    store = Store(folder)
    found = [name for name in store.list() if name.endswith(".parquet")]
    if not found:
        raise UserError(f"from_img2dataset: {folder!r} holds no parquet tables, as img2dataset writes them")
    base = folder if "://" in folder else os.path.abspath(folder)
    return [f"{base.rstrip('/')}/{name}" for name in found]


class FolderPhase(Phase):
    """The folder's URLs by bucket: a file whose row group i holds what is known of bucket i."""

    name = "folder"

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def cut(self, ws: Workspace) -> list[Unit]:
        """One unit a table of the folder."""
        records = ws.phase_records("partition")
        if not records:
            return []
        buckets = records[0].meta["buckets"]
        return [
            Unit(id=f"{number:05d}", spec={"table": path, "buckets": buckets})
            for number, path in enumerate(tables(self.folder))
        ]

    def work(self, unit: Unit, ws: Workspace, state: Any, prepared: pa.Table | None = None) -> Result:
        """Read one table, find its images, sort both into buckets."""
        by_bucket: list[list[dict[str, Any]]] = [[] for _ in range(unit.spec["buckets"])]
        for entry in read_entries(unit.spec["table"]):
            by_bucket[bucket_of(entry[URL], unit.spec["buckets"])].append(entry)
        ws.write_table("folder", (pa.Table.from_pylist(part, schema=ENTRY) for part in by_bucket), kind="side")
        return Result()


def known_urls(ws: Workspace, bucket: int) -> dict[str, dict[str, Any]]:
    """What the folder says of a bucket's URLs, by canonical URL; an image wins, then the first."""
    found: dict[str, dict[str, Any]] = {}
    for file in ws.phase_files("folder", "side"):
        for entry in ws.read_table(file.path, row_groups=[bucket]).to_pylist():
            held = found.setdefault(entry[URL], entry)
            if held["reason"] is not None and entry["reason"] is None:
                found[entry[URL]] = entry
    return found


def read_entries(table: str) -> Iterator[dict[str, Any]]:
    """`ENTRY` rows of one table of the folder."""
    base = table.removesuffix(".parquet")
    images = _images(base)
    for row in _read(table):
        image = images.get(str(row["key"]))
        reason, status = _failure(row, image is not None)
        yield {
            URL: canonical_url(row["url"] or ""),
            "reason": reason,
            "http_status": status,
            "image": image if reason is None else None,
        }


def _read(table: str) -> list[dict[str, Any]]:
    store, name = _split(table)
    with store.open(name) as file:
        parquet = pq.ParquetFile(file)
        missing = [column for column in _NEEDED if column not in parquet.schema_arrow.names]
        if missing:
            raise UnitError(f"{table} has no column {missing[0]!r}; img2dataset's tables have {', '.join(_NEEDED)}")
        rows: list[dict[str, Any]] = parquet.read(columns=list(_NEEDED)).to_pylist()
    return rows


def _images(base: str) -> dict[str, Mapping[str, Any]]:
    """Where the images of one shard are, by key: in its tar, or in its folder."""
    store, name = _split(base)
    if store.exists(f"{name}.tar"):
        with store.open(f"{name}.tar") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = [(f"{base}.tar", member.name, member.offset_data, member.size) for member in tar]
    else:
        members = [(f"{store.url}/{path}", path, 0, store.size(path)) for path in store.list(name)]
    return {
        posixpath.basename(path).rpartition(".")[0]: {"tar": place, "offset": offset, "size": size}
        for place, path, offset, size in members
        if path.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
    }


def _split(path: str) -> tuple[Store, str]:
    folder, _, name = path.rpartition("/")
    return Store(folder), name


def _failure(row: Mapping[str, Any], has_image: bool) -> tuple[str | None, int | None]:
    """(reason, HTTP status) of a row of the table."""
    if row["status"] == "success" and has_image:
        return None, 200
    message = str(row["error_message"] or "").lower()
    if row["status"] == "failed_to_resize":
        return "corrupt", 200
    if status := re.search(r"http error (\d{3})", message):
        return "http_error", int(status[1])
    return next((reason for text, reason in _REASONS if text in message), "connect"), None
