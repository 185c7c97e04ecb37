"""Turned copies, confirmation by thumbnails and views of one place agree with a plain reading of their definitions."""

from __future__ import annotations

import datetime
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from stages.dedup import DedupConfig, DedupStage
from stages.likeness import AGREE, ALONE, Greys, is_plain, likeness, oriented
from stages.phash import orientation_hashes, phash
from stages.schema import extend
from tests.harness import give_input, read_output, run_stage
from tests.stages.test_dedup import SCHEMA, SOURCES, row, total_order

PLACED = extend(
    SCHEMA,
    pa.schema([("location", pa.string()), ("acquired_at", pa.timestamp("us", tz="UTC")), ("modality", pa.string())]),
)
DAYS = [datetime.datetime(2020, 5, day, tzinfo=datetime.UTC) for day in (1, 2)]


def smooth(seed: int, spread: float) -> np.ndarray:
    """A smooth random picture of the given standard deviation around 120."""
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9), np.uint8)
    levels = np.asarray(Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC), np.float64)
    return 120 + (levels - levels.mean()) * spread / levels.std()


def grain(levels: np.ndarray, seed: int, amount: float) -> Greys:
    """The picture under noise, which changes fine structure and hardly the hash."""
    noise = np.random.default_rng(seed).normal(0, 1, (32, 32)) * amount
    return np.clip(np.rint(levels + noise), 0, 255).astype(np.uint8)


def pictured(number: int, grey: Greys, source: str = "first", **values: Any) -> dict[str, Any]:
    """A row with a thumbnail and its hash."""
    url = values.pop("url", f"http://a.org/{number}")
    return row(source, url, f"view {number}", phash=phash(grey), thumbnail=grey.tobytes(), **values)


def run(rows: list[dict[str, Any]], root: Path, parts: int = 3, **config: Any) -> dict[str, dict[str, Any]]:
    """Output rows by key."""
    give_input(root, "download", [pa.Table.from_pylist(rows[part::parts], schema=PLACED) for part in range(parts)])
    written = run_stage(DedupStage(DedupConfig(**config)), root, "download", sources=SOURCES)
    return {each["key"]: each for each in read_output(root, written).to_pylist()}


class Definition:
    """Which rows match, of all with all."""

    def __init__(self, rows: list[dict[str, Any]], radius: int, orientations: int = 1, scope: str = "image") -> None:
        self.rows = sorted(rows, key=total_order)
        self.radius, self.orientations, self.scope = radius, orientations, scope
        self.greys = np.stack([np.frombuffer(each["thumbnail"], np.uint8).reshape(32, 32) for each in self.rows])
        hashes = orientation_hashes(self.greys)[:, :orientations]
        across = np.bitwise_count(hashes[:, None, :1] ^ hashes[None, :, :]).min(axis=2)
        self.bits = np.minimum(across, across.T)
        self.plain = is_plain(self.greys)

    def linked(self, a: int, b: int) -> bool:
        """Whether two rows belong to one component by themselves."""
        one, other = self.rows[a], self.rows[b]
        placed = one.get("location") is not None and one.get("location") == other.get("location")
        return bool(placed or one["sha256"] == other["sha256"] or self.bits[a, b] <= self.radius)

    def twins(self, later: int, earlier: int) -> bool:
        """Whether a row counts as a copy of an earlier one."""
        one, other = self.rows[later], self.rows[earlier]
        if one["sha256"] == other["sha256"]:
            return True
        if self.bits[later, earlier] > self.radius or self._other_views(one, other):
            return False
        if self.bits[later, earlier] <= ALONE and not self.plain[later] and not self.plain[earlier]:
            return True
        found = likeness(self.greys[later], self.greys[earlier][None], self.orientations)
        return bool(found[0] >= AGREE)

    def _other_views(self, one: dict[str, Any], other: dict[str, Any]) -> bool:
        if self.scope == "view" or one.get("location") is None or one["location"] != other.get("location"):
            return False
        return any(one.get(name) != other.get(name) for name in ("acquired_at", "modality"))

    def clusters(self) -> dict[str, str]:
        """Key to the key of what stands for it."""
        kept: list[int] = []
        found = {}
        for number, this in enumerate(self.rows):
            first = next((other for other in kept if self.twins(number, other)), number)
            found[this["key"]] = self.rows[first]["key"]
            if first == number:
                kept.append(number)
        return found

    def components(self) -> dict[str, str]:
        """Key to the first key of its component, by flooding."""
        found: dict[str, str] = {}
        for start, first in enumerate(self.rows):
            queue = [start] if first["key"] not in found else []
            while queue:
                at = queue.pop()
                if self.rows[at]["key"] not in found:
                    found[self.rows[at]["key"]] = first["key"]
                    queue += [other for other in range(len(self.rows)) if self.linked(at, other)]
        return found


def crowd(seed: int, count: int, turn: bool) -> list[dict[str, Any]]:
    """Copies of few pictures: some turned, some with other fine structure, some of little texture, some in places."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        levels = smooth(rng.randrange(count // 8), rng.choice([4, 8, 30]))
        grey = grain(levels, number, rng.choice([0.0, 0.5, 3.0, 12.0]))
        if turn:
            grey = np.ascontiguousarray(oriented(grey)[rng.randrange(8)])
        place = {"location": f"place {rng.randrange(6)}", "acquired_at": rng.choice(DAYS), "modality": "rgb"}
        digest = f"{rng.randrange(count * 4):064x}"
        given = place if rng.random() < 0.5 else {}
        rows.append(pictured(number, grey, rng.choice(SOURCES), sha256=digest, width=rng.randrange(1, 9), **given))
    return rows


@pytest.mark.parametrize("radius", [0, 2, 3, 6, 8])
@pytest.mark.parametrize("orientations", [1, 8])
def test_agrees_with_its_definition(radius: int, orientations: int, tmp_path: Path) -> None:
    rows = crowd(radius, 240, turn=orientations == 8)
    found = run(rows, tmp_path, radius=radius, orientations=orientations)
    defined = Definition(rows, radius, orientations)
    assert {key: each["cluster"] for key, each in found.items()} == defined.clusters()
    assert {key: each["component"] for key, each in found.items()} == defined.components()
    assert any(each["reason"] == "duplicate_image" for each in found.values())


def test_turned_copies_are_found_in_partitions_too(tmp_path: Path) -> None:
    rows = crowd(7, 240, turn=True)
    whole = run(rows, tmp_path / "whole", radius=3, orientations=8)
    assert run(rows, tmp_path / "dealt", radius=3, orientations=8, partition_rows=50) == whole


def test_every_orientation_of_a_picture_is_a_twin_only_when_asked_for(tmp_path: Path) -> None:
    grey = grain(smooth(5, 40), 0, 2.0)
    rows = [pictured(n, np.ascontiguousarray(view), width=100 - n) for n, view in enumerate(oriented(grey))]
    found = run(rows, tmp_path / "eight", orientations=8)
    assert {each["cluster"] for each in found.values()} == {rows[0]["key"]}
    apart = run(rows, tmp_path / "one")
    assert {each["reason"] for each in apart.values()} == {None}


def test_equal_hashes_of_little_texture_need_equal_thumbnails(tmp_path: Path) -> None:
    levels = smooth(11, 5)
    calm = pictured(0, grain(levels, 0, 0.0), width=900)
    copy = pictured(1, grain(levels, 1, 0.3), width=800)
    other = pictured(2, grain(levels, 2, 5.0), width=700)
    assert all((calm["phash"] ^ each["phash"]).bit_count() <= 8 for each in (copy, other))
    found = run([calm, copy, other], tmp_path, radius=8)
    assert [found[each["key"]]["reason"] for each in (calm, copy, other)] == [None, "duplicate_image", None]
    assert {each["component"] for each in found.values()} == {calm["key"]}


def test_without_a_thumbnail_the_hash_decides(tmp_path: Path) -> None:
    levels = smooth(11, 5)
    rows = [pictured(n, grain(levels, n, 4.0)) for n in range(2)]
    assert {each["reason"] for each in run(rows, tmp_path / "with", radius=8).values()} == {None}
    bare = [{**each, "thumbnail": None} for each in rows]
    reasons = [str(each["reason"]) for each in run(bare, tmp_path / "without", radius=8).values()]
    assert sorted(reasons) == ["None", "duplicate_image"]


@pytest.mark.parametrize(
    ("other", "linked"),
    [
        ({"acquired_at": DAYS[1]}, True),
        ({"modality": "msrgb"}, True),
        ({"url": "airport/airport_0/airport_0_0_msrgb.jpg"}, True),
        ({}, False),
        ({"location": "elsewhere", "acquired_at": DAYS[1]}, False),
    ],
)
def test_other_views_of_a_place_are_linked_and_stay(other: dict[str, Any], linked: bool, tmp_path: Path) -> None:
    grey = grain(smooth(3, 40), 0, 2.0)
    place: dict[str, Any] = {"location": "airport_0", "acquired_at": DAYS[0], "modality": "rgb"}
    first = pictured(0, grey, width=900, url="airport/airport_0/airport_0_0_rgb.jpg", **place)
    second = pictured(1, grey, **{"url": "airport/airport_0/airport_0_1_rgb.jpg", **place, **other})
    found = run([first, second], tmp_path / "image")
    assert found[second["key"]]["reason"] == (None if linked else "duplicate_image")
    assert found[second["key"]]["component"] == first["key"]
    by_view = run([first, second], tmp_path / "view", scope="view")
    assert by_view[second["key"]]["reason"] == "duplicate_image"


def test_other_views_with_the_same_bytes_are_copies(tmp_path: Path) -> None:
    place = {"location": "port_3", "sha256": "ab" * 32}
    greys = [grain(smooth(3, 40), 0, 2.0), grain(smooth(4, 40), 0, 2.0)]
    rows = [pictured(n, greys[n], acquired_at=DAYS[n], **place) for n in range(2)]
    assert sorted(str(each["reason"]) for each in run(rows, tmp_path).values()) == ["None", "duplicate_bytes"]


def test_rows_of_one_place_share_a_component_without_looking_alike(tmp_path: Path) -> None:
    rows = [pictured(n, grain(smooth(n, 40), n, 2.0), location="port_3") for n in range(3)]
    found = run(rows, tmp_path)
    assert {each["reason"] for each in found.values()} == {None}
    assert len({each["component"] for each in found.values()}) == 1


def test_a_thousand_calm_pictures_with_one_hash(tmp_path: Path) -> None:
    levels = smooth(21, 6)
    rows = [pictured(n, grain(levels, n, 5.0), width=2000 - n) for n in range(1000)]
    for each in rows:
        each["phash"] = rows[0]["phash"]
    rows += [{**rows[0], "key": f"{n:032x}", "url": f"http://b.org/{n}", "width": 9} for n in range(20)]
    for each in rows[1000:]:
        each["sha256"] = each["key"] * 2
    found = run(rows, tmp_path)
    assert [found[each["key"]]["cluster"] for each in rows[1000:]] == [rows[0]["key"]] * 20
    assert sum(each["reason"] is None for each in found.values()) == 1000
