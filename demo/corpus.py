"""The demo's rows, each with its known fate: what is planted here must be found in what a run writes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from demo import captions, scenes
from demo.web import CDN, PORT, Page, Web

SOURCES = (
    "laion2b", "coyo700m", "laion400m", "wit", "yfcc15m", "cc12m", "redcaps", "cc3m", "sbu", "vg", "laioncoco",
)  # fmt: skip
"""In the order of the demo's recipe, which is precedence among twins."""

OVERHEAD_ROWS = {
    "laion2b": 62, "coyo700m": 34, "laion400m": 18, "wit": 14, "yfcc15m": 12, "cc12m": 14, "redcaps": 8,
    "cc3m": 14, "sbu": 6, "vg": 5, "laioncoco": 22,
}  # fmt: skip
UNRELATED_ROWS = {
    "laion2b": 420, "coyo700m": 210, "laion400m": 110, "wit": 90, "yfcc15m": 70, "cc12m": 90, "redcaps": 50,
    "cc3m": 110, "sbu": 40, "vg": 18, "laioncoco": 90,
}  # fmt: skip

SEED = 2023
DISTINCT_BITS = 8
"""Scenes that are not planted as twins differ in more than this many bits of their perceptual hash."""

TYPES = {
    "jpg": ("JPEG", "image/jpeg"),
    "png": ("PNG", "image/png"),
    "webp": ("WEBP", "image/webp"),
    "gif": ("GIF", "image/gif"),
    "bmp": ("BMP", "image/bmp"),
    "tif": ("TIFF", "image/tiff"),
    "avif": ("AVIF", "image/avif"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a source's metadata, and what must become of it."""

    case: str
    """What it is planted for, in words."""
    source: str
    url: str | None
    caption: str | None
    """The caption that counts: the first of `texts` that holds a keyword."""
    texts: tuple[str | None, ...] = ()
    """All texts of the row where the case is about several; else the format's writer adds what it needs."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Values of the source's own columns."""
    stage: str = "shards"
    """The last stage that sees the row."""
    reasons: tuple[str, ...] = ()
    """Any of these is right; none when the row is kept to the end."""
    twin: str | None = None
    """Key of the row it was dropped for."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Values that the download table must have for it."""
    gains: tuple[str, ...] = ()
    """Captions of dropped twins that must be listed with the survivor."""

    @property
    def key(self) -> str:
        """The row's key, computed from what the contract says about it and not by the pipeline's code."""
        return make_key(self.source, self.url or "", self.caption or "")


def make_key(source: str, url: str, caption: str) -> str:
    """blake2b-128 of source, NUL, url, NUL, caption."""
    return hashlib.blake2b(f"{source}\0{url}\0{caption}".encode(), digest_size=16).hexdigest()


class Corpus:
    """Rows, web pages and their answers, grown from one seed."""

    def __init__(self, seed: int = SEED, port: int = PORT) -> None:
        self.rng = np.random.default_rng(seed)
        self.web = Web(port)
        self.rows: list[Row] = []
        self.blocklist: list[str] = []
        self._hashes: list[int] = []
        self._pages = 0

    @property
    def kept(self) -> int:
        """Rows that stay to the end."""
        return sum(not row.reasons for row in self.rows)

    def scene(self, kind: str | None = None, size: tuple[int, int] | None = None) -> tuple[Image.Image, str]:
        """A scene unlike every other one by its perceptual hash, and its kind (drawn when not given)."""
        import imagehash

        size = size or (int(self.rng.integers(200, 560)), int(self.rng.integers(180, 480)))
        kind = kind or str(self.rng.choice(list(scenes.OVERHEAD)))
        paint = scenes.overhead if kind in scenes.OVERHEAD else scenes.ground
        while True:
            image = paint(kind, self.rng, size)
            bits = int(str(imagehash.phash(image)), 16)
            if all((bits ^ other).bit_count() > DISTINCT_BITS for other in self._hashes):
                self._hashes.append(bits)
                return image, kind

    def serve(self, body: bytes, suffix: str = "jpg", host: str | None = None, **page: Any) -> str:
        """Put a body on a host (one of those that behave, when none is named) and return its URL."""
        self._pages += 1
        host = host or CDN[self._pages % len(CDN)]
        page.setdefault("content_type", TYPES[suffix][1])
        return self.web.add(host, f"/images/{self._pages:05d}.{suffix}", Page(body=body, **page))

    def picture(self, kind: str | None = None, suffix: str = "jpg", **page: Any) -> tuple[str, str]:
        """A new scene on the web: its URL and a caption that goes with it."""
        image, kind = self.scene(kind)
        templates = captions.OVERHEAD if kind in scenes.OVERHEAD else captions.CLAIMED
        return self.serve(encode(image, suffix), suffix, **page), captions.describe(templates, self.rng, kind)

    def words(self) -> str:
        """A caption with a keyword, of no scene in particular."""
        return captions.describe(captions.OVERHEAD, self.rng, str(self.rng.choice(list(scenes.OVERHEAD))))

    def add(self, case: str, source: str, url: str | None, caption: str | None, **more: Any) -> Row:
        """Add a row; `more` are fields of `Row`."""
        row = Row(case=case, source=source, url=url, caption=caption, **more)
        self.rows.append(row)
        return row

    def drop(self, case: str, source: str, url: str | None, stage: str, *reasons: str, **more: Any) -> Row:
        """Add a row with a keyword in its caption that `stage` must drop."""
        more.setdefault("caption", self.words())
        return self.add(case, source, url, stage=stage, reasons=reasons, **more)

    def elsewhere(self) -> str:
        """A URL of which nothing is ever fetched."""
        self._pages += 1
        return self.web.url(CDN[self._pages % len(CDN)], f"/other/{self._pages:05d}.jpg")


def encode(image: Image.Image, suffix: str = "jpg", **options: Any) -> bytes:
    """The image's bytes in one of `TYPES`."""
    kind = TYPES[suffix][0]
    if kind in ("JPEG", "WEBP", "AVIF"):
        options.setdefault("quality", 88)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def build(seed: int = SEED, port: int = PORT) -> Corpus:
    """The whole corpus. A fifth of what outlier removal sees is ground-level, so that its quantiles are exact.

    With K overhead rows and (K - 1) / 4 ground-level ones, N = K + (K - 1) / 4 and 0.8 N = K - 0.2: the best
    ⌈0.8 N⌉ by a detector that tells the two apart are the K overhead rows.
    """
    from demo import planted

    corpus = Corpus(seed, port)
    planted.plant(corpus)
    for source, rows in OVERHEAD_ROWS.items():
        for _ in range(rows):
            corpus.add("overhead scene", source, *corpus.picture())
    while corpus.kept % 4 != 1:
        corpus.add("overhead scene", "laion2b", *corpus.picture())
    weights = [source for source, rows in OVERHEAD_ROWS.items() for _ in range(rows)]
    kinds = list(scenes.GROUND)
    for number in range((corpus.kept - 1) // 4):
        url, caption = corpus.picture(kinds[number % len(kinds)])
        corpus.drop(
            "ground-level photo", weights[number * 7 % len(weights)], url,
            "outliers", "low_vlm_score", "low_detector_score", caption=caption,
        )  # fmt: skip
    for source, rows in UNRELATED_ROWS.items():
        for _ in range(rows):
            text = captions.unrelated(corpus.rng)
            corpus.drop("unrelated caption", source, corpus.elsewhere(), "keywords", "no_keyword", caption=text)
    return corpus
