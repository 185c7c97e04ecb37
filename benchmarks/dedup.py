"""Dedup beside FAISS and imagededup: the same hashes, the same pairs; then the whole stage on millions of rows.

    python -m benchmarks.dedup near [--hashes 1000000] [--radius 3] [--queries 20000] [--imagededup VENV/bin/python]
    python -m benchmarks.dedup far [--hashes 10000000] [--radius 3]
    python -m benchmarks.dedup stage [--rows 10000000] [--radius 2]
    python -m benchmarks.dedup phash FOLDER [--images 1000] [--imagededup VENV/bin/python]

Times are processor time of one core on all sides, so that other work on the machine counts for nobody; FAISS is told
to use one thread, ours has one. imagededup has an environment of its own, whose Python is named.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]

SEARCH = """
import json, sys, time
import numpy as np
from imagededup.handlers.search.bktree import BKTree
from imagededup.handlers.search.brute_force_cython import BruteForceCython
hashes = {str(n): f"{value:016x}" for n, value in enumerate(np.load(sys.argv[1]).tolist())}
radius, queries = int(sys.argv[2]), int(sys.argv[3])
distance = lambda a, b: (int(a, 16) ^ int(b, 16)).bit_count()
taken, found = {}, {}
for name, make in (("brute", lambda: BruteForceCython(hashes, distance)), ("bktree", lambda: BKTree(hashes, distance))):
    began = time.process_time()
    index = make()
    built = time.process_time() - began
    began = time.process_time()
    found[name] = sorted(
        [int(other), n] for n in range(queries) for other, _ in index.search(query=hashes[str(n)], tol=radius)
        if int(other) < n
    )
    taken[name] = [built, time.process_time() - began]
print(json.dumps({"seconds": taken, "pairs": found}))
"""
ENCODE = """
import json, sys, time
import numpy as np
from PIL import Image
from imagededup.methods import PHash
paths, encoder = json.loads(sys.stdin.read()), PHash()
def timed(inputs):
    for each in inputs[:20]:
        encoder.encode_image(**each)
    began = time.process_time()
    for each in inputs:
        encoder.encode_image(**each)
    return time.process_time() - began
pixels = [{"image_array": np.asarray(Image.open(path).convert("RGB"))} for path in paths]
print(json.dumps({"whole": timed([{"image_file": path} for path in paths]), "alone": timed(pixels)}))
"""


def main() -> None:
    args = _arguments()
    {"near": near, "far": far, "stage": stage, "phash": phash, "child": child}[args.part](args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["near", "far", "stage", "phash", "child"])
    parser.add_argument("folder", nargs="?", help="images for phash")
    parser.add_argument("--hashes", type=float, default=1e6)
    parser.add_argument("--rows", type=float, default=1e7)
    parser.add_argument("--radius", type=int, default=3)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--partition-rows", type=float, default=5e7)
    parser.add_argument("--imagededup", metavar="PYTHON")
    parser.add_argument("--flat-only", action="store_true", help="leave out FAISS's slower-to-build index")
    return parser.parse_args()


def planted(count: int, seed: int = 1) -> Hashes:
    """Distinct random hashes in random order, every tenth with one to three bits of another flipped."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, count - count // 10, dtype=np.uint64)
    twins = base[rng.integers(0, len(base), count // 10)]
    for flips in range(3):
        some = rng.random(len(twins)) < (1, 0.6, 0.3)[flips]
        twins = np.where(some, twins ^ (np.uint64(1) << rng.integers(0, 64, len(twins)).astype(np.uint64)), twins)
    return rng.permutation(np.unique(np.concatenate([base, twins])))


def near(args: argparse.Namespace) -> None:
    """All pairs at once: ours whole, the others whole where they can be and else by their first queries."""
    from stages.hamming import pairs_within

    hashes = planted(int(args.hashes))
    _timed(lambda: pairs_within(hashes[:1000], args.radius))
    ours = []
    for _ in range(args.runs):
        (i, j), seconds = _timed(lambda: pairs_within(hashes, args.radius))
        ours.append(seconds)
    mean = statistics.median(ours)
    pairs = set(zip(i.tolist(), j.tolist(), strict=True))
    print(f"{len(hashes):,} hashes, radius {args.radius}: {len(pairs):,} pairs; ours {mean:.2f} s ({_range(ours)})")
    names = ["IndexBinaryFlat"] if args.flat_only else ["IndexBinaryFlat", "IndexBinaryMultiHash"]
    for name in names:
        _, found, seconds = _faiss(name, hashes, args.radius, args.queries)
        expected = {pair for pair in pairs if pair[1] < args.queries}
        print(
            f"FAISS {name}: {seconds:.1f} s from {args.queries:,} queries, {seconds / mean:.0f} times ours, "
            f"same pairs: {found == expected}"
        )
    if args.imagededup:
        _against_imagededup(args, hashes, mean, pairs)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds of processor time)."""
    began = time.process_time()
    return work(), time.process_time() - began


def _range(values: list[float]) -> str:
    return f"{min(values):,.2f}–{max(values):,.2f}"


def _faiss(name: str, hashes: Hashes, radius: int, queries: int) -> tuple[float, set[tuple[int, int]], float]:
    """(seconds to build, pairs whose later row is among the queries, seconds that all queries would take)."""
    import faiss

    faiss.omp_set_num_threads(1)
    octets = np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryFlat(64) if name == "IndexBinaryFlat" else faiss.IndexBinaryMultiHash(64, 4, 16)
    _, built = _timed(lambda: index.add(octets))
    # FAISS finds distances strictly below the flat index's radius; the hash index probes by flips within its bands.
    strict = radius + 1
    (limits, _, labels), seconds = _timed(lambda: index.range_search(octets[:queries], strict))
    of_query = np.repeat(np.arange(queries), np.diff(limits.astype(np.int64)))
    earlier = labels < of_query
    found = set(zip(labels[earlier].tolist(), of_query[earlier].tolist(), strict=True))
    return built, found, built + seconds * len(hashes) / queries


def _against_imagededup(args: argparse.Namespace, hashes: Hashes, ours: float, pairs: set[tuple[int, int]]) -> None:
    """Its two searches among parts of the hashes; a query's time grows with a power of their number, seen in two."""
    sizes, queries = (20_000, 80_000), min(1000, args.queries)
    expected = {pair for pair in pairs if pair[1] < queries}
    found = []
    for size in sizes:
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            np.save(file, hashes[:size])
            file.flush()
            found.append(_run([args.imagededup, "-c", SEARCH, file.name, str(args.radius), str(queries)]))
    for name in found[0]["pairs"]:
        few, many = ((each["seconds"][name][1]) / queries for each in found)
        power = math.log(many / few) / math.log(sizes[1] / sizes[0])
        whole = many * (len(hashes) / sizes[1]) ** power * len(hashes)
        same = {(i, j) for i, j in found[1]["pairs"][name]} == expected
        print(
            f"imagededup {name}: {1000 * few:.2f} and {1000 * many:.2f} ms a query among {sizes[0]:,} and "
            f"{sizes[1]:,}, so {whole:,.0f} s (n^{1 + power:.2f}), {whole / ours:,.0f} times ours, same pairs: {same}"
        )


def _run(command: list[str], text: str = "") -> Any:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def far(args: argparse.Namespace) -> None:
    """The search alone, in a process of its own: seconds and memory."""
    command = [sys.executable, "-m", "benchmarks.dedup", "child", "--hashes", str(args.hashes)]
    found = _run([*command, "--radius", str(args.radius)])
    print(
        f"{found['hashes']:,} hashes, radius {args.radius}: {found['pairs']:,} pairs in {found['cpu']:.1f} s, "
        f"{found['peak']:.2f} GB at the peak, {found['before']:.2f} of them before the search"
    )


def child(args: argparse.Namespace) -> None:
    """What `far` measures."""
    from stages.hamming import pairs_within

    hashes = planted(int(args.hashes))
    pairs_within(hashes[:1000], args.radius)
    before = _peak()
    (i, _), seconds = _timed(lambda: pairs_within(hashes, args.radius))
    print(json.dumps({"hashes": len(hashes), "pairs": len(i), "cpu": seconds, "before": before, "peak": _peak()}))


def _peak() -> float:
    """Gigabytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def stage(args: argparse.Namespace) -> None:
    """Every phase of the stage on one core, each in a process of its own, and their memory."""
    from stages.dedup import DedupConfig, DedupStage

    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        give_rows(Path(folder), int(args.rows))
        size = sum(file.stat().st_size for file in (Path(folder) / "download").iterdir())
        print(f"{int(args.rows):,} rows, {size / 1e9:.1f} GB of parquet, radius {args.radius}", flush=True)
        for number, phase in enumerate(DedupStage(DedupConfig(radius=args.radius)).phases()):
            options = [str(number), str(args.radius), str(int(args.partition_rows))]
            found = _run([sys.executable, "-c", PHASE, folder, *options])
            line = f"{found['seconds']:7.1f} s, {found['units']:4} units, {found['peak']:.2f} GB"
            print(f"{phase.name:<9} {line}", flush=True)


PHASE = """
import json, resource, sys, time
from curation.workspace import StageRun
from curation import commit
from stages.dedup import DedupConfig, DedupStage
from stages.storage import Store
from tests.harness import run_phase
folder, number, radius, limit = sys.argv[1], *map(int, sys.argv[2:])
run = StageRun(store=Store(folder), stage="dedup", fingerprint="bench", input_stage="download", sources=("a", "b", "c"))
phase = DedupStage(DedupConfig(radius=radius, partition_rows=limit)).phases()[number]
began = time.process_time()
run_phase(run, phase)
seconds = time.process_time() - began
units = len(commit.records(run.store, "dedup", "bench", phase.name))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps({"seconds": seconds, "units": units, "peak": peak}))
"""


def give_rows(root: Path, count: int, part: int = 100_000) -> None:
    """Rows as `download` writes them; of ten, two share a URL, bytes or a near hash with another."""
    import pyarrow as pa

    from stages.schema import CAPTION, COMMON, DOWNLOAD, conform, extend
    from tests.harness import give_input

    rng = np.random.default_rng(5)
    schema = extend(COMMON, pa.schema([("captions", pa.list_(CAPTION))]), DOWNLOAD)
    hashes = rng.permutation(np.resize(planted(count - count // 20), count))
    picture = rng.permutation(np.resize(np.arange(count - count // 20), count))
    address = rng.permutation(np.resize(np.arange(count - count // 20), count))
    tables = (
        conform(_rows(start, min(start + part, count), rng, hashes, picture, address), schema)
        for start in range(0, count, part)
    )
    give_input(root, "download", list(tables) if count <= part else _OneByOne(tables))


class _OneByOne(list[Any]):
    """Tables made when they are asked for, so that ten million rows need not be there at once."""

    def __init__(self, tables: Any) -> None:
        super().__init__()
        self._tables = tables

    def __iter__(self) -> Any:
        return iter(self._tables)


def _rows(start: int, end: int, rng: Any, hashes: Hashes, picture: Any, address: Any) -> Any:
    import pyarrow as pa

    from stages.narrow import key_texts

    rows = end - start
    keys = key_texts(*rng.integers(0, 2**64, (2, rows), dtype=np.uint64))
    digests = [f"{n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**255:064x}" for n in picture[start:end].tolist()]
    captions = [f"an aerial view of place {n} of the river and of the harbour beside it" for n in range(start, end)]
    return pa.table(
        {
            "key": keys,
            "source": np.array(["a", "b", "c"])[rng.integers(0, 3, rows)],
            "url": [
                f"https://images-{n % 9973}.example.org/pictures/{n}/large.jpg" for n in address[start:end].tolist()
            ],
            "caption": captions,
            "captions": [[{"text": text, "source": "a", "origin": "alt_text"}] for text in captions],
            "status": ["kept"] * rows,
            "sha256": digests,
            "phash": hashes[start:end],
            "width": rng.integers(256, 2000, rows, dtype=np.int32),
            "height": rng.integers(256, 2000, rows, dtype=np.int32),
        }
    )


def phash(args: argparse.Namespace) -> None:
    """Our digest, validation and hash in one pass beside imagededup's encoder, then the hash of decoded pixels alone.

    Contenders take turns, one core each.
    """
    stored = [str(path) for path in sorted(Path(args.folder).rglob("*")) if path.suffix in (".jpg", ".jpeg", ".png")]
    with tempfile.TemporaryDirectory() as folder:
        _hash_all("as stored", _spread(stored, args.images), args)
        for side in (256, 512):
            _hash_all(f"as JPEG of {side} pixels", _enlarged(_spread(stored, args.images), side, folder), args)


def _enlarged(paths: list[str], side: int, folder: str) -> list[str]:
    """The same pictures in a size of the web's."""
    from PIL import Image

    made = []
    for number, path in enumerate(paths):
        made.append(f"{folder}/{side}-{number}.jpg")
        Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS).save(made[-1], quality=90)
    return made


def _hash_all(name: str, paths: list[str], args: argparse.Namespace) -> None:
    from stages.images import inspect, open_rgb
    from stages.phash import phash, thumbnail

    images = [open_rgb(Path(path).read_bytes()) for path in paths]
    works: dict[str, Callable[[], Any]] = {
        "whole": lambda: [inspect(Path(path).read_bytes()) for path in paths],
        "alone": lambda: [phash(thumbnail(image)) for image in images],
    }
    rates: dict[str, list[tuple[float, float]]] = {part: [] for part in works}
    for work in works.values():
        work()
    for _ in range(args.runs):
        theirs = _run([args.imagededup, "-c", ENCODE], json.dumps(paths)) if args.imagededup else {}
        for part, work in works.items():
            rates[part].append((len(paths) / _timed(work)[1], len(paths) / theirs.get(part, math.inf)))
    for part, found in rates.items():
        ours, others = ([each[n] for each in found] for n in (0, 1))
        ratio = statistics.median(a / b if b else math.nan for a, b in found)
        print(
            f"{len(paths)} images {name}, {part}: ours {statistics.median(ours):,.0f} images/s ({_range(ours)}), "
            f"imagededup's PHash {statistics.median(others):,.0f} ({_range(others)}); ours {ratio:.2f} times"
        )


def _spread(paths: list[str], count: int) -> list[str]:
    return paths[:: max(1, len(paths) // count)][:count]


if __name__ == "__main__":
    main()
