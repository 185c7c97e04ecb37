"""Semantic localisation (SeLo): where in a large scene does a sentence hold, and how well a model points there.

After Yuan et al., "Learning to evaluate performance of multi-modal semantic localization" (TGRS 2022): windows of three
sizes are scored against the sentence, scores are spread over pixels, and the map is compared with drawn regions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Polygon = NDArray[np.int64]
"""(vertices, 2): x and y in px."""

STEPS = (256, 512, 768)
"""Sides of the windows, which are also their strides."""
MEDIAN = 251
"""Side of the median filter over the map."""
SMOOTHING = 50
PASSES = 5
"""Box filters of that side, one after the other, before peaks are looked for."""
NEIGHBOURHOOD = 1000
"""A peak is the highest of a square of this side."""
PEAK = 0.5
"""Peaks of less than this share of the map's range are left out."""
REACH = 1.5
"""A region's reach, in mean distances of its vertices from their centre."""
FIGURES = ("Rsu", "Ras", "Rda", "Rmi")


@dataclass(frozen=True, order=True)
class Window:
    """Rows top to bottom, columns left to right, in px; ends not included."""

    top: int
    bottom: int
    left: int
    right: int


def windows(height: int, width: int, steps: Sequence[int] = STEPS) -> list[Window]:
    """All windows of an image, each once: grids that begin at (0, 0) and at half a step, the last ones moved inside.

    An image smaller than a step has windows as large as itself.
    """
    found = set()
    for step in steps:
        for start in (0, step // 2):
            rows, columns = _spans(height, step, start), _spans(width, step, start)
            found |= {Window(top, bottom, left, right) for top, bottom in rows for left, right in columns}
    return sorted(found)


def _spans(length: int, step: int, start: int) -> list[tuple[int, int]]:
    starts = range(start, length, step) or range(1)
    return [(max(0, min(at, length - step)), min(at + step, length)) for at in starts]


def spread(
    shape: tuple[int, int], where: Sequence[Window], scores: NDArray[np.floating]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """The mean score of the windows over each pixel; together they cover the image.

    It is constant between the windows' edges, so a coarse grid holds it: (mean of each cell, the cells' heights and
    their widths in px), which `enlarged` makes a map of.
    """
    rows = np.unique([0, shape[0], *(w.top for w in where), *(w.bottom for w in where)])
    columns = np.unique([0, shape[1], *(w.left for w in where), *(w.right for w in where)])
    sums = np.zeros((len(rows) - 1, len(columns) - 1))
    counts = np.zeros_like(sums)
    for window, score in zip(where, scores.astype(np.float64), strict=True):
        top, bottom = np.searchsorted(rows, [window.top, window.bottom])
        left, right = np.searchsorted(columns, [window.left, window.right])
        sums[top:bottom, left:right] += score
        counts[top:bottom, left:right] += 1
    return sums / counts, np.diff(rows), np.diff(columns)


def enlarged(grid: NDArray[Any], heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[Any]:
    """(sum of heights, sum of widths): every cell of a grid at its size."""
    return np.repeat(np.repeat(grid, heights, axis=0), widths, axis=1)


def heat_map(shape: tuple[int, int], where: Sequence[Window], scores: NDArray[np.floating]) -> Bytes:
    """(height, width), 0 to 255: the spread scores from lowest to highest, median-filtered, through JPEG and back.

    The published measure writes its maps as JPEG and judges what it reads again; so does this one.
    """
    import cv2

    grid, heights, widths = spread(shape, where, scores)
    grid -= grid.min()
    highest = grid.max()
    grey = np.rint(grid * (255.0 / highest if highest > 0 else 0.0)).astype(np.uint8)
    _, encoded = cv2.imencode(".jpg", cv2.medianBlur(enlarged(grey, heights, widths), MEDIAN))
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), dtype=np.uint8)


def region_mask(shape: tuple[int, int], regions: Sequence[Polygon]) -> NDArray[np.bool_]:
    """(height, width): the union of the polygons, their outlines included."""
    import cv2

    mask = np.zeros(shape, dtype=np.uint8)
    for region in regions:
        cv2.fillPoly(mask, [region.astype(np.int32)], 1)
    return mask.astype(bool)


def peaks(heat: Bytes) -> Floats:
    """(peaks, 2): x and y of the smoothed map's highest places, highest first, those of less than `PEAK` left out."""
    import cv2
    from scipy import ndimage

    smooth = heat
    for _ in range(PASSES):
        smooth = np.asarray(cv2.boxFilter(smooth, -1, (SMOOTHING, SMOOTHING)), dtype=np.uint8)
    highest = (ndimage.maximum_filter(smooth, size=NEIGHBOURHOOD) == smooth) & (smooth > 0)
    labels, found = ndimage.label(highest, structure=np.ones((3, 3)))
    if not found:
        return np.zeros((0, 2))
    rows, columns = np.nonzero(highest)
    of = labels[rows, columns] - 1
    centres = np.stack([np.bincount(of, rows), np.bincount(of, columns)], axis=1) / np.bincount(of)[:, None]
    heights = heat[tuple(np.floor(centres).astype(int).T)] / 255.0
    order = np.argsort(-heights, kind="stable")
    return centres[order][heights[order] >= PEAK][:, ::-1]


def measures(heat: Bytes, regions: Sequence[Polygon]) -> dict[str, float]:
    """Rsu, Ras, Rda and Rmi of a map; `regions` has one polygon at least.

    Rsu (higher is better) is the share of the map's mass in the regions against their area, Ras (lower) how far peaks
    lie from regions, Rda (higher) whether each region has one peak, and Rmi = 0.4 Rsu + 0.35 (1 - Ras) + 0.25 Rda.
    """
    share = _mass(heat, region_mask((heat.shape[0], heat.shape[1]), regions))
    distances = [_distances(region, peaks_) for peaks_ in [peaks(heat)] for region in regions]
    shift, focus = _shift(distances), float(np.mean([_focus(*one) for one in distances]))
    return {"Rsu": share, "Ras": shift, "Rda": focus, "Rmi": 0.4 * share + 0.35 * (1 - shift) + 0.25 * focus}


def _mass(heat: Bytes, mask: NDArray[np.bool_]) -> float:
    inside = heat[mask].sum(dtype=np.int64) / 255.0
    outside = heat.sum(dtype=np.int64) / 255.0 - inside
    area = int(mask.sum())
    return float(1 - np.exp(-0.707 * inside / (outside + 1e-7) * (mask.size - area) / area))


def _distances(region: Polygon, found: Floats) -> tuple[float, Floats, Floats]:
    """(reach, peaks within it, their distances from the region's centre), all in px."""
    centre = region.mean(axis=0).astype(int)
    reach = float(max(1, int(REACH * np.linalg.norm(region - centre, axis=1).mean())))
    away = np.linalg.norm(found - centre, axis=1)
    return reach, found[away <= reach], away[away <= reach]


def _shift(distances: Sequence[tuple[float, Floats, Floats]]) -> float:
    ratios = [away.mean() / reach if len(away) else 1.0 for reach, _, away in distances]
    return float(np.expm1(3 * np.mean(ratios)) / np.expm1(3))


def _focus(reach: float, near: Floats, _: Floats) -> float:
    count = len(near)
    if count <= 1:
        return float(count)
    scatter = np.linalg.norm(near - near.mean(axis=0), axis=1).mean()
    return float(0.5 * (1 - scatter / reach) + np.exp(-0.5 * (count + 2)))


def crops(image: Bytes, where: Sequence[Window], side: int = 256) -> Iterator[Bytes]:
    """Each window of an image (height, width, 3; BGR), bicubic to `side` px, through JPEG and back, as RGB."""
    import cv2

    for window in where:
        cut = image[window.top : window.bottom, window.left : window.right]
        _, encoded = cv2.imencode(".jpg", cv2.resize(cut, (side, side), interpolation=cv2.INTER_CUBIC))
        again = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), dtype=np.uint8)
        yield np.ascontiguousarray(again[:, :, ::-1])


def picture(image: Bytes, heat: Bytes, regions: Sequence[Polygon], longest: int = 1200) -> Bytes:
    """The map in colour over the image (BGR) with the regions' outlines, at most `longest` px on its longer side."""
    import cv2

    scale = min(1.0, longest / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    base = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    colours = cv2.applyColorMap(cv2.resize(heat, size, interpolation=cv2.INTER_AREA), cv2.COLORMAP_JET)
    drawn = cv2.addWeighted(base, 0.55, colours, 0.45, 0)
    outlines = [np.rint(region * scale).astype(np.int32) for region in regions]
    return np.asarray(cv2.polylines(drawn, outlines, True, (255, 255, 255), 2), dtype=np.uint8)
