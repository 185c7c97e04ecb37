"""The planted cases: twins, failures, hostile pages, odd formats, odd captions."""

from __future__ import annotations

import io
import struct
import zlib

import imagehash
from PIL import Image, ImageDraw

from demo import captions
from demo.corpus import Corpus, Row, encode
from demo.web import BLOCKED, BUSY, DAMAGED, LOST, MOVED, OPT_OUT, ROBOTS, SLOW, Page

RADIUS = 2
"""Of the demo's recipe: planted near-twins lie within it, planted look-alikes beyond."""
PLACEHOLDER_URLS = 10
"""The option's default: so many URLs of a host with the same bytes and other captions stand for lost pictures."""
DEAD_PORT = 9
"""The discard port of a loopback host: nothing listens there."""
METADATA_SERVICE = "http://169.254.169.254/latest/meta-data/"


def plant(corpus: Corpus) -> None:
    """Add every planted case."""
    dropped_by_metadata(corpus)
    unreachable(corpus)
    refused(corpus)
    no_images(corpus)
    odd_but_good(corpus)
    twins_by_url(corpus)
    twins_by_bytes(corpus)
    twins_by_sight(corpus)
    odd_captions(corpus)
    placeholders(corpus)


def dropped_by_metadata(corpus: Corpus) -> None:
    """Rows that never reach the web."""

    def drop(case: str, source: str, reason: str, url: str | None = "", **more: object) -> None:
        corpus.drop(case, source, corpus.elsewhere() if url == "" else url, "keywords", reason, **more)

    drop("null url", "laion2b", "no_url", url=None)
    drop("null url", "coyo700m", "no_url", url=None)
    drop("null caption", "laion2b", "no_caption", caption=None)
    drop("empty caption", "cc12m", "no_caption", caption="")
    for language in ("de", "fr", "es", "ja", "pt", "sv"):
        drop(f"WIT row in {language!r}", "wit", "language", extra={"language": language})
    for _ in range(3):
        drop("narrower than the recipe's where", "coyo700m", "filtered", extra={"width": 90})
    drop("a video of YFCC", "yfcc15m", "filtered", extra={"marker": 1})
    for _ in range(4):
        drop("unsafe by punsafe", "laion2b", "unsafe_score", extra={"punsafe": 0.97})
    drop("unsafe by nsfw_score_gantman", "coyo700m", "unsafe_score", extra={"nsfw_score_gantman": 0.91})
    drop("unsafe by NSFW", "laion400m", "unsafe_score", extra={"NSFW": "NSFW"})
    drop("unsafe by punsafe", "laioncoco", "unsafe_score", extra={"punsafe": 0.88})
    for source in ("laion2b", "cc12m", "sbu"):
        drop("blocklisted host", source, "blocklisted", url=corpus.web.url(BLOCKED, f"/{source}.jpg"))
    listed = corpus.elsewhere()
    drop("blocklisted URL", "cc3m", "blocklisted", url=listed)
    corpus.blocklist += [f"# hosts and URLs that never enter\n{BLOCKED}", listed]
    for text in captions.DECOYS:
        drop("decoy", "laion2b", "no_keyword", caption=text)
    drop("line without a tab", "cc3m", "bad_row", extra={"line": b"Aerial view of a line that lost its address"})
    drop("line that is no UTF-8", "cc3m", "bad_row", extra={"line": b"Aerial view \xff\xfe\tHTTP"})


def unreachable(corpus: Corpus) -> None:
    """Pages that give no bytes because nothing answers, or not in time, or not well."""

    def drop(case: str, source: str, reason: str, url: str) -> None:
        corpus.drop(case, source, url, "download", reason)

    gone = corpus.web.url(DAMAGED, "/gone.jpg")
    drop("page not found", "laion2b", "http_error", gone)
    drop("the same missing page in another source", "coyo700m", "http_error", gone)
    drop("page gone", "cc3m", "http_error", corpus.serve(b"gone", host=DAMAGED, status=410, content_type="text/plain"))
    drop("nothing listens", "laion2b", "connect", f"http://127.0.0.30:{DEAD_PORT}/a.jpg")
    drop("host name that does not exist", "sbu", "dns", "http://images.does-not-exist.invalid/a.jpg")
    drop("a byte now and then", "laion2b", "timeout", corpus.serve(b"", host=SLOW, pace="slow"))
    drop("body without end", "coyo700m", "too_large", corpus.serve(b"", host=SLOW, pace="endless"))
    drop("https where http is spoken", "cc12m", "tls", corpus.elsewhere().replace("http://", "https://"))


def refused(corpus: Corpus) -> None:
    """Pages that must not be fetched, or not be used."""

    def drop(case: str, source: str, reason: str, url: str) -> None:
        corpus.drop(case, source, url, "download", reason)

    rules = b"User-agent: *\nDisallow: /private/\n"
    corpus.web.add(ROBOTS, "/robots.txt", Page(body=rules, content_type="text/plain"))
    scene, _ = corpus.scene()
    hidden = Page(body=encode(scene))
    drop("disallowed by robots.txt", "laion2b", "robots", corpus.web.add(ROBOTS, "/private/a.jpg", hidden))
    allowed = corpus.picture(host=ROBOTS)
    corpus.add("allowed by the same robots.txt", "laion2b", *allowed, columns={"honoured": "robots.txt: allowed"})
    for source, rule in (("coyo700m", "noai"), ("laion2b", "noimageai")):
        url, _ = corpus.picture(host=OPT_OUT, headers={"X-Robots-Tag": rule})
        drop(f"opts out by X-Robots-Tag: {rule}", source, "opt_out", url)
    drop("not a public address", "cc12m", "blocked_address", "http://10.11.12.13/a.jpg")
    drop("redirect to a metadata service", "laion2b", "blocked_address", _moved(corpus, METADATA_SERVICE))
    circle = corpus.web.url(MOVED, "/circle")
    corpus.web.add(MOVED, "/circle", Page(status=302, headers={"Location": circle}))
    drop("redirects in a circle", "redcaps", "too_many_redirects", circle)
    drop("neither http nor https", "laion400m", "bad_url", "ftp://127.0.0.11/a.jpg")


def _moved(corpus: Corpus, target: str) -> str:
    return corpus.serve(b"", host=MOVED, status=301, headers={"Location": target})


def no_images(corpus: Corpus) -> None:
    """Bytes that arrive and are no usable image."""

    def drop(case: str, source: str, body: bytes, *reasons: str, suffix: str = "jpg") -> None:
        corpus.drop(case, source, corpus.serve(body, suffix, host=DAMAGED), "download", *reasons)

    image, _ = corpus.scene()
    whole = encode(image)
    drop("truncated JPEG", "laion2b", whole[: len(whole) * 2 // 3], "truncated")
    drop("truncated PNG", "wit", encode(image, "png")[:4_000], "truncated", suffix="png")
    drop("HTML served as .jpg", "coyo700m", b"<!doctype html><title>Sign in</title><p>Please sign in.", "not_an_image")
    drop("EPS named .jpg", "laion2b", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "unsupported_format")
    drop("decompression bomb", "laion2b", bomb(50_000), "too_many_pixels", suffix="png")
    drop("empty body", "cc3m", b"", "empty_body")
    drop("text", "laioncoco", b"moved to our new server\n" * 20, "not_an_image")


def bomb(side: int) -> bytes:
    """A valid PNG of a few kB that unpacks to side × side black pixels (1 bit each)."""
    row = bytes(1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def odd_but_good(corpus: Corpus) -> None:
    """Pages and files that need care and end well."""
    for suffix in ("png", "webp", "gif", "bmp", "tif", "avif"):
        corpus.add(f"{suffix} image", "laion2b", *corpus.picture("town", suffix), columns={"http_status": 200})
    url, caption = corpus.picture()
    corpus.add("redirect", "coyo700m", _moved(corpus, url), caption)
    for source, status in (("laion2b", 429), ("cc12m", 503)):
        url, caption = corpus.picture(host=BUSY, first=(status, {"Retry-After": "1"}))
        corpus.add(f"{status} once, then fine", source, url, caption, columns={"http_status": 200, "attempts": 2})
    image, _ = corpus.scene("airport", (320, 240))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = corpus.serve(encode(image, exif=exif))
    corpus.add("turned by EXIF", "redcaps", turned, corpus.words(), columns={"width": 240, "height": 320})
    image, _ = corpus.scene("fields")
    corpus.add("CMYK JPEG", "laion2b", corpus.serve(encode(image.convert("CMYK"))), corpus.words())
    image, _ = corpus.scene("fields")
    corpus.add("palette PNG", "wit", corpus.serve(encode(image.quantize(64), "png"), "png"), corpus.words())


def twins_by_url(corpus: Corpus) -> None:
    """One URL in several rows: fetched once, kept once."""
    for source in ("laion2b", "coyo700m", "cc3m"):
        url, caption = corpus.picture()
        corpus.add("repeated row", source, url, caption)
        corpus.drop("exact repeat", source, url, "download", "duplicate_row", caption=caption)
    for first, second in (
        ("laion2b", "coyo700m"),
        ("laion2b", "laion400m"),
        ("coyo700m", "cc12m"),
        ("cc3m", "laioncoco"),
    ):
        url, caption = corpus.picture()
        words = corpus.words()
        row = corpus.add("URL that is in two sources", first, url, caption, gains=(words,))
        _twin(corpus, "same URL in another source", second, url, "duplicate_url", row, caption=words)
    url, caption = corpus.picture()
    row = corpus.add("URL written in two ways", "laion2b", url, caption)
    other = url.replace("http://", "HTTP://") + "#top"
    _twin(corpus, "same URL, written otherwise", "redcaps", other, "duplicate_url", row)
    url, caption = corpus.picture()
    row = corpus.add("URL with two captions", "laion2b", url, f"{caption}, the longer of two captions")
    _twin(corpus, "same URL, shorter caption", "laion2b", url, "duplicate_url", row, caption=caption)


def _twin(corpus: Corpus, case: str, source: str, url: str, reason: str, row: Row, **more: object) -> None:
    corpus.drop(case, source, url, "dedup", reason, twin=row.key, **more)


def twins_by_bytes(corpus: Corpus) -> None:
    """The same bytes under other URLs."""
    pairs = (
        ("laion2b", "laion400m"),
        ("laion2b", "yfcc15m"),
        ("coyo700m", "laioncoco"),
        ("wit", "cc12m"),
        ("cc3m", "sbu"),
    )
    for first, second in pairs:
        image, _ = corpus.scene()
        words = corpus.words()
        row = corpus.add(
            "bytes that are on two hosts", first, corpus.serve(encode(image)), corpus.words(), gains=(words,)
        )
        copy = corpus.serve(encode(image))
        _twin(corpus, "same bytes on another host", second, copy, "duplicate_bytes", row, caption=words)


def twins_by_sight(corpus: Corpus) -> None:
    """Resized and recompressed copies within the radius, and look-alikes beyond it."""
    pairs = (
        ("laion2b", "coyo700m"),
        ("laion2b", "laioncoco"),
        ("coyo700m", "vg"),
        ("laion400m", "cc3m"),
        ("wit", "redcaps"),
    )
    for first, second in pairs:
        image, _ = corpus.scene()
        row = corpus.add("original of a resized copy", first, corpus.serve(encode(image)), corpus.words())
        _twin(corpus, "resized copy", second, corpus.serve(resized(image)), "duplicate_image", row)
    for source, suffix in (("laion2b", "webp"), ("coyo700m", "png"), ("cc12m", "jpg")):
        image, _ = corpus.scene()
        row = corpus.add("original of a recompressed copy", "laion2b", corpus.serve(encode(image)), corpus.words())
        copy = corpus.serve(recompressed(image, suffix), suffix)
        _twin(corpus, "recompressed copy", source, copy, "duplicate_image", row, caption="Satellite image")
    image, _ = corpus.scene()
    small = corpus.serve(resized(image))
    row = corpus.add("larger of two sizes", "cc12m", corpus.serve(encode(image)), corpus.words())
    _twin(corpus, "smaller of two sizes", "cc12m", small, "duplicate_image", row)
    image, _ = corpus.scene("fields", (420, 320))
    corpus.add("scene", "laion2b", corpus.serve(encode(image)), corpus.words())
    corpus.add("look-alike beyond the radius", "coyo700m", corpus.serve(encode(cut(image))), corpus.words())


def distance(one: bytes, other: bytes) -> int:
    """Bits in which the perceptual hashes of two encoded images differ."""
    first, second = (imagehash.phash(Image.open(io.BytesIO(data)).convert("RGB")) for data in (one, other))
    return int(first - second)


def resized(image: Image.Image) -> bytes:
    """The smallest of some sizes that stays within the radius of the original as served."""
    original = encode(image)
    for share in (0.6, 0.7, 0.8, 0.9, 0.95):
        size = (int(image.width * share), int(image.height * share))
        copy = encode(image.resize(size, Image.Resampling.LANCZOS), quality=82)
        if distance(original, copy) <= RADIUS:
            return copy
    raise ValueError("no size of this scene stays within the radius")


def recompressed(image: Image.Image, suffix: str) -> bytes:
    """The harshest of some compressions that stays within the radius of the original as served."""
    original = encode(image)
    for quality in (50, 65, 75, 92):
        copy = encode(image, suffix, quality=quality) if suffix != "png" else encode(image, "png")
        if distance(original, copy) <= RADIUS:
            return copy
    raise ValueError("no compression of this scene stays within the radius")


def cut(image: Image.Image) -> Image.Image:
    """A crop of the same scene that lies beyond the radius."""
    for share in (0.04, 0.08, 0.12, 0.2):
        left, top = int(image.width * share), int(image.height * share)
        piece = image.crop((left, top, image.width, image.height))
        if distance(encode(image), encode(piece)) > 2 * RADIUS:
            return piece
    raise ValueError("every crop of this scene stays within the radius")


def odd_captions(corpus: Corpus) -> None:
    """Captions that must arrive as they are, or be chosen among several."""
    texts = {
        "caption with markup": '<script>alert("aerial view")</script>',
        "caption in Arabic": "صورة جوية للمدينة، aerial photo of the old town",
        "caption with line breaks": "Satellite image\nof the delta,\tafter the flood\r\n",
        "caption with no-break spaces": "Aerial\u00a0view of the harbour",
        "caption of 20 kB": "Aerial view. " + "All rights reserved by the owner of these words. " * 400,
        "keyword in capitals": "NAIP QUARTER QUAD, COUNTY MOSAIC",
        "keyword with hyphens": "Mosaic of sentinel\u20112 tiles",
    }
    for case, text in texts.items():
        url, _ = corpus.picture()
        corpus.add(case, "laion2b", url, text)

    def several(case: str, source: str, caption: str, *others: str | None, **more: object) -> None:
        url, _ = corpus.picture()
        corpus.add(case, source, url, caption, texts=others, **more)

    text = "satellite image of a small island"
    several("generated caption that hits", "laioncoco", text, "IMG_2041", text, "a picture of some land")
    text = "an aerial photo of a parking lot"
    several("second generated caption that hits", "laioncoco", text, "DSC 11", "some cars", "cars in rows", text)
    text = "English: Aerial view of the castle"
    several("WIT attribution when there is no reference", "wit", text, None, text, "castle")
    text = "aerial view of the dam"
    several("WIT alt text when there is nothing else", "wit", text, None, None, text)
    text = "100% of the coast & its bays, seen in an aerial photo"
    several("YFCC description, percent-encoded", "yfcc15m", text, "Holiday, day 3", text)
    text = "aerial view of roofs"
    several("third region phrase", "vg", text, "grey roof", "a road", text)


def placeholders(corpus: Corpus) -> None:
    """A host that sends one picture in place of all it has lost; and a picture that is used just not so often."""
    image = Image.new("RGB", (320, 240), (226, 226, 226))
    pen = ImageDraw.Draw(image)
    pen.rectangle((90, 60, 230, 150), outline=(150, 150, 150), width=6)
    pen.line((90, 60, 230, 150), fill=(150, 150, 150), width=6)
    pen.text((110, 180), "This image is gone", fill=(90, 90, 90))
    body = encode(image, "png")
    for number in range(PLACEHOLDER_URLS):
        source = ("laion2b", "coyo700m", "cc12m")[number % 3]
        url = corpus.serve(body, "png", host=LOST)
        words = f"{corpus.words()}, lost picture {number}"
        corpus.drop("image that stands for a lost one", source, url, "download", "placeholder", caption=words)
    image, _ = corpus.scene()
    body = encode(image)
    row = corpus.add("picture used often", "laion2b", corpus.serve(body, host=LOST), corpus.words())
    for number in range(PLACEHOLDER_URLS - 2):
        url = corpus.serve(body, host=LOST)
        _twin(
            corpus,
            "the same picture again",
            "cc3m",
            url,
            "duplicate_bytes",
            row,
            caption=f"Aerial view, again {number}",
        )
