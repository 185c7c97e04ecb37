"""Distances on the ground: degrees in metres, kilometres between points, UTM zones."""

from __future__ import annotations

import math

EARTH_KM = 6371.0088
"""Mean radius."""
_BANDS = "CDEFGHJKLMNPQRSTUVWX"
_SVALBARD = ((0.0, 9.0, 31), (9.0, 21.0, 33), (21.0, 33.0, 35), (33.0, 42.0, 37))
"""West and east of each zone that is wider than six degrees in band X."""


def chord_m(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Straight distance between points of the WGS 84 ellipsoid, in metres: that on the ground, if they are near."""
    return math.dist(_in_space(latitude, longitude), _in_space(other_latitude, other_longitude))


def _in_space(latitude: float, longitude: float) -> tuple[float, float, float]:
    """Metres from the Earth's centre: towards 0° E, towards 90° E, and north."""
    a, e2 = 6378137.0, 0.00669437999014
    lat, lon = math.radians(latitude), math.radians(longitude)
    n = a / math.sqrt(1 - e2 * math.sin(lat) ** 2)
    out = n * math.cos(lat)
    return out * math.cos(lon), out * math.sin(lon), n * (1 - e2) * math.sin(lat)


def distance_km(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Great-circle distance between two points, in kilometres."""
    one, two = math.radians(latitude), math.radians(other_latitude)
    half = math.sin((two - one) / 2) ** 2
    half += math.cos(one) * math.cos(two) * math.sin(math.radians(other_longitude - longitude) / 2) ** 2
    return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, half)))


def utm_zones() -> tuple[str, ...]:
    """Every zone with its latitude band, from west to east in each band, southernmost first."""
    missing = {"32X", "34X", "36X"}
    names = (f"{number}{band}" for band in _BANDS for number in range(1, 61))
    return tuple(name for name in names if name not in missing)


def zone_bounds(zone: str) -> tuple[float, float, float, float]:
    """(west, south, east, north) in degrees of what `utm_zone` calls by this name."""
    number, band = int(zone[:-1]), zone[-1]
    west, south = -180.0 + 6 * (number - 1), -80.0 + 8 * _BANDS.index(band)
    east, north = west + 6, 84.0 if band == "X" else south + 8
    if band == "V" and number in (31, 32):
        west, east = (0.0, 3.0) if number == 31 else (3.0, 12.0)
    if band == "X":
        west, east = next(((w, e) for w, e, wide in _SVALBARD if wide == number), (west, east))
    return west, south, east, north


def is_on_earth(latitude: float, longitude: float) -> bool:
    """Whether the two are finite degrees within their ranges."""
    return -90 <= latitude <= 90 and -180 <= longitude <= 180


def utm_zone(latitude: float, longitude: float) -> str | None:
    """Zone and latitude band ("32T"), with the wider zones of Norway and Svalbard; None near the poles."""
    if not (-80 <= latitude <= 84 and -180 <= longitude <= 180):
        return None
    band = _BANDS[min(int((latitude + 80) // 8), len(_BANDS) - 1)]
    zone = int((longitude + 180) // 6) % 60 + 1
    if band == "V" and 3 <= longitude < 12:
        zone = 32
    if band == "X":
        zone = next((number for west, east, number in _SVALBARD if west <= longitude < east), zone)
    return f"{zone}{band}"
