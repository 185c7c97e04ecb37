"""The report on scenes, places and times: its numbers are those of the table, and a browser shows them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from curation import manifest
from curation.report import atlas, worldmap
from curation.report.__main__ import main
from stages.geo.facts import derived
from stages.geo.ground import utm_zone, zone_bounds
from stages.schema import COMMON, INGEST, extend
from stages.shards import ShardsConfig, ShardsStage
from stages.storage import Store
from tests.browser import CHROMIUM, Page, opened
from tests.harness import give_input, run_stage

HOSTILE = "<b>port</b>"
SOURCES = ("fmow", "bigearthnet", "millionaid")
CITIES = ((-35.3, 149.1), (48.6, 2.35), (-23.97, -46.32), (24.4, 56.6), (60.4, 5.3), (78.2, 15.6), (0.0, -30.0))
"""Canberra, near Paris, Santos, Oman, Bergen (zone 32V), Svalbard (33X), and the Atlantic."""
CLASSES = ("airport", "airport", "airport", "crop field", HOSTILE)


def row(number: int, image: dict[str, Any]) -> dict[str, Any]:
    """fMoW all over the world, BigEarthNet in Europe, MillionAID nowhere; every 13th row is dropped."""
    source = SOURCES[min(number % 4, 2)] if number % 4 < 3 else "fmow"
    kept = number % 13 != 5
    common: dict[str, Any] = {
        "key": hashlib.md5(bytes([number % 256, number // 256])).hexdigest(),
        "source": source,
        "url": f"{number}.jpg",
        "caption": f"scene {number}",
        "status": "kept" if kept else "dropped",
        "reason": None if kept else "snow",
        **image,
    }
    if source == "millionaid":
        return common | {"official_split": "test"}
    rng = np.random.default_rng(number)
    latitude, longitude = CITIES[number % len(CITIES)] if source == "fmow" else (60 + rng.random(), 24 + rng.random())
    taken = datetime(2016, 1 + number % 12, 5, tzinfo=UTC)
    facts = derived(latitude, longitude, taken)
    labels = [CLASSES[number % len(CLASSES)]] if source == "fmow" else ["forest", "water"][: 1 + number % 2]
    sharp = {"gsd_m": 0.5 if number % 2 else 2.0, "pixel_x_m": 0.3, "pixel_y_m": 0.5}
    coarse = {"gsd_m": 10.0, "pixel_x_m": 10.0, "pixel_y_m": 10.0}
    return {
        **common,
        **facts,
        **(sharp if source == "fmow" else coarse),
        "labels": labels,
        "latitude": latitude,
        "longitude": longitude,
        "acquired_at": taken,
        "official_split": "train",
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `ingest` and `shards`, and its report."""
    path = tmp_path_factory.mktemp("scenes")
    Image.fromarray(np.full((40, 40, 3), 120, np.uint8)).save(path / "one.jpg")
    data = (path / "one.jpg").read_bytes()
    image = {
        "image": {"tar": str(path / "one.jpg"), "offset": 0, "size": len(data)},
        **{"sha256": hashlib.sha256(data).hexdigest(), "format": "jpeg", "width": 40, "height": 40},
    }
    table = pa.Table.from_pylist([row(number, image) for number in range(400)], schema=extend(COMMON, INGEST))
    recipe = {
        "name": "scenes",
        "sources": [{"name": name, "path": "x"} for name in SOURCES],
        "stages": {"ingest": {}, "shards": {}},
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    give_input(path, "ingest", [table.slice(0, 150), table.slice(150)])
    made = run_stage(ShardsStage(ShardsConfig(count=1, val_fraction=0.3)), path, "ingest")
    manifest.save(Store(str(path)), made)
    assert main(["--root", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def facts(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "report/report.json").read_text())
    return found


@pytest.fixture(scope="module")
def kept(root: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    tables = [pq.read_table(path) for path in sorted((root / "ingest").glob("*.parquet"))]
    return [row for row in pa.concat_tables(tables).to_pylist() if row["status"] == "kept"]


def test_the_table_of_scenes_is_that_of_the_rows(facts: dict[str, Any], kept: list[dict[str, Any]]) -> None:
    found = facts["scenes"]
    assert [entry["source"] for entry in found["rows"]] == list(SOURCES)
    for entry in found["rows"]:
        mine = [row for row in kept if row["source"] == entry["source"]]
        assert entry["images"] == len(mine)
        assert entry["split"] == ("test" if entry["source"] == "millionaid" else "train")
        assert entry["classes"] == len({label for row in mine for label in row["labels"] or []})
        assert entry["labelled"] == sum(bool(row["labels"]) for row in mine)
        assert entry["dated"] == sum(row["acquired_at"] is not None for row in mine)
    assert found["total"]["images"] == len(kept)


def test_the_long_tail_has_every_class_once_an_image(facts: dict[str, Any], kept: list[dict[str, Any]]) -> None:
    for entry in facts["scenes"]["classes"]:
        mine = Counter(label for row in kept if row["source"] == entry["source"] for label in row["labels"])
        assert dict(entry["classes"]) == mine  # type: ignore[arg-type]
        assert entry["classes"][0][1] == max(mine.values())
        assert entry["half"] == 1
    assert {entry["source"] for entry in facts["scenes"]["classes"]} == {"fmow", "bigearthnet"}


def test_places_and_times_are_those_of_the_rows(facts: dict[str, Any], kept: list[dict[str, Any]]) -> None:
    found = facts["places"]
    located = [row for row in kept if row["latitude"] is not None]
    assert found["located"] == len(located)
    assert found["polar"] == 0
    zones = Counter(utm_zone(row["latitude"], row["longitude"]) for row in located)
    assert {zone["name"]: zone["images"] for zone in found["zones"]} == zones
    assert {entry["name"]: entry["images"] for entry in found["countries"]} == Counter(
        row["country"] for row in located
    )
    months = Counter(row["acquired_at"].month for row in located)
    assert found["months"] == [months[month] for month in range(1, 13)]
    assert found["seasons"] == Counter(row["season"] for row in located)
    sharp, coarse = (sum(row["source"] == name for row in located) for name in ("fmow", "bigearthnet"))
    assert found["gsd"]["rows"] == found["spacing"]["rows"] == sharp + coarse
    assert found["gsd"]["counts"][found["gsd"]["lower"].index(10.0)] == coarse
    assert found["spacing"]["counts"][0] == sharp, "0.3 m by 0.5 m are 0.387 m in the mean"


def test_bigearthnet_lies_in_the_north_and_southern_julys_are_winters(facts: dict[str, Any]) -> None:
    zones = facts["places"]["zones"]
    bands = {zone["name"][-1] for zone in zones if "bigearthnet" in zone["sources"]}
    assert bands == {"V"}
    canberra = next(zone for zone in zones if zone["name"] == "55H")
    assert canberra["sources"].keys() == {"fmow"}


def test_densities_are_images_on_the_land_of_a_zone(facts: dict[str, Any]) -> None:
    finland = next(entry for entry in facts["places"]["countries"] if entry["name"] == "Finland")
    assert finland["land_km2"] == pytest.approx(338_000, rel=0.03)
    assert finland["per_1000_km2"] == pytest.approx(1000 * finland["images"] / finland["land_km2"], rel=1e-3)
    atlantic = next(zone for zone in facts["places"]["zones"] if zone["name"] == "26N")
    assert (atlantic["land_km2"], atlantic["per_1000_km2"]) == (None, None)
    shown = atlas.world(facts)
    assert shown is not None
    images, densities = shown["maps"]
    assert len(images["zones"]) == len(densities["zones"]) + 1


def test_zones_keep_their_areas_on_the_map() -> None:
    import shapely

    for zone in ("31N", "32V", "33X", "17D"):
        west, south, east, north = np.radians(zone_bounds(zone))
        true = (east - west) * (np.sin(north) - np.sin(south))
        assert shapely.area(shapely.Polygon(worldmap.zone_outline(zone))) == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "lower"), [([7], [7]), ([1, 2], [1]), ([3, 250_000], [3, 10, 100, 800, 5000, 30_000])]
)
def test_shades_begin_at_round_numbers(values: list[float], lower: list[float]) -> None:
    assert worldmap.breaks(values) == lower
    assert worldmap.shade(max(values), lower) == worldmap.SHADES
    assert worldmap.shade(min(values), lower) == worldmap.SHADES - len(lower) + 1


def test_text_and_pictures_are_beside_the_page(root: Path, facts: dict[str, Any]) -> None:
    text = (root / "report/report.md").read_text()
    assert "## Where and when" in text
    assert r"\<b\>port\</b\>" in text
    assert HOSTILE not in (root / "report/index.html").read_text()
    names = {path.name for path in (root / "report").glob("*.png")}
    assert {"classes.png", "months.png", "seasons.png", "gsd.png", "world_images.png"} <= names


def test_a_run_without_places_says_nothing_of_them(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"key": "0" * 32, "source": "old", "status": "kept"}], schema=extend(COMMON, INGEST))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"sources": [{"name": "old"}], "stages": {"ingest": {}}}))
    give_input(tmp_path, "ingest", [table])
    assert main(["--root", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "report/report.json").read_text())
    assert (found["scenes"], found["places"]) == (None, None)
    assert 'id="places"' not in (tmp_path / "report/index.html").read_text()


@pytest.fixture(scope="module")
def browser(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with opened((root / "report/index.html").as_uri(), tmp_path_factory.mktemp("profile")) as page:
        yield page


CELLS = "[...document.querySelectorAll('{}')].map(cell => cell.textContent.trim())"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_numbers_and_nothing_sticks_out(browser: Page, facts: dict[str, Any], width: int) -> None:
    browser.resize(width, 900)
    assert browser.value("document.documentElement.scrollWidth") <= width
    counted = browser.value(CELLS.format("#scenes td:nth-child(2)"))
    assert counted == [f"{entry['images']:,}" for entry in [*facts["scenes"]["rows"], facts["scenes"]["total"]]]
    tips = browser.value(CELLS.format("#places .world path title"))
    assert set(tips) >= {f"{zone['name']}: {zone['images']:,} images" for zone in facts["places"]["zones"]}
    assert browser.value("document.querySelector('#land').getBBox().width") > 600
    boxes = "[...document.querySelectorAll('#places svg.world')].map(map => map.getBoundingClientRect().width)"
    assert all(200 < box <= width for box in browser.value(boxes))
    assert len(browser.picture()) > 20_000


def test_names_of_bins_do_not_overlap(browser: Page) -> None:
    browser.resize(1280, 900)
    overlaps = """
        [...document.querySelectorAll('#places svg, #scenes svg, #distributions svg')].flatMap(chart => {
            const texts = [...chart.querySelectorAll('text')];
            const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
            return boxes.flatMap(([name, box]) => boxes.filter(([, other]) =>
                other.left > box.left && other.left < box.right && Math.abs(other.top - box.top) < 2
            ).map(([other]) => name + ' and ' + other));
        })
    """
    assert browser.value(overlaps) == []


def test_zones_lie_on_their_countries_in_the_browser(browser: Page) -> None:
    browser.resize(1280, 900)
    place = """
        (() => {
            const zones = [...document.querySelectorAll('#places .world path')];
            const box = zones.find(zone => zone.textContent.startsWith('55H')).getBBox();
            const land = document.querySelector('#land');
            const point = land.ownerSVGElement.createSVGPoint();
            point.x = box.x + box.width / 2; point.y = box.y + box.height / 2;
            return land.isPointInFill(point);
        })()
    """
    assert browser.value(place), "the middle of zone 55H is in New South Wales"
