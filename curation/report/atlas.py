"""Scenes, places and times as the report shows them: long tails of classes, calendars, maps, and tables of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curation.report import figures, labels, worldmap
from curation.report.scenes import STATED

MOST_BARS = 400
"""Classes that a chart has room for."""
ENDS = 3
"""Classes named at either end of a tail."""
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
ZONE_IMAGES = ("0", "1–9", "10–99", "100–999", "1–9 k", "10–99 k", "100 k+")
"""Names of the bins of images in a zone (`places.ZONE_IMAGES`)."""
MAPS = (
    ("images", "Images by UTM zone", "images"),
    ("per_1000_km2", "Images by land area", "images a 1,000 km² of land"),
)
"""Columns of zones that maps show, their titles and units."""


def tails(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A chart for each source of two classes or more: a bar a class, frequent ones first; the cut is half of all."""
    found = (facts["scenes"] or {}).get("classes", [])
    return [_tail(entry) for entry in found if entry["names"] > 1]


def _tail(entry: Mapping[str, Any]) -> dict[str, Any]:
    shown = entry["classes"][:MOST_BARS]
    step = figures.WIDTH / len(shown)
    tips = [f"{name}: {images:,}" for name, images in shown]
    ranks = dict.fromkeys([1, (len(shown) + 1) // 2, len(shown)])
    return {
        "title": f"Classes of {entry['source']}",
        "note": tail_text(entry),
        "bars": figures.bars([images for _, images in shown], tips, 0.12),
        "ticks": [{"x": round((rank - 0.5) * step, 1), "text": f"{rank}."} for rank in ranks],
        "threshold": round(entry["half"] * step, 1) if entry["half"] < len(shown) else None,
    }


def tail_text(entry: Mapping[str, Any]) -> str:
    """How many classes there are, how few of them have half of all labels, and the ends of the tail."""
    classes = entry["classes"]
    most = ", ".join(f"{name} ({images:,})" for name, images in classes[:ENDS])
    half = "most frequent one has" if entry["half"] == 1 else f"{entry['half']:,} most frequent have"
    text = f"{entry['names']:,} classes; the {half} half of all labels. Most: {most}"
    last = classes[max(ENDS, len(classes) - ENDS) :]
    return text + (f"; fewest: {', '.join(f'{name} ({images:,})' for name, images in last)}." if last else ".")


def calendars(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Charts of months, seasons, and of metres a pixel, those that have something to show."""
    places = facts["places"]
    if not places:
        return []
    found = []
    if dated := sum(places["months"]):
        found.append(figures.named("Month", f"{dated:,} images with a time, UTC", MONTHS, places["months"]))
    if known := sum(places["seasons"].values()):
        names, counts = list(places["seasons"]), list(places["seasons"].values())
        found.append(figures.named("Season", f"of the hemisphere, {known:,} images", names, counts))
    for name, title, note in MEASURES:
        if places[name]["rows"]:
            text = f"{note}; median {places[name]['median']:g} m, {places[name]['rows']:,} images"
            found.append(figures.tally(title, text, places[name], closed=False))
    if places["zones"]:
        zones = places["zone_images"]
        note = f"how many of {zones['rows']:,} UTM zones with land have so many images; {zones['max']:,} at most"
        found.append(figures.named("Images of a zone", note, ZONE_IMAGES, zones["counts"]))
    return found


MEASURES = (
    ("gsd", "GSD, metres", "nominal, of the sensor"),
    ("spacing", "Ground spacing, metres a pixel", "on the ground, as georeferenced"),
)
"""Histograms of metres a pixel: key, title, what it is."""


def world(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """`{backdrop, maps: [{title, note, zones, steps}]}`; None where no image has a place."""
    zones = (facts["places"] or {}).get("zones")
    if not zones:
        return None
    maps = []
    for column, title, unit in MAPS:
        shaded = worldmap.shaded(zones, column, unit)
        if shaded:
            best = max((zone for zone in zones if zone[column]), key=lambda zone: (zone[column], zone["name"]))
            note = f"{unit}, {len(shaded['zones']):,} zones; most in {best['name']}: {labels.number(best[column])}"
            maps.append({"title": title, "note": note, **shaded})
    return {"backdrop": worldmap.backdrop(), "maps": maps}


def split(facts: Mapping[str, Any]) -> str | None:
    """How far validation samples lie from training ones; None where places are not known."""
    apart = facts["shards"].get("split_distance_km")
    if not apart:
        return None
    return (
        f"From a validation sample to the nearest training sample: {apart['min']:,.1f} km at least, "
        f"{apart['median']:,.1f} km in the middle, within 1 km for {labels.share(apart['near'], 1)} of the "
        f"{apart['measured']:,} samples measured."
    )


Table = Callable[[Sequence[str], Sequence[Sequence[Any]]], str]


def markdown(facts: Mapping[str, Any], table: Table) -> list[str]:
    """Blocks of the report for readers of plain text; `table` makes one of headings and rows."""
    return [*_scenes(facts["scenes"], table), *_places(facts, table)]


def _scenes(found: Mapping[str, Any] | None, table: Table) -> list[str]:
    if not found:
        return []
    rows = [
        [row["source"], row["images"], row["split"] or "–", row["classes"], *(row[name] for name in STATED)]
        for row in found["rows"]
    ]
    rows.append(["Total", found["total"]["images"], "", None, *(found["total"][name] for name in STATED)])
    headings = ["source", "images", "official split", "classes", *STATED]
    texts = [f"{labels.markdown(entry['source'])}: {labels.markdown(tail_text(entry))}" for entry in found["classes"]]
    return ["## Scenes", table(headings, rows), *texts]


def _places(facts: Mapping[str, Any], table: Table) -> list[str]:
    found = facts["places"]
    if not found:
        return []
    blocks = ["## Where and when", *([text] if (text := split(facts)) else [])]
    for kind, rows in (("country", found["countries"]), ("UTM zone", found["zones"])):
        cells = [[row["name"], row["images"], row["land_km2"], labels.number(row["per_1000_km2"])] for row in rows]
        blocks.append(table([kind, "images", "land, km²", "images a 1,000 km²"], cells))
    blocks.append(table(["month", "images"], list(zip(MONTHS, found["months"], strict=True))))
    blocks.append(table(["season", "images"], list(found["seasons"].items())))
    for name, title, _ in MEASURES:
        names = labels.bins(found[name]["lower"], closed=False)
        blocks.append(table([title, "images"], list(zip(names, found[name]["counts"], strict=True))))
    return blocks
