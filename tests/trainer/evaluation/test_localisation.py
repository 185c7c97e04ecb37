from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from trainer.evaluation import localisation
from trainer.evaluation.localisation import Window

SQUARE = np.array([[600, 200], [800, 200], [800, 400], [600, 400]])


def blob(shape: tuple[int, int], *centres: tuple[int, int], width: float = 60.0) -> localisation.Bytes:
    """A map that is brightest at the given (x, y)."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    heat = np.zeros(shape)
    for x, y in centres:
        heat = np.maximum(heat, np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2)))
    return np.rint(255 * heat).astype(np.uint8)


def test_windows_cover_the_image_once_each_and_stay_inside() -> None:
    found = localisation.windows(1000, 600, steps=(256,))
    assert len(found) == len(set(found)) == 4 * 3 + 4 * 2 - 1, "both grids end in the same corner"
    assert {window.bottom - window.top for window in found} == {256}
    assert Window(744, 1000, 344, 600) in found
    assert Window(128, 384, 128, 384) in found
    small = localisation.windows(100, 900, steps=(768,))
    assert small == [Window(0, 100, 0, 768), Window(0, 100, 132, 900)]


def test_spread_agrees_with_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    where = localisation.windows(45, 70, steps=(16, 32))
    scores = rng.normal(size=len(where))
    plain = np.zeros((45, 70))
    for row in range(45):
        for column in range(70):
            over = [
                score
                for window, score in zip(where, scores, strict=True)
                if window.top <= row < window.bottom and window.left <= column < window.right
            ]
            plain[row, column] = sum(over) / len(over)
    assert np.abs(localisation.enlarged(*localisation.spread((45, 70), where, scores)) - plain).max() < 1e-6


def test_heat_map_is_highest_where_the_best_window_lies() -> None:
    where = localisation.windows(1024, 1024)
    scores = np.array([1.0 if min(w.right, w.bottom) > 900 else 0.0 for w in where])
    heat = localisation.heat_map((1024, 1024), where, scores)
    assert heat.shape == (1024, 1024)
    assert heat[960, 960] > 240
    assert heat[100, 100] < 10
    assert localisation.heat_map((300, 300), localisation.windows(300, 300, (256,)), np.ones(4))[0, 0] == 0


def by_pixels(heat: localisation.Bytes, regions: list[localisation.Polygon]) -> float:
    """Rsu, pixel by pixel in plain Python."""
    height, width = heat.shape
    mask = np.zeros((height, width), np.uint8)
    for region in regions:
        cv2.fillPoly(mask, [region.astype(np.int32)], 1)
    inside = total = area = 0.0
    for row in range(height):
        for column in range(width):
            p = heat[row, column] / 255
            total += p
            if mask[row, column]:
                inside += p
                area += 1
    return 1 - math.exp(-0.707 * (inside / (total - inside + 1e-7)) * ((height * width - area) / area))


def test_measures_agree_with_the_formulas_written_out() -> None:
    small = (SQUARE / 10).astype(np.int64)
    heat = blob((60, 100), (70, 30), width=8)
    assert localisation.measures(heat, [small])["Rsu"] == pytest.approx(by_pixels(heat, [small]), abs=1e-6)
    heat = blob((700, 1000), (720, 310))
    found = localisation.measures(heat, [SQUARE])
    (peak,) = localisation.peaks(heat)
    assert peak == pytest.approx([720, 310], abs=3)
    away, reach = math.dist(peak, (700, 300)), int(1.5 * math.dist((600, 200), (700, 300)))
    assert found["Ras"] == pytest.approx((math.exp(3 * away / reach) - 1) / (math.exp(3) - 1), abs=1e-6)
    assert found["Rda"] == 1
    assert found["Rmi"] == pytest.approx(0.4 * found["Rsu"] + 0.35 * (1 - found["Ras"]) + 0.25, abs=1e-9)


def test_two_peaks_in_a_region_and_none_in_another() -> None:
    wide = np.array([[0, 0], [2400, 0], [2400, 700], [0, 700]])
    heat = blob((700, 2400), (500, 350), (1900, 350))
    reach, near, _ = localisation._distances(wide, localisation.peaks(heat))
    assert len(near) == 2
    scatter = np.mean([math.dist(peak, near.mean(axis=0)) for peak in near])
    found = localisation.measures(heat, [wide])
    assert found["Rda"] == pytest.approx(0.5 * (1 - scatter / reach) + math.exp(-2), abs=1e-6)
    nothing = localisation.measures(np.zeros((700, 1000), np.uint8), [SQUARE])
    assert (nothing["Rsu"], nothing["Ras"], nothing["Rda"]) == (0, 1, 0)


def test_the_published_row_of_rmi_follows_from_the_other_three() -> None:
    assert pytest.approx(0.7447, abs=5e-5) == 0.4 * 0.7556 + 0.35 * (1 - 0.2580) + 0.25 * 0.7309


def test_crops_and_picture_have_their_sizes() -> None:
    image = np.zeros((300, 500, 3), np.uint8)
    image[:, :, 0] = 255
    (crop, *_) = localisation.crops(image, localisation.windows(300, 500, (256,)), side=64)
    assert crop.shape == (64, 64, 3)
    assert crop[32, 32, 2] > 250, "BGR becomes RGB"
    assert localisation.picture(image, image[:, :, 0], [SQUARE // 4], longest=250).shape == (150, 250, 3)
