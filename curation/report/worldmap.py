"""A world map of true areas, drawn here: UTM zones shaded by their images, over the land's outline.

The projection is Equal Earth (Šavrič, Patterson & Jenny 2018, doi 10.1080/13658816.2018.1504949).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.geo.ground import zone_bounds

SHADES = 6
WIDTH = 720
"""Of the map, in units of its own."""
COAST_DEGREES = 0.5
"""What the outline is simplified by."""
EDGE_POINTS = 5
"""Points of a zone's side, whose meridians are curves."""
_A = (1.340264, -0.081106, 0.000893, 0.003796)
_M = math.sqrt(3) / 2


def project(longitude: ArrayLike, latitude: ArrayLike) -> NDArray[np.float64]:
    """(n, 2) coordinates, x to the east and y to the north, of a sphere of radius 1; areas stay in proportion."""
    lon, lat = np.radians(longitude), np.radians(latitude)
    t = np.arcsin(_M * np.sin(lat))
    slope = _A[0] + 3 * _A[1] * t**2 + t**6 * (7 * _A[2] + 9 * _A[3] * t**2)
    y = t * (_A[0] + _A[1] * t**2 + t**6 * (_A[2] + _A[3] * t**2))
    return np.stack([lon * np.cos(t) / (_M * slope), y], axis=-1)


X_MOST = float(project(180.0, 0.0)[0])
Y_MOST = float(project(0.0, 90.0)[1])
HEIGHT = round(WIDTH * Y_MOST / X_MOST)


def on_page(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Projected coordinates in units of the map, y downwards."""
    scale = WIDTH / 2 / X_MOST
    return np.stack([WIDTH / 2 + points[:, 0] * scale, HEIGHT / 2 - points[:, 1] * scale], axis=-1)


def zone_outline(zone: str) -> NDArray[np.float64]:
    """A UTM zone's sides, projected."""
    west, south, east, north = zone_bounds(zone)
    up, down = np.linspace(south, north, EDGE_POINTS), np.linspace(north, south, EDGE_POINTS)
    return project([west] * EDGE_POINTS + [east] * EDGE_POINTS, np.concatenate([up, down]))


def globe_outline() -> NDArray[np.float64]:
    """The map's rim, projected."""
    up = np.linspace(-90, 90, 45)
    return project([-180.0] * 45 + [180.0] * 45, np.concatenate([up, up[::-1]]))


def coasts() -> list[NDArray[np.float64]]:
    """Rings of the land, projected."""
    from stages.geo.land import outline

    return [project(ring[:, 0], ring[:, 1]) for ring in outline(COAST_DEGREES)]


def path(ring: NDArray[np.float64]) -> str:
    """SVG path data of a projected ring."""
    points = np.round(on_page(ring), 1).tolist()
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) + "Z"


def backdrop() -> dict[str, Any]:
    """`width, height`, and SVG path data of the `globe` and its `land`."""
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "globe": path(globe_outline()),
        "land": "".join(path(ring) for ring in coasts()),
    }


def shaded(zones: Sequence[Mapping[str, Any]], column: str, unit: str) -> dict[str, Any] | None:
    """`{zones: [{path, shade, tip}], steps: [text of each shade]}` by a zone's value; None without any value."""
    known = [zone for zone in zones if zone[column]]
    if not known:
        return None
    lower = breaks([zone[column] for zone in known])
    return {
        "zones": [
            {
                "path": path(zone_outline(zone["name"])),
                "shade": shade(zone[column], lower),
                "tip": f"{zone['name']}: {zone[column]:,} {unit}",
            }
            for zone in known
        ],
        "steps": [f"from {step:,.6g}" for step in lower],
    }


def breaks(values: Sequence[float]) -> list[float]:
    """Lower ends of at most SHADES classes that each span the same ratio, from round numbers."""
    least, most = min(values), max(values)
    ratio = (most / least) ** (1 / SHADES)
    ends = [_round_down(least * ratio**step) for step in range(SHADES)]
    return sorted({end for end in ends if end <= most})


def _round_down(value: float) -> float:
    unit: float = 10.0 ** math.floor(math.log10(value) + 1e-9)
    rounded = math.floor(value / unit + 1e-9) * unit
    return round(rounded) if unit >= 1 else float(f"{rounded:.1g}")


def shade(value: float, lower: Sequence[float]) -> int:
    """1 to SHADES: the class of a value, the highest one always the darkest."""
    place = int(np.searchsorted(lower, value, side="right"))
    return SHADES - len(lower) + max(place, 1)
