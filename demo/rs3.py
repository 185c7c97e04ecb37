"""`python -m demo.rs3`: labelled scenes of both hemispheres become captioned shards, and these are curated anew; every
planted fact is looked up.

The images are drawn, the models tiny and untrained: candidates are words at random, which the gate judges all the same.
What is checked is what is known: places, seasons, resolutions, positions, tiles, and which row is refused for what.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from demo import found, recurate
from demo.__main__ import conclude, prepare
from demo.captioner import make_blip2
from demo.models import make_open_clip
from demo.scenes import overhead

SIDE = 64
CAPTIONS = {"candidates": 6, "max_tokens": 10, "batch_size": 4}
SHARDS = {"count": 2, "val_fraction": 0.2}


@dataclass(frozen=True)
class Chip:
    """A chip of fMoW, and what the run must make of it: facts of its row, or the reason why it is refused."""

    name: str
    category: str
    kind: str
    """What is drawn: one of `demo.scenes`."""
    west: float
    south: float
    taken: str
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    country_code: str | None = None
    gsd: float = 0.5
    box: tuple[int, int, int, int] = (24, 24, 16, 16)
    has_record: bool = True

    @property
    def url(self) -> str:
        """As the source has it."""
        location = self.name.rsplit("_", 2)[0]
        return f"{location.rsplit('_', 1)[0]}/{location}/{self.name}.jpg"


SOUTH_JULY = {"country": "Australia", "season": "winter", "month": 7, "year": 2015, "utm_zone": "55H"}
CHIPS = (
    Chip("airport_1_0_rgb", "airport", "airport", 149.10, -35.30, "2015-07-01T00:12:13Z", SOUTH_JULY),
    Chip("airport_1_0_msrgb", "airport", "airport", 149.10, -35.30, "2015-07-01T00:12:13Z", SOUTH_JULY, gsd=2.0),
    Chip(
        *("crop_field_2_0_rgb", "crop_field", "fields", 2.35, 48.60, "2016-01-20T10:55:00Z"),
        {"country": "France", "season": "winter", "labels": ["crop field"], "gsd_m": 0.31},
        gsd=0.31,
    ),
    Chip(
        *("port_3_0_rgb", "port", "coast", -46.32, -23.97, "2016-01-05T13:05:00Z"),
        {"country": "Brazil", "season": "summer", "utm_zone": "23K"},
    ),
    Chip(
        *("oil_or_gas_facility_4_0_rgb", "oil_or_gas_facility", "tanks", 56.60, 24.40, "2014-04-02T06:40:00Z"),
        {"country": "Oman", "season": "spring"},
        box=(0, 0, 20, 20),
    ),
    Chip(
        *("amusement_park_5_0_rgb", "amusement_park", "town", 8.55, 47.37, "2013-10-09T10:30:00Z"),
        {"country": "Switzerland", "season": "autumn", "utm_zone": "32T"},
    ),
    Chip(
        *("airport_6_0_rgb", "airport", "airport", 8.60, 47.45, "2013-10-09T10:30:00Z"),
        reason="bad_metadata",
        country_code="XYZ",
    ),
    Chip("port_7_0_rgb", "port", "coast", 0.0, 0.0, "", reason="bad_metadata", has_record=False),
)
SCENE = "scene.tif"
SCENE_TILES = 4
TILE = 64
"""The scene is two tiles wide and two high."""
SCENE_FACTS = {"country": "Germany", "gsd_m": None, "utm_zone": "32U", "pixel_x_m": 10.0}


def make(root: Path) -> Path:
    """Write scenes, models and the recipe below `root`; returns the recipe's path."""
    world = root / "world"
    shutil.rmtree(world, ignore_errors=True)
    for number, chip in enumerate(CHIPS):
        _write_chip(world / "fmow/train" / chip.url, chip, number)
    _write_scene(world / "scenes" / SCENE)
    make_blip2(world / "models/blip2")
    make_open_clip(world / "models/clip")
    make_open_clip(world / "models/clip2", seed=1)
    recipe = world / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(world.resolve()), sort_keys=False))
    return recipe


def images(root: Path) -> list[bytes]:
    """The chips' files, in their order."""
    return [(root / "world/fmow/train" / chip.url).read_bytes() for chip in CHIPS]


def _recipe(world: Path) -> dict[str, Any]:
    """The shipped recipe rs3 in miniature."""
    return {
        "name": "demo-rs3",
        "subset": "rs3",
        "seed": 2023,
        "sources": [
            {"name": "fmow", "path": str(world / "fmow/train")},
            {"name": "scenes", "format": "folder", "path": str(world / "scenes")},
        ],
        "stages": {
            "ingest": {"tile": {"size": TILE, "overlap": 0}},
            "dedup": {"radius": 2},
            "captions": {
                "model": str(world / "models/blip2"),
                "rank": {"model": str(world / "models/clip"), "keep": 4},
                "rerank": {"model": str(world / "models/clip2"), "keep": 2},
                **CAPTIONS,
            },
            "shards": SHARDS,
        },
    }


def _write_chip(path: Path, chip: Chip, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    overhead(chip.kind, np.random.default_rng(number), (SIDE, SIDE)).save(path, quality=92)
    if not chip.has_record:
        return
    east, north = chip.west + 0.0003, chip.south + 0.0003
    corners = [(chip.west, chip.south), (east, chip.south), (east, north), (chip.west, north), (chip.west, chip.south)]
    place = f"POLYGON (({', '.join(f'{x} {y}' for x, y in corners)}))"
    boxes = [{"ID": -1, "raw_location": place}, {"ID": number, "category": chip.category, "box": list(chip.box)}]
    record = {
        "bounding_boxes": boxes,
        "raw_location": place,
        "img_width": SIDE,
        "img_height": SIDE,
        "gsd": chip.gsd,
        "sensor_platform_name": "WORLDVIEW02",
        "timestamp": chip.taken,
    }
    path.with_suffix(".json").write_text(
        json.dumps(record | ({"country_code": chip.country_code} if chip.country_code else {}))
    )


def _write_scene(path: Path) -> None:
    """A GeoTIFF near Munich of 10 m pixels, to be cut into tiles."""
    import rasterio
    from rasterio.transform import from_origin

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(overhead("fields", np.random.default_rng(99), (2 * TILE, 2 * TILE)))
    place = {"crs": "EPSG:32632", "transform": from_origin(690_000, 5_340_000, 10, 10)}
    shape = {"count": 3, "height": 2 * TILE, "width": 2 * TILE, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place) as scene:
        scene.write(pixels.transpose(2, 0, 1))


def wrong(run: Path) -> tuple[list[str], int]:
    """(a sentence for each planted answer that was not found; how many were planted)."""
    rows = found.rows(run, "ingest")
    passports = found.passports(run)
    problems: list[str] = []
    total = 0
    for chip in CHIPS:
        expected = {"reason": chip.reason, **chip.facts}
        total += len(expected) + (chip.reason is None)
        problems += found.compare(chip.url, rows.get(chip.url), expected)
        if chip.reason is None:
            problems += _captioned(chip, passports.get(chip.url))
    tiles = [row for url, row in rows.items() if url.startswith(SCENE)]
    total += 1 + len(tiles) * len(SCENE_FACTS)
    if len(tiles) != SCENE_TILES or len({row["location"] for row in tiles}) != 1:
        problems.append(f"{SCENE}: {len(tiles)} tiles in {len({row['location'] for row in tiles})} locations")
    for row in tiles:
        problems += found.compare(row["url"], row, SCENE_FACTS)
    twins = [rows[chip.url]["location"] for chip in CHIPS[:2]]
    total += 1
    if None in twins or len(set(twins)) != 1:
        problems.append("airport_1_0: both renderings must share a location")
    return problems, total


def _captioned(chip: Chip, passport: dict[str, Any] | None) -> list[str]:
    """Whether the final caption tells the class and the country, in its facts, and no other season."""
    if passport is None:
        return [f"{chip.url}: it is not in the shards"]
    told = " ".join(part["text"] for part in passport["caption_parts"] if part["origin"] == "metadata").lower()
    seasons = {"spring", "summer", "autumn", "winter"} - {chip.facts["season"]}
    wanted = (chip.category.replace("_", " "), str(chip.facts["country"]).lower())
    problems = [f"{chip.url}: {word!r} is not told: {told!r}" for word in wanted if word not in told]
    return problems + [f"{chip.url}: {season!r} is told: {told!r}" for season in sorted(seasons) if season in told]


def curate(recipe: Path, root: Path) -> bool:
    """Run a recipe as a process of its own; whether it ended well."""
    command = [sys.executable, "-m", "curation.run", str(recipe), "--root", str(root)]
    code = subprocess.run(command, check=False).returncode  # noqa: S603
    if code:
        print(f"demo.rs3: the run of {recipe.name} failed with exit code {code}", file=sys.stderr)
    return code == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 when every planted answer was found, 1 when not, 2 when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m demo.rs3", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("demo-rs3"), help="folder for the world and the run")
    root: Path = parser.parse_args(argv).root
    try:
        prepare(root, keep=False)
        shutil.rmtree(root / "recurated", ignore_errors=True)
    except OSError as error:
        print(f"demo.rs3: {error}", file=sys.stderr)
        return 2
    print(f"making scenes and models in {root}", flush=True)
    if not curate(make(root), root / "run"):
        return 1
    recipe = recurate.make(root / "world", root / "run/shards", images(root))
    if not curate(recipe, root / "recurated"):
        return 1
    problems, total = wrong(root / "run")
    again, more = recurate.wrong(root / "run", root / "recurated")
    return conclude([*problems, *again], total + more)


if __name__ == "__main__":
    raise SystemExit(main())
