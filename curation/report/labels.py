"""Words of the report: what reasons mean, how numbers and bins are written, what is safe to show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

REASONS = {
    "bad_row": "could not be read as a row",
    "no_url": "has no URL",
    "no_caption": "has no caption",
    "language": "is in another language",
    "filtered": "failed the source's filter",
    "unsafe_score": "unsafe by the source's own scores",
    "blocklisted": "on a blocklist",
    "no_keyword": "caption names no remote-sensing term",
    "excluded": "caption holds an excluded term",
    "dns": "host name not found",
    "connect": "no connection",
    "timeout": "took too long",
    "http_error": "server answered with an error",
    "host_down": "host gave up on",
    "tls": "no valid certificate",
    "bad_url": "not a usable URL",
    "blocked_address": "address is not public",
    "too_large": "more bytes than allowed",
    "too_many_redirects": "redirected too often",
    "robots": "refused by robots.txt",
    "opt_out": "site opts out of AI use",
    "empty_body": "no bytes",
    "not_an_image": "bytes are no image",
    "unsupported_format": "image format not accepted",
    "truncated": "image ends too early",
    "corrupt": "image is damaged",
    "too_many_pixels": "more pixels than allowed",
    "decoder_crash": "crashed the decoder",
    "placeholder": "stand-in for a missing image",
    "duplicate_row": "exact repeat of a row",
    "duplicate_url": "same URL as a kept sample",
    "duplicate_bytes": "same bytes as a kept sample",
    "duplicate_image": "looks like a kept sample",
    "test_set_image": "shows or says what a test set does",
    "low_vlm_score": "low remote-sensing prompt score",
    "low_detector_score": "low remote-sensing detector score",
    "low_similarity": "caption does not fit the image",
    "unscorable": "could not be scored",
    "bad_metadata": "metadata is missing or cannot be true",
    "official_test": "belongs to an official test split",
    "snow": "covered by snow",
    "cloud": "covered by cloud",
    "nodata": "too much of the tile has no data",
    "no_caption_left": "no caption passed",
}
"""What each reason says of a row."""

SCORES = {
    "vlm_score": "Remote-sensing prompt score",
    "detector_logit": "Remote-sensing detector score, log-odds",
    "caption_similarity": "Caption–image similarity",
}

LONGEST_LINK = 2_000
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb]+")


def clean(value: Any) -> Any:
    """A plain string without control characters and marks that turn or hide writing; other values as they are."""
    return _UNSEEN.sub(" ", value) if type(value) is str else value


def weblink(url: str | None) -> str | None:
    """The URL if it is http(s) and of a length that browsers follow, else None: nothing else is ever linked."""
    try:
        parts = urlsplit(url or "")
    except ValueError:
        return None
    usable = parts.scheme.lower() in ("http", "https") and parts.netloc and len(url or "") <= LONGEST_LINK
    return url if usable else None


def number(value: float | None) -> str:
    """1,234,567; a dash for what is not known."""
    return "–" if value is None else f"{value:,}"


def size(value: float) -> str:
    """Bytes in a unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def share(part: float, whole: float | None) -> str:
    """A percentage with one decimal."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def bins(lower: Sequence[float], *, closed: bool) -> list[str]:
    """Names of bins given by their lower ends; `closed` ones say their last value, others the next one's first."""
    names = []
    for start, stop in zip(lower, [*lower[1:], None], strict=True):
        if stop is None:
            names.append(f"{start:g}+")
        elif closed:
            names.append(f"{start:g}" if stop == start + 1 else f"{start:g}–{stop - 1:g}")
        else:
            names.append(f"{start:g}–{stop:g}")
    return names


def markdown(value: Any) -> str:
    """Text for a cell of a Markdown table: nothing in it is markup."""
    return re.sub(r"([\\|<>`*_\[\]#&])", r"\\\1", str(clean(str(value))))
