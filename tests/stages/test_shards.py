from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import commit
from curation.manifest import Manifest
from curation.workspace import StageRun, UnitWorkspace
from stages import schema
from stages.base import OutputFile, Unit
from stages.errors import UnitError, UserError
from stages.shards import ShardsConfig, ShardsStage, fraction, place, windows
from stages.storage import Store
from stages.tar import TarWriter, header
from tests.harness import give_input, run_phase, run_stage

COLUMNS = schema.extend(schema.COMMON, schema.KEYWORDS, schema.DOWNLOAD, schema.DEDUP, schema.OUTLIERS)


def picture(number: int, kind: str = "JPEG") -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def sample(number: int, **columns: Any) -> dict[str, Any]:
    key = hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()
    return {
        "key": key,
        "source": "cc3m" if number % 3 else "laion2b",
        "url": f"http://a.org/{number}",
        "caption": f"aerial view {number}\nØ",
        "status": "kept",
        "format": "jpeg",
        "attempts": number,
        "phash": (1 << 63) + number,
        "captions": [{"text": f"aerial view {number}", "source": "cc3m", "origin": "alt_text"}],
        "cluster": key,
        "component": key,
        "vlm_score": 0.3,
        **columns,
    }


def make_root(root: Path, rows: list[dict[str, Any]], parts: int = 2) -> None:
    """A root whose `dedup` stage holds `rows`, their images in one tar."""
    path = root / "download" / "images-0.tar"
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        tar = TarWriter(file)
        for number, row in enumerate(rows):
            data = picture(number, {"jpeg": "JPEG"}.get(row["format"], row["format"].upper()))
            offset = tar.add(f"{row['key']}.jpg", data)
            row["image"] = {"tar": "download/images-0.tar", "offset": offset, "size": len(data)}
            row["sha256"] = hashlib.sha256(data).hexdigest()
        tar.close()
    table = pa.Table.from_pylist(rows, schema=COLUMNS)
    step = max(1, -(-len(rows) // parts))
    give_input(root, "dedup", [table.slice(start, step) for start in range(0, len(rows), step)])


def run(root: Path, **config: Any) -> Manifest:
    return run_stage(ShardsStage(ShardsConfig(**config)), root, "dedup", subset="pub11")


def tars(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob("shards/*/*.tar"))
    }


def test_tar_is_plain_ustar_that_tarfile_reads() -> None:
    buffer = io.BytesIO()
    tar = TarWriter(buffer)
    offsets = [tar.add("a.txt", b"x" * 512), tar.add("b.txt", b"")]
    tar.close()
    assert len(buffer.getvalue()) == 10_240
    buffer.seek(0)
    with tarfile.open(fileobj=buffer, mode="r:") as read:
        infos = read.getmembers()
    assert [(m.name, m.size, m.offset_data) for m in infos] == [("a.txt", 512, 512), ("b.txt", 0, offsets[1])]
    assert {(m.mtime, m.uid, m.gid, m.mode) for m in infos} == {(0, 0, 0, 0o644)}


@pytest.mark.parametrize(("name", "size"), [("a" * 32 + ".jpg", 0), ("é.txt", 12345), ("x" * 100, (8 << 30) - 1)])
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_header_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit a USTAR header"):
        header("x" * 101, 0)
    with pytest.raises(ValueError, match="does not fit a USTAR header"):
        header("x", 8 << 30)


def test_shards_hold_every_kept_sample_once(tmp_path: Path) -> None:
    rows = [sample(n) for n in range(40)] + [sample(99, status="dropped", reason="duplicate_image")]
    make_root(tmp_path, rows)
    written = run(tmp_path, count=3, val_fraction=0.3)
    assert {source: c["in"] for source, c in written.counts.items()} == {"cc3m": 26, "laion2b": 14}
    index = pq.read_table(tmp_path / "shards/index.parquet").to_pylist()
    assert sorted(e["key"] for e in index) == sorted(r["key"] for r in rows[:40])
    for split in ("train", "val"):
        sizes = json.loads((tmp_path / f"shards/{split}/sizes.json").read_text())
        assert list(sizes) == [f"pub11-{split}-{n:04d}.tar" for n in range(3)]
        assert max(sizes.values()) - min(sizes.values()) <= 1
        for name, count in sizes.items():
            with tarfile.open(tmp_path / "shards" / split / name) as tar:
                assert len(tar.getnames()) == 3 * count


def test_index_points_at_samples_and_images(tmp_path: Path) -> None:
    make_root(tmp_path, [sample(n) for n in range(9)])
    run(tmp_path, count=2)
    for entry in pq.read_table(tmp_path / "shards/index.parquet").to_pylist():
        data = (tmp_path / entry["tar"]).read_bytes()
        image = data[entry["image_offset"] : entry["image_offset"] + entry["image_size"]]
        assert hashlib.sha256(image).hexdigest() == entry["sha256"]
        piece = data[entry["offset"] : entry["offset"] + entry["size"]]
        with tarfile.open(fileobj=io.BytesIO(piece + bytes(1024))) as tar:
            assert tar.getnames() == [f"{entry['key']}.{e}" for e in ("jpg", "txt", "json")]


def test_webdataset_members_and_passport(tmp_path: Path) -> None:
    row = sample(1, licence=None, fetched_at=None)
    make_root(tmp_path, [row])
    run(tmp_path, count=1, val_fraction=0.0)
    assert not (tmp_path / "shards/val").exists()
    with tarfile.open(tmp_path / "shards/train/pub11-train-0000.tar") as tar:
        read = {m.name.partition(".")[2]: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert read["jpg"] == picture(0)
    assert read["txt"].decode() == row["caption"]
    passport = json.loads(read["json"])
    assert passport["vlm_score"] == 0.3
    assert passport["phash"] == "8000000000000001"
    assert passport["captions"] == row["captions"]
    assert not {"attempts", "fetched_at", "image", "row", "status", "licence"} & set(passport)


def test_other_formats_become_png(tmp_path: Path) -> None:
    make_root(tmp_path, [sample(0, format="gif"), sample(1, format="png"), sample(2, format="webp")])
    run(tmp_path, count=1, val_fraction=0.0)
    with tarfile.open(tmp_path / "shards/train/pub11-train-0000.tar") as tar:
        images = {n: tar.extractfile(n).read() for n in tar.getnames() if n[32:] in (".png", ".webp")}  # type: ignore[union-attr]
    assert picture(1, "PNG") in images.values()
    assert picture(2, "WEBP") in images.values()
    converted = images[sample(0)["key"] + ".png"]
    assert converted.startswith(b"\x89PNG")
    index = {e["key"]: e for e in pq.read_table(tmp_path / "shards/index.parquet").to_pylist()}
    assert index[sample(0)["key"]]["sha256"] == hashlib.sha256(converted).hexdigest()


def test_rs5m_layout_reads_with_webdataset(tmp_path: Path) -> None:
    import webdataset

    make_root(tmp_path, [sample(n, format="gif") for n in range(5)])
    run(tmp_path, count=1, val_fraction=0.0, layout="rs5m")
    path = str(tmp_path / "shards/train/pub11-train-0000.tar")
    samples = list(webdataset.WebDataset(path, shardshuffle=False))
    assert {s["img_name"].decode() for s in samples} == {sample(n)["key"] for n in range(5)}
    assert all(s["img_content"].startswith(b"GIF8") and s["caption"].startswith(b"aerial") for s in samples)


def test_same_bytes_whatever_the_parts(tmp_path: Path) -> None:
    rows = [sample(n) for n in range(23)]
    for name, order, parts in (("a", rows, 1), ("b", rows[::-1], 5)):
        # The tar of images differs in order too: only what is in it counts.
        (tmp_path / name).mkdir()
        numbered = {row["key"]: picture(n) for n, row in enumerate(rows)}
        make_root_with(tmp_path / name, order, numbered, parts)
        run(tmp_path / name, count=3, val_fraction=0.2)
    assert tars(tmp_path / "a") == tars(tmp_path / "b")
    index = [(tmp_path / name / "shards/index.parquet").read_bytes() for name in "ab"]
    assert index[0] == index[1]


def make_root_with(root: Path, rows: list[dict[str, Any]], images: dict[str, bytes], parts: int) -> None:
    make_root(root, rows, parts)
    path = root / "download" / "images-0.tar"
    with open(path, "wb") as file:
        tar = TarWriter(file)
        for row in rows:
            data = images[row["key"]]
            offset = tar.add(row["key"], data)
            row["image"] = {"tar": "download/images-0.tar", "offset": offset, "size": len(data)}
            row["sha256"] = hashlib.sha256(data).hexdigest()
        tar.close()
    table = pa.Table.from_pylist(rows, schema=COLUMNS)
    step = -(-len(rows) // parts)
    give_input(root, "dedup", [table.slice(start, step) for start in range(0, len(rows), step)])


def test_groups_stay_together_and_membership_never_moves(tmp_path: Path) -> None:
    rows = [sample(n, component=f"c{n // 4}") for n in range(80)]
    sides = []
    for name, count in (("small", 40), ("large", 80)):
        make_root(tmp_path / name, rows[:count])
        run(tmp_path / name, count=2, val_fraction=0.4)
        index = pq.read_table(tmp_path / name / "shards/index.parquet").to_pylist()
        sides.append({e["key"]: e["tar"].split("/")[1] for e in index})
    small, large = sides
    assert all(large[key] == side for key, side in small.items())
    assert set(large.values()) == {"train", "val"}
    for first in range(0, 80, 4):
        assert len({large[row["key"]] for row in rows[first : first + 4]}) == 1
        side = "val" if fraction(2023, f"c{first // 4}") < 0.4 else "train"
        assert large[rows[first]["key"]] == side


def test_spatial_block_and_location_come_before_component() -> None:
    from stages.splits import groups, homes_of

    table = pa.table(
        {
            "key": ["k1", "k2", "k3", "k4", "k5", "k6", "k7"],
            "component": ["c", "c", "c", None, None, None, None],
            "location": ["Paris", None, None, None, "Oslo", "Rome", "Rome"],
            "latitude": [None, 10.04, None, None, 10.045, 10.04, 10.2],
            "longitude": [None, -20.06, None, None, -20.065, -20.06, -20.06],
        }
    )
    parts = [table.slice(0, 4), table.slice(4, 2), table.slice(6)]
    homes = homes_of(parts, 10.0)
    found = [name for part in parts for name in groups(part, 10.0, homes).to_pylist()]
    block = "block 111 3722"
    assert found == ["Paris", block, "c", "k4", block, block, block], "Rome lies in two blocks, and on one side"


def test_no_rows_give_valid_empty_tars(tmp_path: Path) -> None:
    give_input(tmp_path, "dedup", [COLUMNS.empty_table()])
    written = run(tmp_path, count=2)
    assert len(tars(tmp_path)) == 4
    assert written.counts == {}
    for path in tars(tmp_path):
        with tarfile.open(tmp_path / path) as tar:
            assert tar.getnames() == []


class Killed(UnitWorkspace):
    """Dies at the second move."""

    moves = 0

    def move(self, path: str, target: str) -> None:
        self.moves += 1
        if self.moves == 2:
            raise KeyboardInterrupt
        super().move(path, target)


def test_publishing_again_after_a_kill_half_way(tmp_path: Path) -> None:
    make_root(tmp_path, [sample(n) for n in range(12)])
    stage = ShardsStage(ShardsConfig(count=2, val_fraction=0.3))
    store = Store(str(tmp_path))
    state = StageRun(store=store, stage="shards", fingerprint="f", input_stage="dedup", subset="pub11")
    for phase in stage.phases():
        run_phase(state, phase)
    records = {"pack": commit.records(store, "shards", "f", "pack")}
    with pytest.raises(KeyboardInterrupt):
        stage.publish(Killed(state, "publish", Unit(id="publish")), records)
    ws = UnitWorkspace(state, "publish", Unit(id="publish"))
    outputs = stage.publish(ws, records)
    assert stage.publish(ws, records) == outputs
    assert len(tars(tmp_path)) == 4
    (tmp_path / outputs[0].path).write_bytes(b"something else")
    with pytest.raises(UnitError, match="--force shards"):
        stage.publish(ws, records)


def test_a_deleted_manifest_means_packing_again(tmp_path: Path) -> None:
    make_root(tmp_path, [sample(n) for n in range(4)])
    stage = ShardsStage(ShardsConfig(count=1))
    first = run_stage(stage, tmp_path, "dedup", fingerprint="f")
    (tmp_path / "shards/manifest.json").unlink()
    again = run_stage(stage, tmp_path, "dedup", fingerprint="f")
    assert again.output_digest == first.output_digest


def test_changed_image_bytes_are_an_error(tmp_path: Path) -> None:
    make_root(tmp_path, [sample(n) for n in range(4)])
    path = tmp_path / "download/images-0.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(RuntimeError, match="is not the one that was stored"):
        run(tmp_path, count=1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"count": 0}, "stages.shards.count is 0"),
        ({"count": 10**12}, "must be from 1 to 100,000"),
        ({"val_fraction": 1.5}, "stages.shards.val_fraction is 1.5"),
        ({"layout": "zip"}, "stages.shards.layout is 'zip'"),
    ],
)
def test_config_mistakes_are_sentences(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ShardsStage(replace(ShardsConfig(), **config)).check()


def test_place_cuts_evenly() -> None:
    rng = np.random.default_rng(0)
    order = np.array([rng.bytes(16) for _ in range(101)], "S16")
    is_val = rng.random(101) < 0.3
    shard, position, sizes = place(is_val, order, 4)
    assert sum(sizes) == 101
    assert [max(s) - min(s) <= 1 for s in (sizes[:4], sizes[4:])] == [True, True]
    for number, size in enumerate(sizes):
        mine = np.flatnonzero(shard == number)
        assert sorted(position[mine]) == list(range(size))
        assert list(order[mine[np.argsort(position[mine])]]) == sorted(order[mine])
        assert all(is_val[mine] == (number >= 4))


def test_windows_are_bounded() -> None:
    sizes = np.array([5, 5, 20, 1, 1])
    assert list(windows(sizes, 10)) == [range(0, 2), range(2, 3), range(3, 5)]
    assert list(windows(np.array([], np.int64), 10)) == []


def test_output_files_name_final_paths(tmp_path: Path) -> None:
    make_root(tmp_path, [sample(n) for n in range(6)])
    written = run(tmp_path, count=1, val_fraction=0.5)
    paths = [file.path for file in written.outputs]
    assert paths == [
        "shards/train/pub11-train-0000.tar",
        "shards/val/pub11-val-0000.tar",
        "shards/train/sizes.json",
        "shards/val/sizes.json",
        "shards/index.parquet",
    ]
    assert all(isinstance(f, OutputFile) and (tmp_path / f.path).stat().st_size == f.bytes for f in written.outputs)
    assert not list((tmp_path / "shards").glob("*.tar"))
