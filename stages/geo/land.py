"""How much land there is, by country and by UTM zone, and its outline: from Natural Earth's boundaries.

Areas are of a sphere: longitude and the sine of latitude make a plane of true areas. Lakes inside a country count.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.geo.countries import polygons
from stages.geo.ground import EARTH_KM, utm_zones, zone_bounds


@cache
def country_land_km2() -> Mapping[str, float]:
    """Square kilometres of each country, by the name that `countries.country_at` gives it."""
    import shapely

    areas = shapely.area(_flat()) * EARTH_KM**2
    found: dict[str, float] = {}
    for (country, _), area in zip(polygons(), areas.tolist(), strict=True):
        found[country.name] = found.get(country.name, 0.0) + area
    return found


@cache
def zone_land_km2() -> Mapping[str, float]:
    """Square kilometres of land in each UTM zone with its latitude band; 0 at sea."""
    import shapely

    land = _flat()
    tree = shapely.STRtree(land)
    found = {}
    for zone in utm_zones():
        west, south, east, north = np.radians(zone_bounds(zone)).tolist()
        box = (west, np.sin(south), east, np.sin(north))
        near = land[tree.query(shapely.box(*box))]
        found[zone] = float(shapely.area(shapely.clip_by_rect(near, *box)).sum()) * EARTH_KM**2
    return found


def outline(degrees: float) -> list[NDArray[np.float64]]:
    """Closed rings of the land, (points, 2) longitudes and latitudes, simplified by at most so many degrees."""
    import shapely

    parts = shapely.simplify(np.array([part for _, part in polygons()]), degrees)
    large = parts[shapely.area(parts) > degrees**2]
    return [np.asarray(shapely.get_coordinates(shapely.get_exterior_ring(part))) for part in large]


@cache
def _flat() -> NDArray[Any]:
    """The polygons in the plane of true areas, of a sphere with radius 1."""
    import shapely

    parts = np.array([part for _, part in polygons()])
    flat = shapely.transform(parts, lambda c: np.stack([np.radians(c[:, 0]), np.sin(np.radians(c[:, 1]))], axis=1))
    return np.asarray(shapely.make_valid(flat))
