"""What the spine costs: a whole run against the bare work of its stages, on the same input.

The bare work is every phase called in one plain process, one unit after another: no Ray, no second core.
The whole run is the command users type: it starts Ray, schedules units over the cores, commits them and
writes the report.

    python -m benchmarks.overhead [--rows 200000] [--images 1500] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from demo.models import make_detector, make_open_clip
from tests.e2e.world import jpeg, picture
from tests.webserver import serving

STAGES = ("keywords", "download", "dedup", "outliers", "shards")


def main() -> None:
    args = _arguments()
    if args.bare:
        print(json.dumps(bare(Path(args.bare), Path(args.root))))
        return
    with tempfile.TemporaryDirectory() as folder, serving() as server:
        for number in range(args.images):
            server.pages[f"/{number}.jpg"] = jpeg(picture(number, 256))
        recipe = _world(Path(folder), [server.url(f"/{n}.jpg") for n in range(args.images)], args.rows)
        whole, parts, plain = [], [], []
        for run in range(args.runs):
            root = Path(folder) / f"whole-{run}"
            began = time.monotonic()
            subprocess.run(_command(recipe, root), check=True, capture_output=True)
            whole.append(time.monotonic() - began)
            parts.append({stage: _seconds(root, stage) for stage in STAGES})
            plain.append(_bare(recipe, Path(folder) / f"bare-{run}"))
    _show(args, whole, parts, plain)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--bare", metavar="RECIPE", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    return parser.parse_args()


def _world(folder: Path, urls: list[str], rows: int) -> Path:
    """LAION-like parquet in which `len(urls)` rows have a keyword, tiny models, and the recipe over them."""
    every = rows // len(urls)
    hit = [number % every == 0 and number // every < len(urls) for number in range(rows)]
    texts = [f"aerial view of town {n}" if here else f"a plain caption, number {n}" for n, here in enumerate(hit)]
    links = [urls[n // every] if here else f"http://host-{n % 997}.invalid/{n}.jpg" for n, here in enumerate(hit)]
    pq.write_table(pa.table({"URL": links, "TEXT": texts}), folder / "laion.parquet", row_group_size=rows // 8)
    make_open_clip(folder / "clip")
    make_detector(folder / "detector")
    recipe = folder / "recipe.yaml"
    stages = {
        "keywords": {},
        "download": {"allow_private": ["127.0.0.0/8"], "per_host": 64},
        "dedup": {},
        "outliers": {"vlm": {"model": str(folder / "clip")}, "detector": {"model": str(folder / "detector")}},
        "shards": {"count": 4},
    }
    source = {"name": "laion2b", "path": str(folder / "laion.parquet")}
    recipe.write_text(yaml.safe_dump({"name": "overhead", "sources": [source], "stages": stages}, sort_keys=False))
    return recipe


def _command(recipe: Path, root: Path) -> list[str]:
    return [sys.executable, "-m", "curation.run", str(recipe), "--root", str(root)]


def _seconds(root: Path, stage: str) -> float:
    return float(json.loads((root / stage / "manifest.json").read_text())["seconds"])


def _bare(recipe: Path, root: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.overhead", "--bare", str(recipe), "--root", str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def bare(recipe_path: Path, root: Path) -> dict[str, float]:
    """Seconds of each stage's phases in this process."""
    from curation import recipe as recipes
    from tests.harness import run_stage

    recipe = recipes.load(str(recipe_path))
    taken: dict[str, float] = {}
    before = None
    for stage in recipe.stages:
        began = time.monotonic()
        run_stage(stage, root, before, sources=[source.name for source in recipe.sources])
        taken[stage.name] = time.monotonic() - began
        before = stage.name
    return taken


def _show(
    args: argparse.Namespace, whole: list[float], parts: list[dict[str, float]], plain: list[dict[str, float]]
) -> None:
    median = statistics.median
    sums = [sum(run.values()) for run in plain]
    stages = [sum(run.values()) for run in parts]
    ratios = [a / b for a, b in zip(whole, sums, strict=True)]
    print(f"whole run / bare work: {median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"stages of the run / bare work: {median([a / b for a, b in zip(stages, sums, strict=True)]):.2f}")
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores; medians of {args.runs}")
    print(f"input: {args.rows:,} rows, {args.images:,} images\n")
    print(f"| {'':<26} | {'in a run, s':>11} | {'bare, s':>8} |\n| --- | ---: | ---: |")
    for stage in STAGES:
        run, alone = median([p[stage] for p in parts]), median([p[stage] for p in plain])
        print(f"| {stage:<26} | {run:>11.1f} | {alone:>8.1f} |")
    rest = median([a - b for a, b in zip(whole, stages, strict=True)])
    print(f"| {'Ray’s start, the report':<26} | {rest:>11.1f} | {'':>8} |")
    print(f"| {'all':<26} | {median(whole):>11.1f} | {median(sums):>8.1f} |")


if __name__ == "__main__":
    main()
