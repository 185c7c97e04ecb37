"""The report's charts as PNG files, for papers and slides (the page draws its own)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from curation.report import worldmap
from curation.report.atlas import MAPS, MEASURES, MONTHS
from curation.report.labels import SCORES, bins

COLOURS = {
    "remain": "#1f7a6d",
    "outlier_image": "#d98324",
    "duplicate_image": "#4c78a8",
    "invalid_image": "#b23a48",
    "other_removed": "#8a8f98",
}
"""Parts of a downloaded image's fate, in the order they are stacked."""
LEGEND = {
    "remain": "remain",
    "outlier_image": "outliers",
    "duplicate_image": "duplicates",
    "invalid_image": "invalid",
    "other_removed": "other",
}
TERMS = 20


def draw(facts: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG) of each chart that has something to show."""
    sources = [row for row in facts["funnel"][:-1] if row["download_image"]]
    if sources:
        yield "funnel.png", _png(lambda axes: _funnel(axes, sources), 0.8 + 0.4 * len(sources))
    if facts["drop_reasons"]:
        reasons = sorted(facts["drop_reasons"], key=lambda entry: entry["rows"])
        names = [f"{entry['stage']}: {entry['reason']}" for entry in reasons]
        rows = [entry["rows"] for entry in reasons]
        yield "drop_reasons.png", _png(lambda axes: _bars(axes, names, rows, log=True), 0.9 + 0.26 * len(rows))
    if facts["keywords"]:
        terms = facts["keywords"][:TERMS][::-1]
        names = [entry["keyword"] for entry in terms]
        yield (
            "keywords.png",
            _png(lambda axes: _bars(axes, names, [entry["matched"] for entry in terms]), 0.9 + 0.26 * len(terms)),
        )
    for name, title, closed in (("caption_words", "words", True), ("image_width", "pixels", False)):
        if facts[name]["rows"]:
            yield f"{name}.png", _histogram(facts[name], title, closed=closed)
    for name, score in facts["scores"].items():
        yield f"{name}.png", _scores(score, SCORES[name])
    yield from _scenes(facts)


def _scenes(facts: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Charts of labels, places and times."""
    classes = [entry for entry in (facts["scenes"] or {}).get("classes", []) if entry["names"] > 1]
    if classes:
        yield "classes.png", _png(lambda axes: _tails(axes, classes), 3.6)
    places = facts["places"]
    if not places:
        return
    for name, names in (("months", MONTHS), ("seasons", tuple(places["seasons"]))):
        counts = list(places["seasons"].values()) if name == "seasons" else places[name]
        if sum(counts):
            yield f"{name}.png", _png(partial(_columns, names=names, counts=counts, title=name[:-1]), 3.2)
    for name, title, _ in MEASURES:
        if places[name]["rows"]:
            yield f"{name}.png", _histogram(places[name], title, closed=False)
    for column, _, unit in MAPS:
        values = {zone["name"]: zone[column] for zone in places["zones"] if zone[column]}
        if values:
            yield f"world_{column}.png", _png(partial(_world, values=values, title=unit), 4.0)


def _png(paint: Callable[[Any], None], height: float) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    paint(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _funnel(axes: Any, sources: list[Mapping[str, Any]]) -> None:
    """Each source's downloaded images, by what became of them, in percent."""
    names = [row["name"] for row in reversed(sources)]
    left = [0.0] * len(names)
    for column, colour in COLOURS.items():
        widths = [100 * row[column] / row["download_image"] for row in reversed(sources)]
        axes.barh(names, widths, left=left, color=colour, label=LEGEND[column], height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of downloaded images")
    axes.legend(ncols=5, frameon=False, loc="lower center", bbox_to_anchor=(0.45, 1.0), fontsize=8)


def _bars(axes: Any, names: list[str], rows: list[int], *, log: bool = False) -> None:
    axes.barh([_plain(name) for name in names], rows, color=COLOURS["remain"], height=0.7)
    axes.set_xscale("log" if log else "linear")
    axes.set_xlabel("rows (logarithmic)" if log else "rows")
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.02)


def _histogram(tally: Mapping[str, Any], title: str, *, closed: bool) -> bytes:
    names = bins(tally["lower"], closed=closed)
    shares = [100 * count / tally["rows"] for count in tally["counts"]]

    def paint(axes: Any) -> None:
        axes.bar(names, shares, color=COLOURS["remain"], width=0.85)
        axes.set_xlabel(title)
        axes.set_ylabel("% of samples")

    return _png(paint, 3.2)


def _columns(axes: Any, names: Sequence[str], counts: Sequence[int], title: str) -> None:
    axes.bar(names, counts, color=COLOURS["remain"], width=0.85)
    axes.set_xlabel(title)
    axes.set_ylabel("images")


def _tails(axes: Any, classes: Sequence[Mapping[str, Any]]) -> None:
    """Images of each class by its rank, a line a source."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    for entry in classes:
        images = [count for _, count in entry["classes"]]
        axes.plot(range(1, len(images) + 1), images, marker=".", label=_plain(entry["source"]))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank of the class")
    axes.set_ylabel("images (logarithmic)")
    axes.legend(frameon=False)


def _world(axes: Any, values: Mapping[str, float], title: str) -> None:
    """UTM zones shaded by their values, on a map of true areas."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import LogNorm

    low, high = min(values.values()), max(values.values())
    land = PolyCollection(worldmap.coasts(), facecolors="#e8ebe9", edgecolors="#8a8f98", linewidths=0.3)
    zones = PolyCollection([worldmap.zone_outline(zone) for zone in values], cmap="viridis_r", alpha=0.85)
    zones.set_norm(LogNorm(low, high if high > low else 2 * low))
    zones.set_array(list(values.values()))
    rim = PolyCollection([worldmap.globe_outline()], facecolors="none", edgecolors="#8a8f98", linewidths=0.6)
    for shapes in (land, zones, rim):
        axes.add_collection(shapes)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.autoscale_view()
    place: dict[str, Any] = {"orientation": "horizontal", "shrink": 0.6, "aspect": 45, "pad": 0.02}
    ticks = worldmap.breaks(list(values.values()))
    axes.figure.colorbar(zones, ax=axes, ticks=ticks, format="{x:g}", label=title, **place).minorticks_off()


def _scores(score: Mapping[str, Any], title: str) -> bytes:
    def paint(axes: Any) -> None:
        axes.stairs(score["counts"], score["edges"], fill=True, color=COLOURS["remain"])
        if score["threshold"] is not None:
            axes.axvline(
                score["threshold"], color=COLOURS["invalid_image"], label=f"threshold {score['threshold']:.4g}"
            )
            axes.legend(frameon=False)
        axes.set_xlabel(title)
        axes.set_ylabel("images")

    return _png(paint, 3.2)


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")
