"""Where and when images were taken: UTM zones, countries, months, seasons, and what a pixel resolves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curation.finished import Finished
from curation.report.scenes import frames

if TYPE_CHECKING:
    import polars as pl

GSD = (0.0, 0.4, 0.6, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Lower ends of the bins of metres a pixel; the last is open."""
ZONE_IMAGES = (0, 1, 10, 100, 1_000, 10_000, 100_000)
"""Lower ends of the bins of images in a zone; the last is open."""
SEASONS = ("spring", "summer", "autumn", "winter")
AREA_KM2 = 1_000
"""Densities are images on so much land."""
LEAST_KM2 = 100.0
"""Of land that a zone needs to be said to have any: a density on a sliver says nothing."""
COLUMNS = ("latitude", "longitude", "utm_zone", "country", "month", "season", "gsd_m", "pixel_x_m", "pixel_y_m")


def collect(root: Finished) -> dict[str, Any] | None:
    """What the kept rows of the last table say; None where none of them states a place, a month or a resolution.

    Returns:
        `located` and `polar` images (beyond all zones); `zones` and `countries`: `{name, images, sources, land_km2,
        per_1000_km2}`, most images first (the areas are null at sea); `zone_images`: how many zones with land have how
        many images; `months`: 12 counts; `seasons`: `{name: images}`; `gsd` and `spacing`: `{lower, counts, rows,
        median}` in metres a pixel, nominal and on the ground.
    """
    if "ingest" not in root.manifests:
        return None
    counts = _counted(root)
    if not any(counts[name] for name in ("located", "month", "gsd")):
        return None
    from stages.geo.land import country_land_km2, zone_land_km2

    land = {zone: area for zone, area in zone_land_km2().items() if area >= LEAST_KM2}
    zones = _areas(counts["utm_zone"], land)
    months, seasons = (_of_all(counts[name]) for name in ("month", "season"))
    return {
        "located": counts["located"],
        "polar": counts["located"] - sum(zone["images"] for zone in zones),
        "zones": zones,
        "zone_images": _zone_images(zones, land),
        "countries": _areas(counts["country"], country_land_km2()),
        "months": [months.get(month, 0) for month in range(1, 13)],
        "seasons": {name: seasons.get(name, 0) for name in SEASONS},
        "gsd": _tally(counts["gsd"]),
        "spacing": _tally(counts["spacing"]),
    }


def _counted(root: Finished) -> dict[str, Any]:
    """`located` images; of four columns `{source: {value: images}}`; of two measures `{value: images}`."""
    import polars as pl

    groups = ("utm_zone", "country", "month", "season")
    spacing = ((pl.col("pixel_x_m").cast(pl.Float64) * pl.col("pixel_y_m")) ** 0.5).alias("spacing")
    gsd = pl.col("gsd_m").cast(pl.Float64).alias("gsd")
    located, by_source, measured = 0, {name: [] for name in groups}, {"gsd": [], "spacing": []}  # type: ignore[var-annotated]
    for frame in frames(root, COLUMNS):
        located += frame.filter(pl.col("latitude").is_not_null() & pl.col("longitude").is_not_null()).height
        for name, counts in by_source.items():
            counts.append(_counts(frame, ["source", name]))
        for expression in (gsd, spacing):
            rounded = frame.select(expression.round_sig_figs(4))
            name = rounded.columns[0]
            measured[name].append(_counts(rounded, [name]))
    return {
        "located": located,
        **{name: _nested(_summed(counts)) for name, counts in by_source.items()},
        **{name: dict(_summed(counts)) for name, counts in measured.items()},
    }


def _counts(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    return frame.select(columns).drop_nulls().group_by(columns).len()


def _summed(counts: Sequence[pl.DataFrame]) -> list[tuple[Any, ...]]:
    """(values…, images) of each group."""
    import polars as pl

    kept = [frame for frame in counts if frame.height]
    return pl.concat(kept).group_by(kept[0].columns[:-1]).sum().sort(kept[0].columns[:-1]).rows() if kept else []


def _nested(rows: Sequence[tuple[Any, ...]]) -> dict[str, dict[Any, int]]:
    found: dict[str, dict[Any, int]] = {}
    for source, value, images in rows:
        found.setdefault(source, {})[value] = images
    return found


def _of_all(by_source: Mapping[str, Mapping[Any, int]]) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for counts in by_source.values():
        for value, images in counts.items():
            found[value] = found.get(value, 0) + images
    return found


def _areas(by_source: Mapping[str, Mapping[str, int]], land_km2: Mapping[str, float]) -> list[dict[str, Any]]:
    found = []
    for name, images in sorted(_of_all(by_source).items(), key=lambda entry: (-entry[1], entry[0])):
        area = land_km2.get(name)
        found.append(
            {
                "name": name,
                "images": images,
                "sources": {source: counts[name] for source, counts in by_source.items() if name in counts},
                "land_km2": area and round(area),
                f"per_{AREA_KM2}_km2": area and float(f"{AREA_KM2 * images / area:.4g}"),
            }
        )
    return found


def _zone_images(zones: Sequence[Mapping[str, Any]], land_km2: Mapping[str, float]) -> dict[str, Any]:
    """Zones with land by their images, as a histogram."""
    images = [zone["images"] for zone in zones if zone["name"] in land_km2]
    images += [0] * (len(land_km2) - len(images))
    ends = [*ZONE_IMAGES[1:], math.inf]
    counts = [sum(low <= number < end for number in images) for low, end in zip(ZONE_IMAGES, ends, strict=True)]
    return {"lower": list(ZONE_IMAGES), "counts": counts, "rows": len(images), "max": max(images, default=0)}


def _tally(values: Mapping[float, int]) -> dict[str, Any]:
    """A histogram of metres a pixel, and their median."""
    ends = [*GSD[1:], math.inf]
    counts = [
        sum(images for value, images in values.items() if low <= value < end)
        for low, end in zip(GSD, ends, strict=True)
    ]
    rows, seen, median = sum(counts), 0, None
    for value, images in sorted(values.items()):
        seen += images
        if 2 * seen >= rows:
            median = value
            break
    return {"lower": list(GSD), "counts": counts, "rows": rows, "median": median}
