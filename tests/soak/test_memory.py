"""A worker's memory stays bounded on inputs far larger than it: made, read whole in a subprocess, measured."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

MOST = 1.5e9
HIT = "an aerial view of the river "
LARGE = 1 << 30

_CHILD = """
import json, sys
from pathlib import Path
from stages.keywords import KeywordsConfig, KeywordsStage
from stages.sources import SourceFile, resolve
from tests.harness import peak_memory, run_stage
entry, files, root = json.loads(sys.argv[1])
found = {
    role: tuple(SourceFile(url=path, size=Path(path).stat().st_size, version="1") for path in paths)
    for role, paths in files.items()
}
source = resolve(entry, found)
done = run_stage(KeywordsStage(KeywordsConfig(), [source]), Path(root), sources=[source.name])
print(json.dumps([done.counts[source.name], peak_memory()]))
"""


def measure(entry: dict[str, object], files: dict[str, list[str]], root: Path) -> tuple[dict[str, int], int]:
    """(counts, peak resident bytes) of the stage in a process of its own."""
    command = [sys.executable, "-c", _CHILD, json.dumps([entry, files, str(root)])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counts, peak = json.loads(done.stdout)
    return counts, peak


def captions(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Texts of 300 to 700 characters that do not compress away; every hundredth hits."""
    for number, value in enumerate(rng.integers(0, 1 << 62, (count, 24))):
        text = " ".join(f"{word:x}" for word in value)
        yield HIT + text if number % 100 == 0 else text


def make_parquet(path: Path) -> int:
    """5 GB in one row group, plain encoding, uncompressed."""
    rows = 12_000_000
    rng = np.random.default_rng(1)
    pool = pa.array(list(captions(rng, 100_000)))
    schema = pa.schema([("URL", pa.string()), ("TEXT", pa.string())])
    table = pa.table(
        [pa.chunked_array([pool] * (rows // len(pool))), pa.chunked_array([pool] * (rows // len(pool)))], schema=schema
    ).slice(0, rows)
    # One row group needs one call; chunks share the pool, so making it takes little memory.
    pq.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)
    return rows


def make_gzip(path: Path) -> int:
    """3 GB on disk."""
    rng = np.random.default_rng(2)
    lines = "".join(f"{text}\thttp://a/{number}\n" for number, text in enumerate(captions(rng, 40_000))).encode()
    member = gzip.compress(lines, compresslevel=1)
    repeats = 3 * LARGE // len(member) + 1
    with path.open("wb") as file:
        for _ in range(repeats):
            file.write(member)
    return 40_000 * repeats


def make_json(path: Path) -> int:
    """1 GB: one object of parallel lists."""
    rng = np.random.default_rng(3)
    pool = json.dumps(list(captions(rng, 20_000)))[1:-1]
    repeats = LARGE // len(pool) + 1
    urls = ", ".join(f'"http://a/{number}"' for number in range(20_000))
    with path.open("w") as file:
        file.write('{"image_urls": [' + ", ".join([urls] * repeats) + '], "captions": [')
        file.write(pool)
        for _ in range(repeats - 1):
            file.write(", " + pool)
        file.write("]}")
    return 20_000 * repeats


CASES: dict[str, tuple[str, str, Callable[[Path], int], float]] = {
    "parquet of one row group": ("laion400m", "a.parquet", make_parquet, 5e9),
    "gzip": ("cc3m", "a.tsv.gz", make_gzip, 3e9),
    "json": ("sbu", "a.json", make_json, 1e9),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_of_one_large_file(tmp_path: Path, case: str) -> None:
    name, file_name, make, size = CASES[case]
    path = tmp_path / file_name
    rows = make(path)
    assert path.stat().st_size >= size
    counts, peak = measure({"name": name}, {"data": [str(path)]}, tmp_path / "root")
    path.unlink()
    print(f"{case}: {rows:,} rows, peak {peak / 1e6:.0f} MB")
    assert counts["in"] == rows
    assert counts["kept"] == rows // 100
    assert peak < MOST


def test_memory_of_the_yfcc_join(tmp_path: Path) -> None:
    """15 million photo ids in the subset."""
    subset, metadata = tmp_path / "subset.tsv", tmp_path / "metadata.tsv"
    with subset.open("w") as file:
        for start in range(0, 15_000_000, 100_000):
            file.write("".join(f"{i}\t{i * 7}\t{i:032x}\n" for i in range(start, start + 100_000)))
    filler = "\t".join(["x"] * 5 + [HIT.replace(" ", "+")] + ["x"] * 15 + ["0"])
    with metadata.open("w") as file:
        for start in range(0, 1_000_000, 100_000):
            file.write("".join(f"{i}\t{filler}\n" for i in range(start, start + 100_000)))
    files = {"metadata": [str(metadata)], "subset": [str(subset)]}
    counts, peak = measure({"name": "yfcc15m"}, files, tmp_path / "root")
    print(f"yfcc: peak {peak / 1e6:.0f} MB")
    assert counts["in"] == counts["kept"] == (1_000_000 + 6) // 7
    assert peak < MOST
