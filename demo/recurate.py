"""The second half of `python -m demo.rs3`: its shards, and an older tar as RS5M wrote them, are curated anew.

The older tar has what an existing dataset is curated for: a picture that the shards have too, the same encoded once
more, photographs from the ground, a damaged file, and a scene to be cut into tiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from demo.corpus import encode
from demo.found import compare, passports, rows
from demo.scenes import ground, overhead
from stages.tar import TarWriter

RECIPE = Path(__file__).parent.parent / "manifests" / "recipes" / "recurate.yaml"
TILE = 64
SCENE, SCENE_TILES = "bay.jpg", 4
PHOTOS = {"portrait.jpg": "portrait", "street.jpg": "street", "table.jpg": "still_life"}
COPIED, AGAIN = 0, 2
"""Numbers of the chips that the older tar has too: as they are, and encoded once more."""
REASONS = {"copy.jpg": "duplicate_bytes", "again.jpg": "duplicate_image"}
KEPT_BY_DETECTOR = 0.8
SURVIVING = ("caption", "caption_parts", "labels", "country", "season", "gsd_m", "location", "utm_zone")
"""What a sample's passport says after as before."""


def make(world: Path, shards: Path, chips: list[bytes]) -> Path:
    """Write the older tar and the shipped recipe over it and the shards; returns the recipe's path.

    Args:
        world: the folder they go into.
        shards: of the first run.
        chips: JPEGs of which the shards have samples.
    """
    older = world / "older/rs5m-0000.tar"
    older.parent.mkdir(parents=True, exist_ok=True)
    with older.open("wb") as file:
        tar = TarWriter(file)
        for name, data in _older(chips).items():
            stem = name.partition(".")[0]
            tar.add(f"{stem}.img_content", data)
            tar.add(f"{stem}.img_name", name.encode())
            tar.add(f"{stem}.caption", b"a view")
        tar.close()
    described = yaml.safe_load(RECIPE.read_text())
    tars = [str(shards.resolve() / split / "*.tar") for split in ("train", "val")]
    described["sources"][0] |= {"path": [*tars, str(older.resolve())], "options": {"tile": {"size": TILE}}}
    described["stages"]["outliers"] = {"detector": {"model": "builtin"}, "keep": {"detector": KEPT_BY_DETECTOR}}
    described["stages"]["shards"] = {"count": 1, "val_fraction": 0.2}
    path = world / "recurate.yaml"
    path.write_text(yaml.safe_dump(described, sort_keys=False))
    return path


def _older(chips: list[bytes]) -> dict[str, bytes]:
    """The images of the older tar, by name."""
    draw = np.random.default_rng(7)
    photos = {name: encode(ground(kind, draw, (TILE, TILE))) for name, kind in PHOTOS.items()}
    scene = overhead("coast", draw, (2 * TILE, 2 * TILE))
    again = overhead("fields", np.random.default_rng(AGAIN), (TILE, TILE))
    return {
        "copy.jpg": chips[COPIED],
        "again.jpg": encode(again, quality=70),
        "damaged.jpg": chips[1][:900],
        SCENE: encode(scene),
        **photos,
    }


def wrong(before: Path, run: Path) -> tuple[list[str], int]:
    """(a sentence for each planted answer that was not found; how many were planted).

    Args:
        before: the root of the run whose shards were curated.
        run: the root of the new one.
    """
    planted: list[tuple[str, dict[str, Any] | None, dict[str, Any]]] = [
        ("damaged.jpg", rows(run, "ingest").get("damaged.jpg"), {"reason": "truncated"})
    ]
    merged, judged, written = rows(run, "dedup"), rows(run, "outliers"), passports(run)
    planted += [(url, merged.get(url), {"reason": reason}) for url, reason in REASONS.items()]
    planted += [(url, judged.get(url), {"reason": "low_detector_score"}) for url in PHOTOS]
    for url, passport in passports(before).items():
        expected = {name: passport.get(name) for name in SURVIVING}
        url = f"{passport['source']}/{url}"
        planted.append((url, written.get(url), expected))
    problems = [problem for each in planted for problem in compare(*each)]
    tiles = [passport for url, passport in written.items() if url.startswith(f"{SCENE}#xywh=")]
    if len(tiles) != SCENE_TILES or len({tile["location"] for tile in tiles}) != 1:
        problems.append(f"{SCENE}: {len(tiles)} tiles in {len({tile.get('location') for tile in tiles})} locations")
    return problems, sum(len(expected) for _, _, expected in planted) + 1
