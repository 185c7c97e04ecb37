"""The gate: a generated caption may say only what the image's record confirms, and what an overhead image can show.

BLIP2 learnt captions of the web, so it adds countries, dates, photographers and map services that it cannot see. The
word lists are data (`manifests/gate/*.yaml`); what is done with them stands here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unicodedata import combining, normalize

import yaml

from stages.errors import UserError
from stages.geo.places import city_names
from stages.vision import shipped_or_path

REASONS = (
    "empty",
    "echo",
    "loop",
    "unsupported_source",
    "unsupported_place",
    "unsupported_date",
    "unsupported_person",
    "unsupported_resolution",
    "contradicts_viewpoint",
    "contradicts_label",
    "repeated",
    "outranked",
)
"""Why a candidate is not the pick; the first that applies. `repeated` and `outranked` are not the gate's."""

MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
SEASONS = {"spring": "spring", "summer": "summer", "autumn": "autumn", "fall": "autumn", "winter": "winter"}
KEYS = (
    *("countries", "continents", "places", "place_exceptions", "city_inhabitants", "city_words"),
    *("providers", "people", "viewpoint", "contradictions"),
)
CITY_WORDS = 4
"""Words of a city's name, at most."""
CITY_LETTERS = 4
"""Letters of it, at least: "Man" and "Ho" are cities, too."""
_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_YEAR = re.compile(r"\b(1[89]\d\d|20\d\d)(?:s|'s)?\b(?!\s*(?:m|meters?|metres?|km|feet|ft)\b)")
_MONTH = re.compile(rf"\b({'|'.join(month for month in MONTHS if month not in ('march', 'may'))})\b")
_MONTH_DATED = re.compile(r"\b(?:in|of|on|during|since|early|late)\s+(march|may)\b(?!\s+be)|\b(march|may)\s+\d")
_SEASON = re.compile(r"\b(summer|autumn|winter)(?:s|time)?\b")
_SEASON_DATED = re.compile(r"\b(?:in|during|of|early|late)\s+(?:the\s+)?(spring|fall)(?:time)?\b(?!s)")
_OTHER_DATE = re.compile(r"\b(?:\d+(?:st|nd|rd|th)\s+century|(?:mon|tues|wednes|thurs|fri|satur|sun)day)\b")
_BY = re.compile(
    r"\b(?:photo\w*|picture|image|taken|shot|captured|created|designed|painted|posted|uploaded|drawn)\s+by\s+"
    r"(?!an?\b|the\b|satellites?\b|drones?\b|planes?\b|aircraft\b|helicopters?\b|uavs?\b|cameras?\b|radar\b)\w"
    r"|\b(?:courtesy|copyright|photo credit|credits?:)|©|\b(?:mr|mrs|ms|dr)\.?\s+[a-z]{3}"
    r"|\b(?:president|senator|queen|princess?)\s+[a-z]{3}"
)
_LENGTH = (
    r"(\d+(?:[.,]\d+)?)\s*-?\s*(m|meters?|metres?|cm|centimeters?|centimetres?|km|kilometers?|kilometres?|ft|feet)\b"
)
_RESOLUTION = re.compile(
    rf"\b{_LENGTH}(?=\W+(?:\w+\W+){{0,2}}?(?:resolution|pixel|gsd))|(?:resolution|gsd)\W+(?:of\W+|is\W+)?{_LENGTH}"
)
_PICTURE_SIZE = re.compile(r"\b(?:[248]k|1080p|720p|4k uhd|\d+\s*(?:megapixels?|mp|dpi))\b")
_COORDINATES = re.compile(
    r"\d\s*°|\b\d+(?:\.\d+)?\s*degrees?\s*(?:north|south|east|west)\b|\b(?:lat|lon|latitude|longitude)\b"
)
_NAMED = re.compile(
    r"\b(?:in|near|at|over|outside|around|from|of|called|named)\s+(?:the\s+)?((?:[A-Z][\w'’-]+)(?:\s+[A-Z][\w'’-]+)*)"
)
_TOWN = re.compile(
    r"\b(?:city|county|district|municipality|province|state|town|village) of (?!(?:an?|the|its|this|that|many|some|"
    r"several|different|large|small|tall|old|white|red|green|gr[ae]y|brown|houses|homes|buildings|skyscrapers|trees|huts|cottages)\b)"
    r"((?:[^\W\d]|[-'])+)"
)
_NO_NAMES = frozenset({"RGB", "SAR", "UAV", "DEM", "NIR", "I", "T", "U", "L", "X", "Y"})
METRES = {"c": 0.01, "k": 1000.0, "f": 0.3048, "m": 1.0}


@dataclass(frozen=True)
class Gate:
    """Word lists, ready to be asked about texts."""

    lists: Mapping[str, Any]

    @cached_property
    def _countries(self) -> dict[str, str]:
        """Every name and adjective, to the country it means."""
        found: dict[str, str] = {}
        for country, (_, *others) in self.lists["countries"].items():
            found |= dict.fromkeys([country.lower(), *others], country)
        return found

    @cached_property
    def _continents(self) -> dict[str, str]:
        names = self.lists["continents"].items()
        return {name: continent for continent, others in names for name in [continent.lower(), *others]}

    @cached_property
    def _geography(self) -> re.Pattern[str]:
        return _any_of([*self._countries, *self._continents, *_listed(self.lists["places"])])

    @cached_property
    def _exceptions(self) -> re.Pattern[str]:
        return _any_of(_listed(self.lists["place_exceptions"]))

    @cached_property
    def _cities(self) -> frozenset[str]:
        """Names of large cities, but for those that are everyday words."""
        least: int = self.lists["city_inhabitants"]
        names = {" ".join(_words(name)) for name in city_names(least)} if least else set()
        return frozenset(name for name in names if len(name) >= CITY_LETTERS) - set(_listed(self.lists["city_words"]))

    @cached_property
    def _sources(self) -> re.Pattern[str]:
        return _any_of([name for entry in self.lists["providers"] for name in [*entry["makers"], *entry["craft"]]])

    @cached_property
    def _people(self) -> re.Pattern[str]:
        return _any_of(self.lists["people"])

    @cached_property
    def _viewpoint(self) -> re.Pattern[str]:
        return _any_of(_listed(self.lists["viewpoint"]))

    @cached_property
    def _contradictions(self) -> list[tuple[frozenset[str], re.Pattern[str]]]:
        entries = self.lists["contradictions"]
        return [(frozenset(map(plain, entry["labels"])), _any_of(entry["terms"])) for entry in entries]

    def reason(self, text: str, row: Mapping[str, Any], prompt: str | None = None) -> str | None:
        """Why a caption of the row's image cannot stand (`REASONS`); None when it can.

        Args:
            text: the caption.
            row: the record: columns of `schema.INGEST`, those that are there.
            prompt: what the model was asked with.
        """
        lower = " ".join(text.lower().replace("’", "'").replace("close - up", "close-up").split())
        words = _WORD.findall(lower)
        if sum(any(letter.isalpha() for letter in word) for word in words) < 2:
            return "empty"
        if prompt and lower.strip(" .:?") == " ".join(prompt.lower().split()).strip(" .:?"):
            return "echo"
        if loops(words):
            return "loop"
        checks = {
            "unsupported_source": self._names_source,
            "unsupported_place": self._names_place,
            "unsupported_date": _names_date,
            "unsupported_person": self._names_person,
            "unsupported_resolution": _names_resolution,
            "contradicts_label": self._contradicts,
        }
        found = {name for name, check in checks.items() if check(lower, row)}
        if _names_something(text, row):
            found.add("unsupported_place")
        if self._viewpoint.search(lower):
            found.add("contradicts_viewpoint")
        return next((name for name in REASONS if name in found), None)

    def _names_source(self, text: str, row: Mapping[str, Any]) -> bool:
        known = _record(row, "sensor", "platform")
        return any(not self._is_source(name, known) for name in self._sources.findall(text))

    def _is_source(self, name: str, known: str) -> bool:
        if name in known:
            return True
        makers = [entry["craft"] for entry in self.lists["providers"] if name in entry["makers"]]
        return any(craft in known for crafts in makers for craft in crafts)

    def _names_place(self, text: str, row: Mapping[str, Any]) -> bool:
        if _COORDINATES.search(text):
            return True
        known = _record(row, "place", "country")
        if any(name not in _WORD.findall(known) for name in _TOWN.findall(text)):
            return True
        here = self._countries.get(str(row.get("country") or "").lower())
        text = self._exceptions.sub("", text)
        named = [*self._geography.findall(text), *self._named_cities(text)]
        return any(not self._is_here(name, _joined(known), here) for name in named)

    def _named_cities(self, text: str) -> Iterator[str]:
        words = _words(text)
        pieces = (" ".join(words[n : n + size]) for size in range(1, CITY_WORDS + 1) for n in range(len(words)))
        return (piece for piece in pieces if piece in self._cities)

    def _is_here(self, name: str, known: str, here: str | None) -> bool:
        if _joined(name) in known:
            return True
        if here is None:
            return False
        return self._countries.get(name) == here or self._continents.get(name) == self.lists["countries"][here][0]

    def _names_person(self, text: str, row: Mapping[str, Any]) -> bool:
        return bool(_BY.search(text) or self._people.search(text))

    def _contradicts(self, text: str, row: Mapping[str, Any]) -> bool:
        labels = {plain(label) for label in row.get("labels") or []}
        return bool(labels) and any(labels <= those and terms.search(text) for those, terms in self._contradictions)


def load_gate(name: str, where: str) -> Gate:
    """The gate of a shipped list or a YAML file.

    Raises:
        UserError: it cannot be read, or lacks a list.
    """
    path: Path = shipped_or_path("gate", name)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{where}: {name!r} cannot be read ({error})") from error
    lacking = [key for key in KEYS if not isinstance(found, dict) or key not in found]
    if lacking:
        raise UserError(f"{where}: {path} has no {lacking[0]!r}; a gate has: {', '.join(KEYS)}")
    return Gate(found)


def loops(words: Sequence[str]) -> bool:
    """Whether a text goes round: one to four words three times in a row, or few different words in many."""
    for size in range(1, 5):
        for start in range(len(words) - 3 * size + 1):
            piece = words[start : start + size]
            if piece == words[start + size : start + 2 * size] == words[start + 2 * size : start + 3 * size]:
                return True
    return len(words) >= 10 and len(set(words)) < 0.45 * len(words)


def _words(text: str) -> list[str]:
    """The words of a text in lower case, without accents."""
    bare = "".join(letter for letter in normalize("NFKD", text.lower()) if not combining(letter))
    return _WORD.findall(bare)


def _joined(text: str) -> str:
    """Words that can be found whole in those of another text."""
    return f" {' '.join(_words(text))} "


def plain(label: str) -> str:
    """A label as the lists have it."""
    return " ".join(label.lower().replace("_", " ").split())


def _names_date(text: str, row: Mapping[str, Any]) -> bool:
    if any(int(year) != row.get("year") for year in _YEAR.findall(text)) or _OTHER_DATE.search(text):
        return True
    months = _MONTH.findall(text) + [first or second for first, second in _MONTH_DATED.findall(text)]
    if any(MONTHS.index(month) + 1 != row.get("month") for month in months):
        return True
    seasons = [*_SEASON.findall(text), *_SEASON_DATED.findall(text)]
    return any(SEASONS[season] != row.get("season") for season in seasons)


def _names_resolution(text: str, row: Mapping[str, Any]) -> bool:
    """Whether it names a resolution that is not within a tenth of the sensor's or the chip's."""
    if _PICTURE_SIZE.search(text):
        return True
    known = [row[name] for name in ("gsd_m", "pixel_x_m", "pixel_y_m") if row.get(name)]
    for number, unit, other_number, other_unit in _RESOLUTION.findall(text):
        metres = float((number or other_number).replace(",", ".")) * METRES[(unit or other_unit)[0]]
        if not any(abs(metres - value) <= 0.1 * value for value in known):
            return True
    return False


def _names_something(text: str, row: Mapping[str, Any]) -> bool:
    """Whether a place with a capital letter is named that the record does not have; title case says nothing."""
    words = [word for word in text.split() if word[0].isalpha()]
    if sum(word[0].isupper() for word in words) > len(words) / 2:
        return False
    known = set(_WORD.findall(_record(row, "place", "country", "sensor", "platform", "labels")))
    names = [word for name in _NAMED.findall(text) for word in name.split() if word not in _NO_NAMES]
    return any(word.lower() not in known for word in names)


def _record(row: Mapping[str, Any], *names: str) -> str:
    """What the record says in these columns, in lower case."""
    values = [row.get(name) or "" for name in names]
    return " ".join(" ".join(value) if isinstance(value, list) else str(value) for value in values).lower()


def _listed(text: str) -> list[str]:
    return [" ".join(entry.split()) for entry in text.split(",") if entry.strip()]


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Any of the names as whole words, the longest first."""
    ordered = sorted(set(names), key=lambda name: (-len(name), name))
    return re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, ordered))})(?![\w])") if ordered else re.compile(r"(?!)")
