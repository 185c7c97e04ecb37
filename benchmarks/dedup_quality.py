"""How well near hashes tell copies from other pictures, on real images, for every radius.

Every kind of copy (`benchmarks.copies`) is made of a sample of real images and looked for among all of them and all
copies of the kind. A pair of a copy and its original is true. A pair of a copy and another image is false, unless
that image is itself a twin of the original (the collections hold some). Then pairs of unrelated real images: whole
ones of different collections, and tiles with little in them, cut from different images.

    CURATION_REAL_DATA=… python -m benchmarks.dedup_quality [--each 4] [--plot docs/images/dedup-quality.svg]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.copies import copies
from stages.images import inspect, open_rgb
from stages.likeness import AGREE, ALONE, TEXTURE, Greys, is_plain, likeness
from stages.phash import FLAT_DEVIATION, ORIENTATIONS, SIDE, orientation_hashes, thumbnail
from stages.turned import pairs_between

COLLECTIONS = ("rs/aid", "rs/hurricane", "rs/ucm", "photo/intel", "photo/flickr8k", "photo/imagenet_small", "dedup")
COPIED = ("rs/aid", "rs/hurricane", "rs/ucm", "photo/flickr8k", "photo/imagenet_small")
ENDINGS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp"])
RADII = range(0, 9, 2)
"""A hash has as many ones as zeros, so two differ by an even number of bits: odd radii find nothing more."""
TILES = 4
"""Tiles a side that images are cut into for pictures with little in them."""
CALM = 14.0
"""Standard deviation of grey levels below which a tile is taken."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Pictures:
    """Images as dedup sees them."""

    names: Sequence[str]
    """What two unrelated pictures do not share."""
    greys: Greys

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """(n, 8)."""
        return orientation_hashes(self.greys)

    @cached_property
    def plain(self) -> NDArray[np.bool_]:
        """(n,) little texture."""
        return is_plain(self.greys)

    @cached_property
    def deviation(self) -> NDArray[np.float64]:
        """(n,) standard deviation of the grey levels."""
        return self.greys.reshape(len(self.greys), -1).std(axis=1)


@dataclass(frozen=True)
class Found:
    """Pairs of pictures with near hashes."""

    left: Indices
    right: Indices
    bits: NDArray[np.uint8]
    confirmed: NDArray[np.bool_]
    """The hash alone decides, or the thumbnails agree."""
    true: NDArray[np.bool_]

    def count(self, radius: int, true: bool, confirm: bool) -> int:
        """Pairs within a radius."""
        return int(((self.bits <= radius) & (self.true == true) & (self.confirmed | (not confirm))).sum())


def main() -> None:
    args = _arguments()
    paths = {name: list(_images(args.data / name)) for name in COLLECTIONS}
    real = _distinct([path for group in paths.values() for path in group], args.data)
    sample = [path for name in COPIED for path in paths[name][:: args.each if len(paths[name]) > 100 else 1]]
    kinds = _copies(sample, args.data)
    print(f"{len(real.names):,} different real images, {len(sample):,} of them copied in {len(kinds)} ways\n")
    results = {
        orientations: {kind: search(copied, real, orientations) for kind, copied in kinds.items()}
        for orientations in (1, ORIENTATIONS)
    }
    for orientations, found in results.items():
        _show_kinds(found, len(sample), orientations)
    _show_unrelated(real, _tiles(paths["rs/aid"] + paths["rs/hurricane"]))
    if args.plot:
        _plot(args.plot, results, len(sample))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("CURATION_REAL_DATA"), help="real images")
    parser.add_argument("--each", type=int, default=4, help="every n-th image is copied")
    parser.add_argument("--plot", type=Path, help="write a plot of the recalls")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name a folder of real images with --data or CURATION_REAL_DATA")
    return args


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS)


def _distinct(paths: Sequence[Path], data: Path) -> Pictures:
    """Images with different bytes that have a hash."""
    seen: dict[str, tuple[str, bytes]] = {}
    for path in paths:
        verdict = inspect(path.read_bytes())
        if verdict.phash is not None and verdict.thumbnail is not None:
            seen.setdefault(verdict.sha256, (str(path.relative_to(data)), verdict.thumbnail))
    return _pictures(list(seen.values()))


def _pictures(found: Sequence[tuple[str, bytes]]) -> Pictures:
    greys = np.frombuffer(b"".join(grey for _, grey in found), np.uint8).reshape(-1, SIDE, SIDE)
    return Pictures([name for name, _ in found], greys)


def _copies(sample: Sequence[Path], data: Path) -> dict[str, Pictures]:
    """The copies of each kind, named as their originals."""
    found: dict[str, list[tuple[str, bytes]]] = {}
    for path in sample:
        for kind, body in copies(open_rgb(path.read_bytes())).items():
            verdict = inspect(body)
            if verdict.phash is not None and verdict.thumbnail is not None:
                found.setdefault(kind, []).append((str(path.relative_to(data)), verdict.thumbnail))
    return {kind: _pictures(entries) for kind, entries in found.items()}


def _tiles(paths: Sequence[Path]) -> Pictures:
    """Tiles of little texture, named by their image; images with the same bytes count once."""
    from PIL import Image

    found, seen = [], set()
    for path in paths:
        grey = np.asarray(open_rgb(path.read_bytes()).convert("L"))
        if grey.tobytes() not in seen:
            seen.add(grey.tobytes())
            side = min(grey.shape) // TILES
            for at in range(TILES * TILES):
                row, column = at // TILES * side, at % TILES * side
                tile = thumbnail(Image.fromarray(grey[row : row + side, column : column + side]))
                if FLAT_DEVIATION <= tile.std() < CALM:
                    found.append((str(path), tile.tobytes()))
    return _pictures(found)


def search(copied: Pictures, real: Pictures, orientations: int) -> Found:
    """Pairs of copies and real images within the greatest radius."""
    left, right = near(copied, real, orientations)
    pairs = judged(copied, left, real, right, orientations)
    place = {name: number for number, name in enumerate(real.names)}
    own = np.array([place.get(name, -1) for name in copied.names])[left]  # −1: its bytes have another name
    true = own == right
    for n in np.flatnonzero(~true):
        true[n] = _are_twins(real, int(own[n]), int(right[n]), orientations)
    best: dict[int, int] = {}
    for n in np.lexsort((~pairs.confirmed, pairs.bits)):
        best.setdefault(int(left[n]) if true[n] else -1 - int(n), int(n))  # a copy is found once, however many show it
    once = np.array(sorted(best.values()), np.int64)
    return Found(left[once], right[once], pairs.bits[once], pairs.confirmed[once], true[once])


def _are_twins(real: Pictures, one: int, other: int, orientations: int) -> bool:
    """Whether two originals show the same picture."""
    alike = likeness(real.greys[one], real.greys[other][None], orientations)
    return one < 0 or bool(alike[0] >= AGREE)


def near(some: Pictures, others: Pictures, orientations: int) -> tuple[Indices, Indices]:
    """Pictures with near hashes: of some as they stand, of others in any of the orientations."""
    upright, views = some.hashes[:, 0], others.hashes[:, :orientations]
    left, right = pairs_between(np.unique(upright), np.unique(views), max(RADII))
    pairs = {
        (int(a), int(b))
        for one, other in zip(left, right, strict=True)
        for a in np.flatnonzero(upright == one)
        for b in np.flatnonzero((views == other).any(axis=1))
    }
    found = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def judged(some: Pictures, left: Indices, others: Pictures, right: Indices, orientations: int) -> Found:
    """The pairs with their distances, and whether dedup would take them for copies; all as if false."""
    bits = np.bitwise_count(some.hashes[left, :1] ^ others.hashes[right, :orientations]).min(axis=1)
    ask = (bits > ALONE) | some.plain[left] | others.plain[right]
    agree = np.ones(len(left), bool)
    for n in np.flatnonzero(ask):
        agree[n] = likeness(some.greys[left[n]], others.greys[right[n]][None], orientations)[0] >= AGREE
    return Found(left, right, bits, agree, np.zeros(len(left), bool))


def unrelated(pictures: Pictures, chosen: Indices, orientations: int, owners: Sequence[str]) -> Found:
    """Pairs of pictures of different owners."""
    some = Pictures([owners[n] for n in chosen], pictures.greys[chosen])
    left, right = near(some, some, orientations)
    keep = [a < b and some.names[a] != some.names[b] for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    return judged(some, left[keep], some, right[keep], orientations)


def _show_kinds(found: dict[str, Found], images: int, orientations: int) -> None:
    """A table: recall, with the precision below 1, for each radius without and with confirmation."""
    print(f"### orientations: {orientations}\n")
    print(f"| copy | {' | '.join(f'r = {radius}' for radius in RADII)} |")
    print(f"| --- | {' | '.join('---' for _ in RADII)} |")
    for kind, pairs in found.items():
        print(f"| {kind} | {' | '.join(_cell(pairs, radius, images) for radius in RADII)} |")
    print()


def _cell(pairs: Found, radius: int, images: int) -> str:
    """Recall, and false pairs where there are any: with confirmation; then without, where that differs."""
    texts = []
    for confirm in (True, False):
        true, false = (pairs.count(radius, kind, confirm) for kind in (True, False))
        precision = true / (true + false) if true + false else 1.0
        texts.append(f"{100 * true / images:.1f}" + (f" ({precision:.3f})" if false else ""))
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} · {texts[1]}"


def _show_unrelated(real: Pictures, tiles: Pictures) -> None:
    """A table: pairs of unrelated pictures within each radius, without and with confirmation."""
    print("### pairs of unrelated pictures: near by hash / left after confirmation\n")
    print(f"| pictures | n | orientations | {' | '.join(f'r = {radius}' for radius in RADII)} |")
    print(f"| --- | --- | --- | {' | '.join('---' for _ in RADII)} |")
    collections = ["/".join(name.split("/")[:2]) for name in real.names]
    groups: list[tuple[str, Pictures, Indices, Sequence[str]]] = [
        ("images of different collections", real, np.arange(len(real.names)), collections)
    ]
    for low, high in ((1, 4), (4, 8), (8, TEXTURE), (TEXTURE, CALM)):
        chosen = np.flatnonzero((tiles.deviation >= low) & (tiles.deviation < high))
        groups.append((f"tiles, deviation {low:g} to {high:g}", tiles, chosen, tiles.names))
    for title, pictures, chosen, owners in groups:
        for orientations in (1, ORIENTATIONS):
            found = unrelated(pictures, chosen, orientations, owners)
            cells = [f"{found.count(r, False, False)} / {found.count(r, False, True)}" for r in RADII]
            print(f"| {title} | {len(chosen):,} | {orientations} | {' | '.join(cells)} |")


def _plot(path: Path, results: dict[int, dict[str, Found]], images: int) -> None:
    """Recall by radius: one line a kind of copy, one panel a number of orientations."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "dedup"
    figure, panels = plt.subplots(1, len(results), figsize=(11, 4.6), sharey=True)
    for panel, (orientations, found) in zip(panels, results.items(), strict=True):
        colours = plt.colormaps["tab20"].colors  # type: ignore[attr-defined]
        for number, (kind, pairs) in enumerate(found.items()):
            recall = [100 * pairs.count(radius, True, True) / images for radius in RADII]
            panel.plot(RADII, recall, color=colours[number], marker="o", markersize=3, label=kind)
        panel.set(title=f"orientations: {orientations}", xlabel="radius, bits", xticks=list(RADII), ylim=(-2, 102))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("copies found, %")
    panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
