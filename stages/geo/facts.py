"""What follows from a place and a date: the derived columns of `ingest`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from stages.geo.countries import OFFSHORE, country_at
from stages.geo.ground import is_on_earth, utm_zone
from stages.geo.places import nearest_place
from stages.geo.seasons import season

PLACE_KM = 25.0
"""How far the nearest place may be, unless the recipe says otherwise."""


def derived(
    latitude: float | None, longitude: float | None, acquired_at: datetime | None, place_km: float = PLACE_KM
) -> dict[str, Any]:
    """`country, country_code, place, place_km, utm_zone, season, month, year`, as far as they are known.

    `country` is `offshore` beyond `countries.COAST_KM` of any coast; a place is of that same country.
    """
    found: dict[str, Any] = {}
    if acquired_at is not None:
        found |= {"year": acquired_at.year, "month": acquired_at.month}
    if latitude is None or longitude is None or not is_on_earth(latitude, longitude):
        return found
    found["utm_zone"] = utm_zone(latitude, longitude)
    if acquired_at is not None:
        found["season"] = season(acquired_at.month, latitude)
    country = country_at(latitude, longitude)
    if country is None:
        return found | {"country": OFFSHORE}
    found |= {"country": country.name, "country_code": country.alpha3 or None}
    place = nearest_place(latitude, longitude, place_km, country.alpha2)
    return found if place is None else found | {"place": place.name, "place_km": place.km}
