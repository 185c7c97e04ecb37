"""What is true of a tile, out of what is known of its scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.scenes.shots import Shot

VISIBLE = 0.5
"""Share of an object that a tile must show, or of the tile that the object must fill, to be in it."""
DERIVED = ("country", "country_code", "place", "place_km", "utm_zone", "season")
"""Facts of a place, which a tile whose own place is known does not take over from its scene."""

Object = Mapping[str, Any]


def zooms(shot: Shot) -> tuple[float, float]:
    """Pixels of the image for each pixel of its file, across and down."""
    width, height = shot.verdict.width, shot.verdict.height
    whole = shot.window[2:] if shot.window else shot.whole
    return (width / whole[0], height / whole[1]) if whole and width and height else (1.0, 1.0)


def of_tile(facts: dict[str, Any], shot: Shot) -> dict[str, Any]:
    """The facts of a tile: its scene's, but for objects and labels of what it does not show, and for its own place.

    Labels stay where no object is known: they are the scene's.
    """
    found = {name: value for name, value in facts.items() if "latitude" not in shot.facts or name not in DERIVED}
    if facts.get("objects"):
        found["objects"] = [cut for each in facts["objects"] if (cut := _cut(each, shot))]
        if not found["objects"]:
            found["labels"] = None
    return found


def joined(parts: Sequence[Mapping[str, Any]]) -> str:
    """The caption that parts make up."""
    return " ".join(part["text"] for part in parts)


def told_of_tile(
    captions: Sequence[dict[str, str]], parts: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """(captions, parts of the first) less what was made of the whole image's facts, which may not be the tile's."""
    own = [part for part in parts if part["origin"] != "metadata"]
    if parts and own:
        short = {"text": joined(own), "origin": own[0]["origin"]}
        captions = [entry | short if entry["text"] == joined(parts) else entry for entry in captions]
    told = {entry["text"]: entry for entry in reversed(captions) if entry["origin"] != "metadata"}
    return [told[text] for text in dict.fromkeys(entry["text"] for entry in captions) if text in told], own


def scaled(each: Object, across: float, down: float) -> dict[str, Any]:
    """An object's box in pixels of an image of another size."""
    factors = {"x": across, "width": across, "y": down, "height": down}
    return {name: value * factors[name] if name in factors else value for name, value in each.items()}


def _cut(each: Object, shot: Shot) -> dict[str, Any] | None:
    """The part of an object's box inside a tile, in the tile's pixels; None where there is little of it."""
    assert shot.window is not None
    x, y, width, height = shot.window
    left, top = max(each["x"] - x, 0.0), max(each["y"] - y, 0.0)
    right = min(each["x"] + each["width"] - x, float(width))
    bottom = min(each["y"] + each["height"] - y, float(height))
    seen = max(right - left, 0.0) * max(bottom - top, 0.0)
    if seen < VISIBLE * min(each["width"] * each["height"], width * height) or not seen:
        return None
    box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return scaled({"label": each.get("label"), **box}, *zooms(shot))
