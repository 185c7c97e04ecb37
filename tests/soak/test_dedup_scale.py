"""Dedup against brute force on fifty thousand hashes, and dealt to units on twenty million."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.hamming import bands_of, deal, pairs_in_band, pairs_within

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

Hashes = NDArray[np.uint64]


def planted(rows: int, twins: int, seed: int) -> Hashes:
    """Distinct random hashes in order, `twins` of them up to nine bits from another."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, rows - twins, dtype=np.uint64)
    near = base[rng.integers(0, len(base), twins)]
    flips = rng.integers(0, 10, twins)
    for flip in range(9):
        bits = np.uint64(1) << rng.integers(0, 64, twins).astype(np.uint64)
        near = np.where(flips > flip, near ^ bits, near)
    return np.unique(np.concatenate([base, near]))


def real_hashes() -> Hashes:
    """Hashes of real images in all orientations, where they are at hand."""
    from stages.images import open_rgb
    from stages.phash import orientation_hashes, thumbnail

    folder = os.environ.get("CURATION_REAL_DATA")
    paths = sorted(Path(folder).glob("rs/**/*.jp*g"))[:4000] if folder else []
    greys = [thumbnail(open_rgb(path.read_bytes())) for path in paths]
    return np.unique(orientation_hashes(np.array(greys))) if greys else np.empty(0, np.uint64)


def brute_force(hashes: Hashes, radius: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """(i, j, bits) of every pair within the radius, i < j, sorted by (j, i), from the whole matrix of distances."""
    found = []
    for start in range(0, len(hashes), 500):
        distance = np.bitwise_count(hashes[start : start + 500, None] ^ hashes[None, : start + 500])
        j, i = np.nonzero(distance <= radius)
        later = j + start > i
        found.append((i[later], j[later] + start, distance[j[later], i[later]]))
    i, j, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return i, j, bits


def test_all_radii_agree_with_brute_force_on_fifty_thousand() -> None:
    hashes = real_hashes()
    hashes = np.union1d(hashes, planted(50_000 - len(hashes), 10_000, seed=1))
    i, j, bits = brute_force(hashes, 8)
    for radius in range(9):
        near = bits <= radius
        left, right = pairs_within(hashes, radius)
        assert np.array_equal(left, i[near])
        assert np.array_equal(right, j[near])


def dealt(hashes: Hashes, radius: int, partitions: int) -> set[tuple[int, int]]:
    """Pairs found band by band and partition by partition."""
    found: set[tuple[int, int]] = set()
    for number, bits in enumerate(bands_of(radius)):
        partition = deal(hashes, bits, partitions)
        for part in range(partitions):
            rows = np.flatnonzero(partition == part)
            i, j = pairs_in_band(hashes[rows], radius, number)
            pairs = set(zip(rows[i].tolist(), rows[j].tolist(), strict=True))
            assert len(pairs) == len(i)
            assert found.isdisjoint(pairs)
            found |= pairs
    return found


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_twenty_million_hashes_dealt_to_partitions_have_the_same_pairs(radius: int) -> None:
    hashes = planted(20_000_000, 400_000, seed=2)
    i, j = pairs_within(hashes, radius)
    assert len(i) > 35_000 * radius
    assert dealt(hashes, radius, 3) == set(zip(i.tolist(), j.tolist(), strict=True))


_STAGE = """
import json, sys
from pathlib import Path
from stages.dedup import DedupConfig, DedupStage
from tests.harness import peak_memory, run_stage
root, limit = Path(sys.argv[1]), int(sys.argv[2])
done = run_stage(DedupStage(DedupConfig(radius=3, partition_rows=limit)), root, "download", sources=["a", "b", "c"])
print(json.dumps([done.output_digest, [file.sha256 for file in done.outputs], peak_memory()]))
"""


def test_two_million_rows_dealt_to_units_write_the_same_bytes_in_little_memory(tmp_path: Path) -> None:
    from benchmarks.dedup import give_rows

    give_rows(tmp_path, 2_000_000)
    found: list[Any] = []
    for limit in (50_000_000, 300_000):
        command = [sys.executable, "-c", _STAGE, str(tmp_path), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert found[0][1] == found[1][1]
    assert max(peak for _, _, peak in found) < 2.5e9


@pytest.mark.ray
@pytest.mark.timeout(14_400)
@pytest.mark.usefixtures("ray_cluster")
def test_twenty_million_rows_dealt_on_ray_write_what_one_process_writes(tmp_path: Path) -> None:
    from benchmarks.dedup import give_rows
    from curation.execute import run_phase
    from curation.finish import finish
    from curation.progress import Display
    from curation.workspace import StageRun
    from stages.dedup import DedupConfig, DedupStage
    from stages.storage import Store
    from tests.harness import run_stage

    give_rows(tmp_path, 20_000_000)
    sources = ("a", "b", "c")
    one = run_stage(DedupStage(DedupConfig(radius=3)), tmp_path, "download", sources=sources)
    stage = DedupStage(DedupConfig(radius=3, partition_rows=6_000_000))
    run = StageRun(
        store=Store(str(tmp_path)), stage="dedup", fingerprint="dealt", input_stage="download", sources=sources
    )
    units = {phase.name: run_phase(run, phase, Display(StringIO())).units for phase in stage.phases()}
    dealt = finish(run, stage, stage.phases(), {}, [], seconds=1, rows_done=0, device="test")
    assert units["pairs"] > 4
    assert dealt.summary == one.summary
    assert dealt.counts == one.counts
    assert [file.sha256 for file in dealt.outputs] == [file.sha256 for file in one.outputs]
