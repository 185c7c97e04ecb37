"""The download stage against img2dataset: one nginx, the same images, the same answer.

    python -m benchmarks.fetch [--images 20000] [--runs 5] [--threads 16 32 64] [--body small|web] [--answer validated]

Both run as users run them, as a process of its own: `curation run --only download` on a finished keywords stage, and
img2dataset's function with two processes, the best of the thread counts given, and webdataset output. Images are the
JPEGs of `CURATION_REAL_DATA`, repeated under distinct names and spread over many hosts (addresses 127.0.x.y); without
that folder they are made. `--body web` enlarges them to what the web's images are like.

Answers: `validated` keeps original bytes that decode (img2dataset: `resize_mode=no, skip_reencode=True`); `kept` lets
img2dataset keep bytes without a look at them (`disable_all_reencoding=True`), while ours validates all the same;
`resized` makes both resize to 256.

Two figures: wall-clock, from the start of the process to its end, and the steady rate, which nginx's log tells alike
for both: images between the sixtieth and the ninetieth in a hundred, over the time between those two, when all
processes run.

Needs nginx (`apt-get install nginx-light`).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from benchmarks.keywords import machine

PROCESSES = 2
WEB_SIDE = 512
WEB_QUALITY = 90
THEIRS: dict[str, dict[str, Any]] = {
    "validated": {"resize_mode": "no", "skip_reencode": True},
    "kept": {"disable_all_reencoding": True},
}
"""What asks img2dataset for each answer."""
RESIZE = {"image_size": 256, "resize_mode": "border", "encode_quality": 95}
"""Also img2dataset's own defaults."""
THEIRS["resized"] = RESIZE

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 8192; multi_accept on; }}
http {{
  log_format brief '$msec $status $uri';
  access_log {folder}/access.log brief buffer=64k flush=1s;
  sendfile on; tcp_nopush on; keepalive_requests 1000000; keepalive_timeout 60s;
  open_file_cache max=4000 inactive=600s; open_file_cache_valid 600s;
  types {{ image/jpeg jpg; image/png png; }}
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 0.0.0.0:{port} backlog=8192; root {folder}/images; }}
}}
"""


@dataclass(frozen=True)
class World:
    """Images behind a server, and the table of their URLs."""

    folder: Path
    digests: Counter[str]
    """sha256 of each image served."""

    @property
    def table(self) -> Path:
        return self.folder / "urls.parquet"

    @property
    def images(self) -> int:
        return self.digests.total()


@dataclass(frozen=True)
class Took:
    """One run of one contender."""

    wall: float
    """Seconds."""
    steady: float
    """Images a second."""
    cpu: float
    """Core-microseconds an image while the rate is steady, of all its processes."""
    lost: int
    """Images that were served and are not there."""


def real_bodies() -> list[bytes]:
    """The JPEG images of `CURATION_REAL_DATA`; none when it is unset."""
    folder = os.environ.get("CURATION_REAL_DATA")
    if not folder:
        return []
    paths = sorted(p for kind in ("rs", "photo") for p in Path(folder, kind).rglob("*"))
    bodies = [p.read_bytes() for p in paths if p.suffix.lower() in (".jpg", ".jpeg")]
    return [data for data in bodies if data.startswith(b"\xff\xd8\xff")]


def made_bodies(count: int = 2000) -> list[bytes]:
    """JPEGs of smooth noise, 200 to 800 pixels a side."""
    rng = np.random.default_rng(2023)
    bodies = []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        width, height = (int(side) for side in rng.integers(200, 800, 2))
        bodies.append(_jpeg(small.resize((width, height), Image.Resampling.BICUBIC)))
    return bodies


def enlarged(body: bytes) -> bytes:
    """The image with its longer side at `WEB_SIDE`, and grain, so that its bytes are as many as the web's."""
    image = Image.open(io.BytesIO(body)).convert("RGB")
    scale = WEB_SIDE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    large = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.int16)
    grain = np.random.default_rng(len(body)).normal(0, 7, large.shape[:2])[:, :, None]
    return _jpeg(Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8)))


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=WEB_QUALITY)
    return out.getvalue()


def make_world(folder: Path, images: int, hosts: int, body: str, port: int) -> World:
    """Files for the server, each distinct body written once, and the URLs of all; what is there is used again."""
    made = folder / "digests.json"
    if not made.exists():
        made.write_text(json.dumps(_make_files(folder, images, body)))
        _write_urls(folder, images, hosts, port)
    world = World(folder, Counter(json.loads(made.read_text())))
    size = sum(path.stat().st_size for path in (folder / "images").iterdir()) / world.images
    print(
        f"{world.images:,} images ({len(world.digests):,} distinct) of {size / 1000:.1f} kB on average, {hosts} hosts"
    )
    return world


def _make_files(folder: Path, images: int, body: str) -> Counter[str]:
    bodies = real_bodies() or made_bodies()
    if body == "web":
        bodies = [enlarged(data) for data in bodies[:: max(len(bodies) // 4000, 1)]]
    (folder / "images").mkdir(parents=True)
    first: dict[str, Path] = {}
    digests: Counter[str] = Counter()
    for number, data in enumerate(islice(cycle(bodies), images)):
        digest = hashlib.sha256(data).hexdigest()
        path = folder / f"images/{number:06d}.jpg"
        if digest in first:
            os.link(first[digest], path)
        else:
            path.write_bytes(data)
            first[digest] = path
        digests[digest] += 1
    return digests


def _write_urls(folder: Path, images: int, hosts: int, port: int) -> None:
    addresses = [f"127.0.{1 + n // 250}.{1 + n % 250}" for n in range(hosts)]
    urls = [f"http://{addresses[n % hosts]}:{port}/{n:06d}.jpg" for n in range(images)]
    captions = [f"satellite image {n}" for n in range(images)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "urls.parquet")


@contextlib.contextmanager
def serving(world: World, port: int) -> Iterator[None]:
    """nginx on all loopback addresses, one process."""
    config = world.folder / "nginx.conf"
    config.write_text(NGINX.format(folder=world.folder, port=port))
    server = subprocess.Popen(["nginx", "-c", str(config), "-p", str(world.folder)], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise RuntimeError("nginx does not answer")


def prepare_ours(world: World, answer: str) -> Path:
    """A root whose keywords stage is done; download is what is measured."""
    download: dict[str, Any] = {"allow_private": ["127.0.0.0/8"]}
    recipe = {
        "name": "bench",
        "sources": [
            {
                "name": "web",
                "format": "parquet",
                "path": str(world.table),
                "columns": {"url": "url", "caption": "caption"},
            }
        ],
        "stages": {
            "keywords": {"pack": "rs5m"},
            "download": download | ({"resize": RESIZE} if answer == "resized" else {}),
        },
    }
    (world.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    root = Path(tempfile.mkdtemp(dir=world.folder, prefix="root-"))
    _run(world, _curation(world, root, "keywords"))
    return root


def _curation(world: World, root: Path, stage: str) -> list[str]:
    recipe = str(world.folder / "recipe.yaml")
    return [sys.executable, "-m", "curation.run", recipe, "--root", str(root), "--only", stage]


def ours(world: World, template: Path, out: Path) -> list[str]:
    """The download stage alone: robots.txt, validation, sha256 and perceptual hash, commits, manifest, report."""
    shutil.copytree(template, out, dirs_exist_ok=True)
    return _curation(world, out, "download")


def img2dataset(world: World, threads: int, answer: str, out: Path) -> list[str]:
    """img2dataset with what makes it quick: no EXIF, a shard a process or two, no re-encoding unless to resize."""
    options: dict[str, Any] = {
        "url_list": str(world.table),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_folder": str(out / "images"),
        "output_format": "webdataset",
        "processes_count": PROCESSES,
        "thread_count": threads,
        "number_sample_per_shard": max(world.images // (2 * PROCESSES), 1),
        "extract_exif": False,
        "timeout": 15,
        "retries": 2,
        **THEIRS[answer],
    }
    code = f"from img2dataset import download; download(**{options!r})"
    return [sys.executable, "-c", f"if __name__ == '__main__':\n    {code}"]


def _environment(world: World) -> dict[str, str]:
    """Of every contender: modules are compiled once and kept, as they are where people install them."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPYCACHEPREFIX": str(world.folder / "pycache")}


def _run(world: World, command: Sequence[str]) -> list[tuple[float, float]]:
    """Run to the end; returns how much processor time was used until when."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=_environment(world))
        used: dict[int, float] = {}
        curve = []
        while process.poll() is None:
            used |= _cpu_seconds(process.pid)
            curve.append((time.time(), sum(used.values())))
            time.sleep(0.2)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)}\n{said.read()[-4000:]}")
    return curve


def _cpu_seconds(root: int) -> dict[int, float]:
    """By process, for one and all that descend from it."""
    import psutil

    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(root)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
    return found


def time_one(world: World, command: Callable[[Path], list[str]], answer: str) -> Took:
    """Run one contender and check what it kept.

    Raises:
        AssertionError: it kept other bytes than were served.
    """
    out = Path(tempfile.mkdtemp(prefix="bench-fetch-"))
    log = world.folder / "access.log"
    try:
        prepared = command(out)
        before = log.stat().st_size
        start = time.perf_counter()
        curve = _run(world, prepared)
        wall = time.perf_counter() - start
        time.sleep(1.5)  # the log is flushed every second
        kept = _kept(out)
        assert answer == "resized" or not kept - world.digests, "kept bytes that nobody served"
        start_at, end_at, images = steady_part(log, before)
        moments, used = zip(*curve, strict=True)
        cpu = float(np.diff(np.interp([start_at, end_at], moments, used))[0])
        return Took(wall, images / (end_at - start_at), 1e6 * cpu / images, world.images - kept.total())
    finally:
        shutil.rmtree(out)


def _kept(out: Path) -> Counter[str]:
    """sha256 of every image in the tars under a folder."""
    found: Counter[str] = Counter()
    for path in out.rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file and not member.name.endswith((".txt", ".json")):
                    found[hashlib.sha256(file.read()).hexdigest()] += 1
    return found


def steady_part(log: Path, start: int) -> tuple[float, float, int]:
    """When the sixtieth and the ninetieth in a hundred images were served, and how many between.

    By the server's log from byte `start`.
    """
    with log.open() as file:
        file.seek(start)
        entries = [line.split() for line in file]
    times = sorted(float(when) for when, status, uri in entries if status == "200" and uri.endswith(".jpg"))
    first, last = len(times) * 6 // 10, len(times) * 9 // 10
    return times[first], times[last], last - first


def measure(world: World, args: argparse.Namespace) -> dict[str, list[Took]]:
    """All runs; of several thread counts, img2dataset's is the one with the best steady rate of a trial each."""
    template = prepare_ours(world, args.answer)

    def theirs(threads: int) -> Callable[[Path], list[str]]:
        return lambda out: img2dataset(world, threads, args.answer, out)

    _run(world, [sys.executable, "-c", "import img2dataset, stages.fetch.lane, PIL.Image as i; i.init()"])  # compiled
    best = args.threads[0]
    if len(args.threads) > 1:
        trials = {threads: time_one(world, theirs(threads), args.answer).steady for threads in args.threads}
        print(f"img2dataset by threads, images/s steady: {trials}", flush=True)
        best = max(trials, key=lambda threads: trials[threads])
    contenders = {"ours": lambda out: ours(world, template, out), f"img2dataset 2 x {best}": theirs(best)}
    found: dict[str, list[Took]] = {name: [] for name in contenders}
    for _ in range(args.runs):
        for name, command in contenders.items():
            found[name].append(time_one(world, command, args.answer))
            print(f"{name}: {found[name][-1]}", flush=True)
    return found


def report(found: dict[str, list[Took]], images: int) -> None:
    """Ratios first."""
    steady = {name: statistics.median(took.steady for took in runs) for name, runs in found.items()}
    wall = {name: statistics.median(took.wall for took in runs) for name, runs in found.items()}
    cpu = {name: statistics.median(took.cpu for took in runs) for name, runs in found.items()}
    other = next(name for name in found if name != "ours")
    ratios = steady["ours"] / steady[other], wall[other] / wall["ours"], cpu[other] / cpu["ours"]
    print("steady {:.2f} x, wall-clock {:.2f} x, processor time {:.2f} x ".format(*ratios) + other)
    for name, runs in found.items():
        low, high = min(took.steady for took in runs), max(took.steady for took in runs)
        lost = max(took.lost for took in runs)
        print(
            f"{name:24} {steady[name]:6.0f} images/s steady ({low:.0f}-{high:.0f}), {cpu[name]:5.0f} us of processor "
            f"an image, {wall[name]:6.1f} s wall ({images / wall[name]:.0f} images/s), {lost} lost"
        )
    print(json.dumps({name: [vars(took) for took in runs] for name, runs in found.items()}))


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--hosts", type=int, default=250)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--body", choices=["small", "web"], default="small")
    parser.add_argument("--answer", choices=sorted(THEIRS), default="validated")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--data", type=Path, help="where the world is made and kept; --runs 0 only makes it")
    args = parser.parse_args()
    print(machine())
    folder = args.data or Path(tempfile.mkdtemp(prefix="bench-fetch-world-"))
    try:
        world = make_world(folder, args.images, args.hosts, args.body, args.port)
        if args.runs:
            with serving(world, args.port):
                report(measure(world, args), world.images)
    finally:
        if not args.data:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
