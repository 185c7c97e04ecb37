"""The keywords stage against DuckDB, polars and plain Ray Data, on the same files with the same hits.

    python -m benchmarks.keywords [--rows 12000000] [--runs 5] [--skip ray]

Every contender reads URL, TEXT, LICENSE and SAMPLE_ID of LAION-like parquet, keeps the rows that any of the pack's
published patterns hits, and writes them as zstd parquet, on two cores. Ours is the stage itself, on two processes,
with its counts by reason, keys, per-term hits and commits.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import logging
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import commit, manifest
from curation.finish import finish
from curation.worker import do_lane
from curation.workspace import StageRun, UnitWorkspace
from stages.base import Phase, Unit
from stages.keywords import KeywordsConfig, KeywordsStage
from stages.patterns import alternation, load_pack
from stages.sources import SourceFile, resolve
from stages.storage import Store

CORES = 2
FILES = 8
ROW_GROUP = 250_000
WORLD_ROWS = 4_200_000_000
COLUMNS = ["SAMPLE_ID", "URL", "TEXT", "LICENSE"]
HIT_SHARE = 0.004
WORDS = (
    "the a of in and with for by on at to from photo stock vector image black white new home design vintage art print "
    "women men kids dress shoes leather gold silver ring watch car engine house kitchen table wooden modern garden "
    "flower sunset beach mountain city street night portrait young woman man happy family dog cat bird horse food "
    "recipe chicken chocolate cake wedding party birthday card invitation poster logo icon set illustration pattern "
    "background texture blue red green yellow 2015 2018 sale free shipping buy online best price review book cover map "
    "satellite aerial space view system data world earth landscape drone view radio dish tv channel station model"
)


ACCENTED = ("café", "–", "für", "niño", "été", "東京", "®")


def make_files(folder: Path, rows: int, seed: int = 2023) -> list[str]:
    """LAION-like files: captions of 2 to 20 words, URLs that do not compress to nothing, a few hits."""
    terms = load_pack("rs5m").terms
    paths = []
    for number in range(FILES):
        path = folder / f"part-{number:05d}.snappy.parquet"
        paths.append(str(path))
        if path.exists():
            continue
        rng = np.random.default_rng([seed, number])
        with pq.ParquetWriter(path, _schema(), compression="snappy") as writer:
            for _ in range(max(1, rows // FILES // ROW_GROUP)):
                writer.write_table(_rows(rng, [term.text for term in terms]), row_group_size=ROW_GROUP)
    return paths


def _schema() -> pa.Schema:
    text, number = pa.string(), pa.int32()
    fields = {"SAMPLE_ID": pa.int64(), "URL": text, "TEXT": text, "HEIGHT": number, "WIDTH": number}
    return pa.schema(list({**fields, "LICENSE": text, "similarity": pa.float32()}.items()))


def _rows(rng: np.random.Generator, terms: list[str]) -> pa.Table:
    count = ROW_GROUP
    lengths = rng.integers(2, 21, count)
    vocabulary = np.array([*WORDS.split(), *ACCENTED], object)
    words = vocabulary[(len(vocabulary) * rng.random(lengths.sum()) ** 3).astype(int)]
    ends = np.cumsum(lengths)
    texts = [" ".join(words[end - n : end]) for end, n in zip(ends.tolist(), lengths.tolist(), strict=True)]
    for row in np.flatnonzero(rng.random(count) < HIT_SHARE):
        texts[row] = f"{texts[row]} {terms[rng.integers(len(terms))]} {row}"
    names = rng.integers(0, 1 << 62, (count, 2))
    hosts = rng.integers(0, 50_000, count)
    urls = [
        f"https://cdn{h}.example.com/images/{a:x}/{b:x}.jpg"
        for h, (a, b) in zip(hosts.tolist(), names.tolist(), strict=True)
    ]
    sizes = rng.integers(100, 2000, (2, count), dtype=np.int32)
    licences = pa.array(["?", "cc-by"]).take(pa.array((rng.random(count) < 0.01).astype(int)))
    return pa.table(
        [names[:, 0], urls, texts, sizes[0], sizes[1], licences, rng.random(count, np.float32)], schema=_schema()
    )


def ours(pool: concurrent.futures.Executor, files: list[str], out: Path) -> int:
    """The stage: cut, filter and commit on the pool, then close and write the manifest."""
    found = tuple(SourceFile(url=path, size=os.path.getsize(path), version="1") for path in files)
    source = resolve({"name": "laion400m", "unsafe": []}, {"data": found})
    stage = KeywordsStage(KeywordsConfig(pack="rs5m"), [source])
    run = StageRun(
        store=Store(str(out)),
        stage=stage.name,
        fingerprint=manifest.digest([str(out)]),
        generation=0,
        input_stage=None,
        seed=1,
        subset="bench",
        sources=(source.name,),
    )
    phases = stage.phases()
    units = phases[0].cut(UnitWorkspace(run, phases[0].name, Unit(id="cut")))
    for error in pool.map(partial(_do, run, phases[0]), units):
        if error:
            raise RuntimeError(error)
    done = commit.records(run.store, run.stage, run.run, phases[0].name)
    commit.close_phase(run.store, run.stage, run.run, phases[0].name, done)
    written = finish(run, stage, phases, {}, [], seconds=1.0, rows_done=0, device="cpu")
    return int(written.counts[source.name]["kept"])


def _do(run: StageRun, phase: Phase, unit: Unit) -> str | None:
    """Do and commit one unit in a process of the pool; the error's sentence if there was one."""
    return next(iter(do_lane(run, phase, [unit]))).error


def duckdb(files: list[str], out: Path) -> int:
    """One COPY of a SELECT, two threads."""
    import duckdb as engine

    with engine.connect(config={"threads": CORES}) as connection:
        query = f"SELECT {', '.join(COLUMNS)} FROM read_parquet($files) WHERE regexp_matches(TEXT, $pattern)"
        target = f"'{out}/hits.parquet' (FORMAT parquet, COMPRESSION zstd)"
        connection.execute(
            f"COPY ({query}) TO {target}", {"files": files, "pattern": alternation(load_pack("rs5m").terms)}
        )
    return _written(out)


def polars(files: list[str], out: Path) -> int:
    """A lazy scan, streamed into a file."""
    import polars as engine

    pattern = alternation(load_pack("rs5m").terms)
    scan = engine.scan_parquet(files).select(COLUMNS).filter(engine.col("TEXT").str.contains(pattern))
    scan.sink_parquet(out / "hits.parquet", compression="zstd")
    return _written(out)


def ray_data(files: list[str], out: Path) -> int:
    """read_parquet → map_batches → write_parquet, as its documentation shows it."""
    import ray

    pattern = alternation(load_pack("rs5m").terms)
    rows = ray.data.read_parquet(files).select_columns(COLUMNS)
    hits = rows.map_batches(partial(_filter, pattern=pattern), batch_format="pyarrow", batch_size=None)
    hits.write_parquet(str(out), compression="zstd")
    return _written(out)


def _filter(batch: pa.Table, pattern: str) -> pa.Table:
    return batch.filter(pc.match_substring_regex(batch["TEXT"], pattern))


def _written(folder: Path) -> int:
    return sum(pq.ParquetFile(path).metadata.num_rows for path in folder.rglob("*.parquet"))


def measure(contenders: dict[str, Callable[[Path], int]], runs: int) -> dict[str, list[float]]:
    """Seconds of each run, contenders taking turns; the first turn warms up and does not count.

    Raises:
        AssertionError: two contenders differ in the number of hits.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    hits: dict[str, int] = {}
    for turn in range(runs + 1):
        for name, contender in contenders.items():
            out = Path(tempfile.mkdtemp(prefix=f"bench-{name.replace(' ', '-')}-"))
            start = time.perf_counter()
            hits[name] = contender(out)
            elapsed = time.perf_counter() - start
            shutil.rmtree(out)
            if turn:
                seconds[name].append(elapsed)
    assert len(set(hits.values())) == 1, hits
    print(f"{next(iter(hits.values())):,} hits in each")
    return seconds


def report(seconds: dict[str, list[float]], rows: int) -> None:
    """Ratios first, then rates, then what the whole web takes."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        ratio = "      ours" if name == "ours" else f"{median / medians['ours']:.2f} x {name}"
        spread = f"{min(seconds[name]):.2f}-{max(seconds[name]):.2f}"
        print(f"{ratio:14} median {median:6.2f} s ({spread})  {rows / median / 1e6:5.2f} M rows/s")
    hours = WORLD_ROWS * medians["ours"] / rows / 3600
    print(f"4.2 billion rows on this machine: {hours:.2f} h; on 64 cores: {hours * 60 * CORES / 64:.1f} min")


def machine() -> str:
    """What this runs on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("pyarrow", "polars", "duckdb", "ray"))
    load = f"load {os.getloadavg()[0]:.2f} before the start"
    return f"{model}, {os.cpu_count()} cores, {load}\nPython {platform.python_version()}, {versions}"


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=12_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--skip", nargs="*", default=[], choices=["duckdb", "polars", "ray"])
    parser.add_argument("--data", type=Path, help="where the files are made and kept")
    args = parser.parse_args()
    data = args.data or Path(tempfile.mkdtemp(prefix="bench-keywords-"))
    data.mkdir(parents=True, exist_ok=True)
    files = make_files(data, args.rows)
    rows = sum(pq.ParquetFile(path).metadata.num_rows for path in files)
    print(f"{machine()}\n{rows:,} rows in {len(files)} files")
    others = {"duckdb": duckdb, "polars": polars, "ray": ray_data}
    os.environ["POLARS_MAX_THREADS"] = str(CORES)
    if "ray" not in args.skip:
        _start_ray()
    with concurrent.futures.ProcessPoolExecutor(CORES) as pool:
        contenders: dict[str, Callable[[Path], int]] = {"ours": partial(ours, pool, files)}
        contenders |= {name: partial(run, files) for name, run in others.items() if name not in args.skip}
        report(measure(contenders, args.runs), rows)


def _start_ray() -> None:
    import ray

    ray.init(num_cpus=CORES, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
