"""What a record says about its image, in words that templates can use. What is not known has no slot.

Cloud cover, view angles and the like belong to a whole acquisition, not to the image: they have one slot, which says
so, and no template uses it unless the recipe names a set that does. Seasons are the record's, which knows the
hemisphere.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
ORIENTED = frozenset({"position"})
"""Slots that turning or mirroring the image would falsify."""
_SIDE = r"(?:top|upper|bottom|lower|left|right|northern|southern|eastern|western)"
_COMPASS = r"(?:north|south)?[- ]?(?:east|west)|north|south"
_DIRECTION = re.compile(
    rf"\b{_SIDE}[- ](?:hand|left|right|middle|cent(?:er|re)|half|third|quarter|side|corner|part|portion|edge|end)s?\b"
    r"|\b(?:on|at|to|in|from|towards?|along) the (?:far |very )?(?:left|right|top|bottom)\b"
    r"(?! of (?:an?|the) (?!image|picture|photo|frame|scene|view))"
    r"|\b(?:from|to) (?:left|right|top|bottom)\b|\b(?:left|right) (?:of|and right|to right|to left)\b"
    rf"|\b(?:{_COMPASS})(?:ern)?[- ](?:of|side|part|half|corner|end|edge|bank|shore)\b"
    rf"|\b(?:to|in|from|towards?) the (?:{_COMPASS})\b"
    rf"|\b(?:facing|pointing|heading|runs?|running|flows?|flowing|leads?|leading) (?:to )?(?:the )?(?:{_COMPASS})\b"
)
"""Where in the picture something lies, or which way it goes."""
CELLS = (
    *("upper left", "upper middle", "upper right"),
    *("middle left", "centre", "middle right"),
    *("lower left", "lower middle", "lower right"),
)
"""Row by row: the ninths of the image."""
_NO_ARTICLE = (
    "land",
    "water",
    "forest",
    "vegetation",
    "fabric",
    "farmland",
    "desert",
    "sea",
    "ocean",
    "grassland",
    "rock",
)
"""Last words of class names that are no countable thing, beside plurals."""
_THE = (
    *("United ", "Netherlands", "Philippines", "Bahamas", "Maldives", "Gambia", "Comoros", "Seychelles"),
    *("Democratic Republic of ", "Republic of ", "Russian Federation"),
)
"""Beginnings of country names that want an article."""
_SINGULAR_S = ("ss", "us", "is")


def is_oriented(text: str) -> bool:
    """Whether a text tells a place or a direction in the picture that turning or mirroring it would falsify."""
    return _DIRECTION.search(text.lower()) is not None


def slots(row: Mapping[str, Any]) -> dict[str, str]:
    """The slots of `manifests/templates/*.yaml` that the row's record fills.

    Args:
        row: columns of `schema.INGEST`, those that are there, as `to_pylist` gives them.
    """
    found = {
        **_classes(row.get("labels")),
        "country": _country(row),
        "place": row.get("place"),
        "utm_zone": row.get("utm_zone"),
        "platform": row.get("platform") or row.get("sensor"),
        **_times(row),
        **_sizes(row),
        "position": position(row),
        "acquisition": _acquisition(row.get("acquisition") or {}),
    }
    given = {name: str(value) for name, value in found.items() if value}
    return given | {name.capitalize(): value[0].upper() + value[1:] for name, value in given.items()}


def _country(row: Mapping[str, Any]) -> str | None:
    """The country as a sentence has it; nothing offshore."""
    country = row.get("country")
    if not country or country == "offshore":
        return None
    return f"the {country}" if country.startswith(_THE) or country.endswith(("Islands", "Republic")) else country


def _classes(labels: Sequence[str] | None) -> dict[str, str | None]:
    """One class has `label` and `a_label`; any number has `labels`."""
    names = [_readable(label) for label in labels or [] if label and label.strip()]
    if not names:
        return {}
    one = {"label": names[0], "a_label": with_article(names[0])} if len(names) == 1 else {}
    return {**one, "labels": listed(names)}


def _readable(label: str) -> str:
    """`place_of_worship` to "place of worship"; capitals are kept where they are more than a beginning."""
    text = " ".join(label.replace("_", " ").split())
    first = text.split(" ", 1)[0]
    return text if first.isupper() and len(first) > 1 else text[0].lower() + text[1:]


def with_article(name: str) -> str:
    """`a` or `an` before a countable thing; plurals, lists and masses stay as they are."""
    head = name.split(" of ")[0].split(" or ")[0].split(",")[0].split()[-1].lower()
    is_plural = head.endswith("s") and not head.endswith(_SINGULAR_S)
    if is_plural or head.endswith(_NO_ARTICLE) or " and " in name or name.startswith("no "):
        return name
    vowel = name[0].lower() in "aeio" or name.lower().startswith(("under", "up"))
    return f"{'an' if vowel else 'a'} {name}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`; `a; b, c; d` where a name has a comma of its own."""
    if len(names) > 1 and any("," in name for name in names):
        return "; ".join(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _times(row: Mapping[str, Any]) -> dict[str, str | None]:
    month, year, moment = row.get("month"), row.get("year"), row.get("acquired_at")
    found = {
        "season": row.get("season"),
        "month": MONTHS[month - 1] if month else None,
        "year": str(year) if year else None,
    }
    if not isinstance(moment, dt.datetime):
        return found
    found["date"] = _date(moment)
    if (moment.hour, moment.minute, moment.second) == (0, 0, 0):
        return found  # a date without a time
    found["utc"] = f"{moment:%H:%M} UTC"
    if row.get("longitude") is not None:
        solar = _solar(moment, row["longitude"])
        found["local"] = f"{solar.hour}:{solar:%M}"
        found["local_date"] = _date(solar)
        if solar.date() != moment.date():
            found["date"] = f"{_date(moment)} (UTC)"  # a morning in New Zealand is the evening before
    return found


def _date(moment: dt.datetime) -> str:
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}"


def _solar(moment: dt.datetime, longitude: float) -> dt.datetime:
    """Mean solar time to half an hour, which the equation of time (16 minutes at most) allows."""
    solar = moment + dt.timedelta(hours=longitude / 15)
    midnight = solar.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + dt.timedelta(minutes=30 * round((solar - midnight) / dt.timedelta(minutes=30)))


def _sizes(row: Mapping[str, Any]) -> dict[str, str | None]:
    """The sensor's nominal resolution; the image's own spacing and extent on the ground."""
    across, down = row.get("pixel_x_m"), row.get("pixel_y_m")
    found = {"gsd": _number(row["gsd_m"]) if row.get("gsd_m") else None}
    if not across or not down:
        return found
    square = abs(across - down) <= 0.05 * max(across, down)
    found["spacing"] = f"{_number(across)} m" if square else f"{_number(across)} m by {_number(down)} m"
    if row.get("width") and row.get("height"):
        found["extent"] = f"{_length(row['width'] * across)} by {_length(row['height'] * down)}"
    return found


def _acquisition(stated: Mapping[str, Any]) -> str | None:
    """The sensor's whole pass in words, but for what turning the image would falsify (azimuths, scan direction)."""
    clouds, angle, sun = (stated.get(name) for name in ("cloud_cover", "off_nadir", "sun_elevation"))
    told = [
        f"{clouds:.0f} % of cloud cover" if clouds is not None else None,
        f"an off-nadir angle of {angle:.0f}°" if angle is not None else None,
        f"the sun {sun:.0f}° high" if sun is not None and sun > 0 else None,
    ]
    known = [text for text in told if text]
    return f"an acquisition with {listed(known)}" if known else None


def _number(metres: float) -> str:
    return f"{metres:.2g}" if metres < 1 else f"{metres:.3g}"


def _length(metres: float) -> str:
    """Two digits of a length, in m or km."""
    return f"{float(f'{metres / 1000:.2g}'):g} km" if metres >= 1000 else f"{float(f'{metres:.2g}'):g} m"


def position(row: Mapping[str, Any]) -> str | None:
    """The ninths of the image that its one annotated object fills by half; the one that holds most of it if none."""
    objects, width, height = row.get("objects") or [], row.get("width"), row.get("height")
    if len(objects) != 1 or not width or not height:
        return None
    shares = [_overlap(objects[0], cell, width / 3, height / 3) for cell in range(9)]
    if max(shares) <= 0:
        return None
    filled = [CELLS[cell] for cell in range(9) if shares[cell] >= 0.5] or [CELLS[shares.index(max(shares))]]
    return listed(filled) if len(filled) <= 3 else None


def _overlap(box: Mapping[str, float], cell: int, width: float, height: float) -> float:
    """The share of a cell that the box covers."""
    left, top = cell % 3 * width, cell // 3 * height
    across = min(left + width, box["x"] + box["width"]) - max(left, box["x"])
    down = min(top + height, box["y"] + box["height"]) - max(top, box["y"])
    return max(across, 0.0) * max(down, 0.0) / (width * height)
