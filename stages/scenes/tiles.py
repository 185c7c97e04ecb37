"""How a scene is cut into tiles: windows in its own pixels, and the size each is shown in."""

from __future__ import annotations

from collections.abc import Iterator

from stages.scenes.options import Tile

Box = tuple[int, int, int, int]
"""x, y, width, height."""


def windows(width: int, height: int, side: tuple[int, int], overlap: tuple[int, int]) -> Iterator[Box]:
    """Windows that cover an image row by row; the last of a row and of a column end at its border.

    Args:
        width: of the image, in its pixels.
        height: likewise.
        side: width and height of a window; smaller images are one window.
        overlap: shared with the neighbour to the right, and below.
    """
    for y in _starts(height, side[1], overlap[1]):
        for x in _starts(width, side[0], overlap[0]):
            yield x, y, min(side[0], width), min(side[1], height)


def _starts(length: int, side: int, overlap: int) -> list[int]:
    if length <= side:
        return [0]
    starts = list(range(0, length - side, side - overlap))
    return [*starts, length - side]


def sides(tile: Tile, pixel_m: tuple[float, float] | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """(side, overlap) of windows in the scene's pixels, for tiles whose pixels measure `target_gsd`.

    Args:
        tile: what is wanted.
        pixel_m: metres of a pixel of the scene, across and down; needed with `target_gsd`.
    """
    if tile.target_gsd is None or pixel_m is None:
        return (tile.size, tile.size), (tile.overlap, tile.overlap)
    scales = [tile.target_gsd / metres for metres in pixel_m]
    across, down = (max(1, round(tile.size * scale)) for scale in scales)
    shared_x, shared_y = (round(tile.overlap * scale) for scale in scales)
    return (across, down), (min(shared_x, across - 1), min(shared_y, down - 1))


def shown(box: Box, side: tuple[int, int], tile: Tile) -> tuple[int, int]:
    """(height, width) in pixels of what a window becomes: the tile's size, or less where the scene is smaller."""
    width, height = (max(1, round(tile.size * part / whole)) for part, whole in zip(box[2:], side, strict=True))
    return height, width
