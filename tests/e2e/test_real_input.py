"""A day's work on real captions and images, its funnel checked against counts made independently.

Keywords by Python's `re`, validity by Pillow, twins by comparing all pairs, outliers by sorting.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from stages.patterns import load_pack
from tests.e2e.head import Head
from tests.e2e.world import World, build
from tests.webserver import serving

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
MAX_PIXELS = 100_000_000


@dataclass
class Day:
    """Rows (url, caption) by source, and the body behind each URL."""

    rows: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture(scope="module")
def finished(real_data: Path, tmp_path_factory: pytest.TempPathFactory, ray_head: Head) -> Iterator[tuple[Day, Path]]:
    with serving() as server:
        folder = tmp_path_factory.mktemp("real")
        world = build(folder, server, ray_head.env)
        day = _day(real_data, world)
        _write_sources(day, folder)
        _write_recipe(world, folder)
        print(world.run(folder / "root"))
        yield day, folder / "root"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".jsonl", ".md"))


def _day(data: Path, world: World) -> Day:
    day = Day()

    def serve(path: Path) -> str:
        name = f"/real/{path.relative_to(data).as_posix()}"
        url = world.server.url("/" + "/".join(_quoted(part) for part in name.strip("/").split("/")))
        day.bodies[url] = world.server.pages[name] = path.read_bytes()
        return url

    web = pq.read_table(data / "text/web_rows.parquet")["caption"].to_pylist()
    captions = pq.read_table(data / "text/captions.parquet").to_pylist()
    published = [row["caption"] for row in captions if row["source"] == "rs3_dump"]
    photos = [serve(path) for path in _files(data / "photo/imagenet_small")]
    damaged = [serve(path) for path in _files(data / "decode")]
    hurricane = [serve(path) for path in _files(data / "rs/hurricane")]
    day.rows["laion2b"] = [(photos[n % len(photos)], text) for n, text in enumerate(web)]
    day.rows["laion2b"] += [(url, published[n % len(published)]) for n, url in enumerate(damaged)]
    day.rows["coyo700m"] = [(url, published[n % len(published)]) for n, url in enumerate(hurricane)]
    day.rows["cc3m"] = [
        (serve(data / folder / entry["image"]), caption)
        for folder in ("rs/aid", "photo/flickr8k")
        for line in (data / folder / "captions.jsonl").read_text().splitlines()
        for entry in [json.loads(line)]
        for caption in entry["captions"][:2]
    ]
    day.rows["cc3m"] += [
        (serve(path), published[-n % len(published)])
        for folder, every in (("rs/aid", 8), ("photo/intel", 6), ("photo/imagenet", 6))
        for n, path in enumerate(_files(data / folder)[::every])
    ]
    return day


def _quoted(part: str) -> str:
    from urllib.parse import quote

    return quote(part)


def _write_sources(day: Day, folder: Path) -> None:
    urls, texts = (list(column) for column in zip(*day.rows["laion2b"], strict=True))
    pq.write_table(pa.table({"URL": urls, "TEXT": texts, "punsafe": [0.0] * len(urls)}), folder / "laion2b.parquet")
    urls, texts = (list(column) for column in zip(*day.rows["coyo700m"], strict=True))
    pq.write_table(pa.table({"id": range(len(urls)), "url": urls, "text": texts}), folder / "coyo.parquet")
    lines = [f"{_one_line(text)}\t{url}\n" for url, text in day.rows["cc3m"]]
    (folder / "cc3m-real.tsv").write_text("".join(lines))


def _one_line(text: str) -> str:
    return re.sub(r"[\t\n\r]", " ", text)


def _write_recipe(world: World, folder: Path) -> None:
    world.write_recipe(
        sources=[
            {"name": "laion2b", "path": str(folder / "laion2b.parquet")},
            {"name": "coyo700m", "path": str(folder / "coyo.parquet")},
            {"name": "cc3m", "path": str(folder / "cc3m-real.tsv")},
        ]
    )
    recipe = yaml.safe_load(world.recipe.read_text())
    recipe["stages"]["outliers"] = {
        "vlm": {"model": str(folder / "clip")},
        "detector": {"model": "builtin"},
        "keep": {"vlm": 0.9, "detector": 0.8},
    }
    recipe["stages"]["download"] |= {"max_pixels": MAX_PIXELS, "per_host": 32, "timeout_s": 60}
    world.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))


def _table(root: Path, stage: str) -> list[dict[str, Any]]:
    manifest = json.loads((root / stage / "manifest.json").read_text())
    parts = [file["path"] for file in manifest["outputs"] if file["kind"] == "part"]
    return [row for part in parts for row in pq.read_table(root / part).to_pylist()]


def _funnel(root: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads((root / "report/report.json").read_text())["funnel"]}


def _is_valid(body: bytes) -> bool:
    """Pillow's own verdict: opens as one of the kept formats and loads its first frame."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(body), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    return False
                image.load()
        except Exception:
            return False
    return True


def test_keywords_agree_with_python(finished: tuple[Day, Path]) -> None:
    day, root = finished
    pack = load_pack("rs5m")
    patterns = [re.compile(term.pattern) for term in pack.terms]
    funnel = _funnel(root)
    for source, rows in day.rows.items():
        hits = sum(any(p.search(text) for p in patterns) for _, text in rows)
        assert (funnel[source]["amount"], funnel[source]["after_keyword_filtering"]) == (len(rows), hits)


def test_validity_agrees_with_pillow(finished: tuple[Day, Path]) -> None:
    day, root = finished
    wrong, invalid, downloaded = [], dict.fromkeys(day.rows, 0), dict.fromkeys(day.rows, 0)
    for row in _table(root, "download"):
        if row["reason"] == "duplicate_row":
            downloaded[row["source"]] += 1
            continue
        body = day.bodies[row["url"]]
        downloaded[row["source"]] += 1
        invalid[row["source"]] += not _is_valid(body)
        if _is_valid(body) != (row["status"] == "kept"):
            wrong.append((row["url"], row["reason"]))
    assert wrong == []
    funnel = _funnel(root)
    for source in day.rows:
        assert (funnel[source]["download_image"], funnel[source]["invalid_image"]) == (
            downloaded[source],
            invalid[source],
        )
    assert sum(invalid.values()) > 100


def test_twins_agree_with_all_pairs(finished: tuple[Day, Path]) -> None:
    day, root = finished
    order = list(day.rows)
    rows = [row for row in _table(root, "download") if row["status"] == "kept"]
    rows.sort(key=lambda r: (order.index(r["source"]), -r["width"] * r["height"], -len(r["caption"]), r["key"]))
    hashes = np.array([row["phash"] or 0 for row in rows], np.uint64)
    hashed = np.array([row["phash"] is not None for row in rows])
    kept: list[int] = []
    expected: dict[str, str] = {}
    for index, row in enumerate(rows):
        before = np.array(kept, np.int64)
        near = (np.bitwise_count(hashes[before] ^ hashes[index]) <= 2) & hashed[before] & hashed[index]
        twins = [
            k
            for k, close in zip(kept, near, strict=True)
            if close or rows[k]["url"] == row["url"] or rows[k]["sha256"] == row["sha256"]
        ]
        if twins:
            expected[row["key"]] = rows[twins[0]]["key"]
        else:
            kept.append(index)
            expected[row["key"]] = row["key"]
    assert {row["key"]: row["cluster"] for row in _table(root, "dedup")} == expected
    duplicates = sum(key != cluster for key, cluster in expected.items())
    exact = sum(row["reason"] == "duplicate_row" for row in _table(root, "download"))
    assert _funnel(root)["Total"]["duplicate_image"] == duplicates + exact
    assert duplicates > 500


def test_outliers_agree_with_sorting(finished: tuple[Day, Path]) -> None:
    _, root = finished
    rows = _table(root, "outliers")
    good: set[str] = set()
    for column, share in (("vlm_score", 0.9), ("detector_logit", 0.8)):
        ranked = sorted(rows, key=lambda row: (-row[column], row["key"]))
        chosen = {row["key"] for row in ranked[: math.ceil(share * len(rows))]}
        good = good & chosen if good else chosen
    assert {row["key"] for row in rows if row["status"] == "kept"} == good
    assert _funnel(root)["Total"]["outlier_image"] == len(rows) - len(good)


def test_the_shipped_detector_drops_photographs_and_keeps_aerial_images(finished: tuple[Day, Path]) -> None:
    _, root = finished
    rows = _table(root, "outliers")
    aerial, photographs = ([row for row in rows if f"/real/{kind}/" in row["url"]] for kind in ("rs", "photo"))
    cut = [row["url"] for row in rows if row["reason"] == "low_detector_score"]  # a fifth, and drawings go first
    assert min(len(aerial), len(photographs)) > 100
    shares = {
        "aerial called aerial": np.mean([row["detector_logit"] > 0 for row in aerial]),
        "photographs called aerial": np.mean([row["detector_logit"] > 0 for row in photographs]),
        "aerial among what the detector dropped": np.mean(["/real/rs/" in url for url in cut]),
        "photographs dropped": np.mean([row["status"] == "dropped" for row in photographs]),
    }
    print(len(aerial), len(photographs), shares)
    assert shares["aerial called aerial"] > 0.95
    assert shares["photographs called aerial"] < 0.1
    assert shares["aerial among what the detector dropped"] < 0.02
    assert shares["photographs dropped"] > 0.65


def test_shards_hold_what_remains(finished: tuple[Day, Path]) -> None:
    import tarfile

    _, root = finished
    keys: list[str] = []
    for path in sorted((root / "shards").rglob("*.tar")):
        with tarfile.open(path) as tar:
            keys += [name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json")]
    assert sorted(keys) == sorted(row["key"] for row in _table(root, "outliers") if row["status"] == "kept")
    assert len(keys) == _funnel(root)["Total"]["remain"]
    with open(root / "funnel.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(_funnel(root)["Total"]))
        writer.writeheader()
        writer.writerows(_funnel(root).values())
    print((root / "funnel.csv").read_text())
