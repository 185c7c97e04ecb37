"""Writers of the eleven sources in the schemas in which they are published."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from demo.corpus import Row

ROW_GROUP = 100
PLAIN = ("a patch of ground", "something in the picture")
"""Texts without a keyword, where a source has several texts a row."""


def write(source: str, rows: Sequence[Row], folder: Path) -> None:
    """Write the files of one source below `folder`, its rows in an order drawn from its name."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(list(source.encode()))
    WRITERS[source]([rows[index] for index in draw.permutation(len(rows))], folder)


def _parquet(folder: Path, columns: dict[str, list[Any]], types: dict[str, pa.DataType], files: int = 1) -> None:
    """Parts named as Spark names them, with several row groups each."""
    fields = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    table = pa.table(fields)
    size = -(-table.num_rows // files)
    for number in range(files):
        path = folder / f"part-{number:05d}-9c1f5a52-demo-c000.snappy.parquet"
        part = table.slice(number * size, size)
        pq.write_table(part, path, compression="snappy", row_group_size=ROW_GROUP)


def _value(row: Row, name: str, default: Any) -> Any:
    return row.extra.get(name, default)


def _number(row: Row) -> int:
    return int(hashlib.blake2b((row.key + row.case).encode(), digest_size=7).hexdigest(), 16)


def _share(row: Row, low: float, high: float) -> float:
    """A number between low and high that belongs to the row."""
    return round(low + (high - low) * (_number(row) % 9973) / 9973, 5)


def _laion2b(rows: Sequence[Row], folder: Path) -> None:
    columns: dict[str, list[Any]] = {
        "URL": [row.url for row in rows],
        "TEXT": [row.caption for row in rows],
        "WIDTH": [400.0 for _ in rows],
        "HEIGHT": [None if _number(row) % 11 == 0 else 300.0 for row in rows],
        "similarity": [_share(row, 0.28, 0.4) for row in rows],
        "hash": [_number(row) for row in rows],
        "punsafe": [_value(row, "punsafe", _share(row, 0.0, 0.3)) for row in rows],
        "pwatermark": [_share(row, 0.0, 0.9) for row in rows],
    }
    _parquet(folder, columns, {"URL": pa.string(), "TEXT": pa.string(), "hash": pa.int64()}, files=3)


def _laion400m(rows: Sequence[Row], folder: Path) -> None:
    columns: dict[str, list[Any]] = {
        "SAMPLE_ID": [_number(row) for row in rows],
        "URL": [row.url for row in rows],
        "TEXT": [row.caption for row in rows],
        "HEIGHT": [300 for _ in rows],
        "WIDTH": [400 for _ in rows],
        "LICENSE": ["?" for _ in rows],
        "NSFW": [_value(row, "NSFW", "UNLIKELY") for row in rows],
        "similarity": [_share(row, 0.3, 0.4) for row in rows],
    }
    _parquet(folder, columns, {"SAMPLE_ID": pa.int64(), "HEIGHT": pa.int32(), "WIDTH": pa.int32()})


def _coyo700m(rows: Sequence[Row], folder: Path) -> None:
    columns: dict[str, list[Any]] = {
        "id": [_number(row) for row in rows],
        "url": [row.url for row in rows],
        "text": [row.caption for row in rows],
        "width": [_value(row, "width", 400) for row in rows],
        "height": [300 for _ in rows],
        "image_phash": [f"{_number(row):016x}" for row in rows],
        "text_length": [len(row.caption or "") for row in rows],
        "word_count": [len((row.caption or "").split()) for row in rows],
        "num_tokens_bert": [12 for _ in rows],
        "num_tokens_gpt": [12 for _ in rows],
        "num_faces": [0 for _ in rows],
        "clip_similarity_vitb32": [_share(row, 0.2, 0.4) for row in rows],
        "clip_similarity_vitl14": [_share(row, 0.1, 0.3) for row in rows],
        "nsfw_score_opennsfw2": [_share(row, 0.0, 0.2) for row in rows],
        "nsfw_score_gantman": [_value(row, "nsfw_score_gantman", _share(row, 0.0, 0.2)) for row in rows],
        "watermark_score": [_share(row, 0.0, 0.5) for row in rows],
        "aesthetic_score_laion_v2": [_share(row, 3.0, 7.0) for row in rows],
    }
    _parquet(folder, columns, {"id": pa.int64(), "url": pa.string(), "width": pa.int64()}, files=2)


def _laioncoco(rows: Sequence[Row], folder: Path) -> None:
    texts = [row.texts or (row.caption, *PLAIN) for row in rows]
    columns: dict[str, list[Any]] = {
        "URL": [row.url for row in rows],
        "TEXT": [text[0] for text in texts],
        "top_caption": [text[1] for text in texts],
        "all_captions": [list(text[1:]) for text in texts],
        "all_similarities": [[0.3] * (len(text) - 1) for text in texts],
        "WIDTH": [400.0 for _ in rows],
        "HEIGHT": [300.0 for _ in rows],
        "similarity": [_share(row, 0.28, 0.4) for row in rows],
        "hash": [_number(row) for row in rows],
        "punsafe": [_value(row, "punsafe", _share(row, 0.0, 0.3)) for row in rows],
        "pwatermark": [_share(row, 0.0, 0.9) for row in rows],
    }
    _parquet(folder, columns, {"all_captions": pa.list_(pa.string()), "hash": pa.int64()})


def _lines(path: Path, lines: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def _cc3m(rows: Sequence[Row], folder: Path) -> None:
    """Caption first, no header."""
    lines = [_value(row, "line", f"{row.caption}\t{row.url}".encode()) for row in rows]
    _lines(folder / "Train_GCC-training.tsv", lines)


def _cc12m(rows: Sequence[Row], folder: Path) -> None:
    """URL first, no header."""
    _lines(folder / "cc12m.tsv", [f"{row.url}\t{row.caption}".encode() for row in rows])


WIT_COLUMNS = (
    "language", "page_url", "image_url", "page_title", "section_title", "hierarchical_section_title",
    "caption_reference_description", "caption_attribution_description", "caption_alt_text_description", "mime_type",
    "original_height", "original_width", "is_main_image", "attribution_passes_lang_id", "page_changed_recently",
    "context_page_description", "context_section_description",
)  # fmt: skip


def _wit(rows: Sequence[Row], folder: Path) -> None:
    """Gzipped, 17 columns and a header, in two files."""
    for number in range(2):
        lines = ["\t".join(WIT_COLUMNS)]
        for row in rows[number::2]:
            language = _value(row, "language", "en")
            texts = [text or "" for text in (row.texts or (row.caption, None, None))]
            page = f"https://{language}.wikipedia.example/wiki/Page_{_number(row) % 1000}"
            fields = [language, page, str(row.url), "Page", "History", "Page / History", *texts, "image/jpeg"]
            fields += ["300", "400", "false", "true", "true", "A page.", "Its history."]
            lines.append("\t".join(fields))
        data = "".join(line + "\n" for line in lines).encode()
        name = f"wit_v1.train.all-{number:05d}-of-00002.tsv.gz"
        (folder / name).write_bytes(gzip.compress(data, mtime=0))


def _yfcc15m(rows: Sequence[Row], folder: Path) -> None:
    """23 columns of YFCC100M, and the list of the photos that count; some photos are not on it."""
    subset, metadata = [], []
    for number, row in enumerate(rows):
        photo = str(_number(row))
        subset.append(f"{number * 7}\t{photo}\t{hashlib.blake2b(photo.encode(), digest_size=16).hexdigest()}".encode())
        title, description = row.texts or (row.caption, PLAIN[1])
        metadata.append(_yfcc_line(photo, str(title), str(description), str(row.url), _value(row, "marker", 0)))
        if number % 20 == 0:
            stranger = _yfcc_line(f"{number + 1}", "Aerial view, not on the list", "", f"{row.url}?no", 0)
            metadata.append(stranger)
    _lines(folder / "yfcc100m_subset_data.tsv", subset)
    _lines(folder / "yfcc100m_dataset.tsv", metadata)


def _yfcc_line(photo: str, title: str, description: str, url: str, marker: int) -> bytes:
    """photo id, user, dates, device, texts and tags, place, URLs, licence, Flickr's server fields, marker."""
    fields = [photo, "71@N00", "someone", "2010-05-01 12:00:00.0", "1272715200", "Canon"]
    fields += [quote_plus(title), quote_plus(description), "tag", "", "", "", ""]
    fields += ["http://www.flickr.example/photos/71@N00/" + photo, url, "Attribution License"]
    fields += ["http://creativecommons.org/licenses/by/2.0/", "3", "4", "abc", "def", "jpg", str(marker)]
    return "\t".join(fields).encode()


def _redcaps(rows: Sequence[Row], folder: Path) -> None:
    for number, name in enumerate(("aerialphotos_2018", "itookapicture_2019")):
        notes = [
            {
                "image_id": f"{_number(row):x}"[:7],
                "author": "someone",
                "url": row.url,
                "raw_caption": (row.caption or "").upper(),
                "caption": row.caption,
                "subreddit": name.split("_")[0],
                "score": 12,
                "created_utc": 1_540_000_000,
                "permalink": f"/r/{name.split('_')[0]}/comments/{_number(row) % 10**6}/",
                "crosspost_parents": None,
            }
            for row in rows[number::2]
        ]
        info = {"description": "a page of the demo", "version": "1.0", "year": 2021}
        (folder / f"{name}.json").write_text(json.dumps({"info": info, "annotations": notes}))


def _sbu(rows: Sequence[Row], folder: Path) -> None:
    """One object of parallel lists."""
    lists = {
        "image_urls": [row.url for row in rows],
        "captions": [row.caption for row in rows],
        "user_ids": [f"{_number(row) % 10**6}@N00" for row in rows],
    }
    (folder / "sbu-captions-all.json").write_text(json.dumps(lists))


def _vg(rows: Sequence[Row], folder: Path) -> None:
    """Images, and their regions by image id."""
    images, regions = [], []
    for number, row in enumerate(rows, start=1):
        images.append(
            {"image_id": number, "url": row.url, "width": 400, "height": 300, "coco_id": None, "flickr_id": None}
        )
        phrases = row.texts or (PLAIN[0], row.caption)
        boxes = [
            {
                "region_id": number * 100 + i,
                "image_id": number,
                "x": 1,
                "y": 2,
                "width": 30,
                "height": 40,
                "phrase": phrase,
            }
            for i, phrase in enumerate(phrases)
        ]
        regions.append({"id": number, "regions": boxes})
    (folder / "image_data.json").write_text(json.dumps(images))
    (folder / "region_descriptions.json").write_text(json.dumps(regions))


WRITERS: dict[str, Callable[[Sequence[Row], Path], None]] = {
    "laion2b": _laion2b,
    "coyo700m": _coyo700m,
    "laion400m": _laion400m,
    "wit": _wit,
    "yfcc15m": _yfcc15m,
    "cc12m": _cc12m,
    "redcaps": _redcaps,
    "cc3m": _cc3m,
    "sbu": _sbu,
    "vg": _vg,
    "laioncoco": _laioncoco,
}
