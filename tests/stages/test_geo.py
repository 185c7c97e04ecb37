"""Facts of known places, checked against an atlas by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from stages.geo.countries import countries, country_at, country_distance_km, is_country_code
from stages.geo.facts import derived
from stages.geo.ground import chord_m, distance_km, utm_zone
from stages.geo.places import nearest_place
from stages.geo.seasons import season

KLOTEN = (47.4490, 8.5831)


@pytest.mark.parametrize(
    ("latitude", "longitude", "zone"),
    [
        (47.449, 8.583, "32T"),
        (-33.87, 151.21, "56H"),
        (60.39, 5.32, "32V"),  # Bergen lies in a zone widened for it
        (78.22, 15.65, "33X"),
        (0.0, -78.5, "17N"),
        (-0.1, -78.5, "17M"),
        (83.9, 180.0, "1X"),
        (-80.0, -180.0, "1C"),
        (88.0, 10.0, None),
    ],
)
def test_utm_zones_with_their_exceptions(latitude: float, longitude: float, zone: str | None) -> None:
    assert utm_zone(latitude, longitude) == zone


@pytest.mark.parametrize(
    ("month", "latitude", "name"),
    [
        (12, 50.0, "winter"),
        (2, 50.0, "winter"),
        (3, 50.0, "spring"),
        (8, 50.0, "summer"),
        (11, 50.0, "autumn"),
        (1, -34.0, "summer"),
        (4, -34.0, "autumn"),
        (7, -34.0, "winter"),
        (10, -34.0, "spring"),
    ],
)
def test_seasons_turn_around_south_of_the_equator(month: int, latitude: float, name: str) -> None:
    assert season(month, latitude) == name


@pytest.mark.parametrize(
    ("latitude", "longitude", "code"),
    [
        (*KLOTEN, "CHE"),
        (-25.34, 131.03, "AUS"),
        (42.87, 74.59, "KGZ"),
        (47.14, 9.52, "LIE"),
        (43.2965, 5.3500, "FRA"),  # a quay in Marseille
    ],
)
def test_countries(latitude: float, longitude: float, code: str) -> None:
    found = country_at(latitude, longitude)
    assert found is not None
    assert found.alpha3 == code


def test_the_open_sea_is_no_country_and_says_so() -> None:
    assert country_at(0.0, -30.0) is None
    assert derived(0.0, -30.0, None) == {"utm_zone": "26N", "country": "offshore"}


def test_names_of_countries_are_not_abbreviated() -> None:
    names = {country.name for country in countries()}
    assert {"Bosnia and Herzegovina", "South Sudan", "Serbia", "China", "United States of America"} <= names
    assert not [name for name in names if "." in name]


def test_distance_to_a_country_and_codes() -> None:
    to_germany = country_distance_km("DEU", *KLOTEN)
    assert to_germany is not None
    assert 10 < to_germany < 20
    assert country_distance_km("GUF", *KLOTEN) is None, "has no boundaries of its own"
    assert is_country_code("GUF")
    assert not is_country_code("ZZZ")


def test_nearest_place_keeps_to_its_limit_and_country() -> None:
    kloten = nearest_place(*KLOTEN, limit_km=25)
    assert kloten is not None
    assert (kloten.name, kloten.alpha2) == ("Kloten", "CH")
    assert kloten.km < 1
    assert nearest_place(23.0, 12.0, limit_km=25) is None, "nobody lives there"
    konstanz_side = nearest_place(47.66, 9.16, limit_km=25, alpha2="CH")
    assert konstanz_side is not None
    assert konstanz_side.alpha2 == "CH"


def test_distances_on_the_ground() -> None:
    assert 100 * chord_m(0.0, 0.0, 0.0, 0.01) == pytest.approx(111_319.5, abs=1)
    assert 100 * chord_m(0.0, 7.0, 0.01, 7.0) == pytest.approx(110_574.3, abs=1)
    assert 100 * chord_m(60.0, 179.995, 60.0, -179.995) == pytest.approx(55_800, abs=1)
    assert distance_km(0.0, 179.5, 0.0, -179.5) == pytest.approx(111.2, abs=0.1)


def test_derived_facts_of_a_winter_day_in_the_south() -> None:
    found = derived(-41.29, 174.78, datetime(2019, 7, 1, tzinfo=UTC))
    assert found["country"] == "New Zealand"
    assert found["season"] == "winter"
    assert (found["utm_zone"], found["month"], found["year"]) == ("60G", 7, 2019)
    assert found["place_km"] < 5
