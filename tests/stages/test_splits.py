"""Spatial blocks of one size everywhere, and the distance between the sides of a split."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from stages.splits import blocks, distances, fraction, groups, homes_of


def names(*places: tuple[float | None, float | None], side_km: float = 10.0) -> list[str | None]:
    latitude, longitude = (pa.chunked_array([pa.array(list(side), pa.float64())]) for side in zip(*places, strict=True))
    found: list[str | None] = blocks(latitude, longitude, side_km).to_pylist()
    return found


@pytest.mark.parametrize("latitude", [0.05, 47.0, -70.0])
def test_a_block_measures_about_its_side_everywhere(latitude: float) -> None:
    north = latitude + np.arange(0, 90, 1) / 111.195
    rows = names(*[(float(value), 8.0) for value in north])
    assert 9 <= len(set(rows)) <= 10
    east = 8.0 + np.arange(0, 90, 1) / (111.195 * np.cos(np.radians(latitude)))
    columns = names(*[(latitude, float(value)) for value in east])
    assert 9 <= len(set(columns)) <= 10


def test_the_date_line_and_the_poles_have_blocks_and_the_unknown_has_none() -> None:
    west, east, pole, nowhere = names((10.0, -180.0), (10.0, 180.0), (90.0, 3.0), (None, 1.0))
    assert west == east
    assert pole == "block 1000 0"
    assert nowhere is None


def test_distances_between_the_sides() -> None:
    latitude = np.array([0.0, 0.0, 0.0, np.nan, 60.0])
    longitude = np.array([0.0, 1.0, -179.9, 5.0, 179.95])
    is_val = np.array([False, True, False, True, True])
    found = distances(latitude, longitude, is_val)
    assert found["measured"] == 2
    assert found["min"] == pytest.approx(111.195, abs=0.01)
    assert found["near"] == 0.0
    assert distances(latitude, longitude, np.zeros(5, bool)) == {}


def test_neighbouring_locations_share_a_side_and_none_is_cut() -> None:
    """2,000 locations of two chips in 100 km by 71 km: by location alone, half would have a neighbour within 1 km."""
    rng = np.random.default_rng(0)
    names = np.repeat([f"dam_{number}" for number in range(2000)], 2)
    latitude = np.repeat(rng.uniform(45, 45.9, 2000), 2) + np.tile([0, 0.002], 2000)
    longitude = np.repeat(rng.uniform(9, 9.9, 2000), 2)
    table = pa.table(
        {"key": [str(n) for n in range(4000)], "location": names, "latitude": latitude, "longitude": longitude}
    )

    def is_val(group: list[str]) -> np.ndarray:
        return np.array([fraction(2023, name) < 0.2 for name in group])

    mine = is_val(groups(table, 10.0, homes_of([table], 10.0)).to_pylist())
    assert (mine[::2] == mine[1::2]).all()
    by_location = distances(latitude, longitude, is_val(names.tolist()))
    by_block = distances(latitude, longitude, mine)
    assert by_location["median"] < 1.0 < 1.5 < by_block["median"]
    assert by_block["near"] < 0.1 < 0.5 < by_location["near"]
