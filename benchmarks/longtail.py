"""The download stage in a long-tailed web: many hosts, log-normal latencies, dead hosts and tarpits.

    python -m benchmarks.longtail [--hosts 2000] [--urls 20000] [--timeout 15] [--plot docs/images/longtail.svg]

Hosts are addresses 127.x.y.z, served by one process; each has a latency of its own, and each answer some of its own.
Of the hosts, 15 % are dead (half refuse connections, half accept them and say nothing) and 2 % are tarpits, which send
a byte a second for ever. Printed are the time, how near it is to a floor, and what was reached; the plot has images
done over time. The floor is what a fetcher with the same number of requests at once, no processor time, and no wait
between chunks would take: all waits, divided by that number, and then the longest wait of a single URL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from PIL import Image

from tests.e2e.head import free_port

MEDIAN_S, SIGMA, MOST_S = 0.3, 1.0, 4.0
"""Of hosts' latencies, and of their log; and the slowest host's."""
JITTER, LONGEST_S = 0.3, 7.0
"""Of the log of one answer's latency over its host's; and the slowest answer's."""
DEAD, TARPITS = 0.15, 0.02
LANES, CONCURRENCY = 4, 128
"""Requests at once: lanes on two cores, and of each."""


@dataclass(frozen=True)
class Web:
    """What each host of the world is like."""

    hosts: int
    urls: int
    seed: int = 2023
    kinds: tuple[str, ...] = field(init=False)
    """By host: alive, refusing, silent, tarpit."""
    latencies: tuple[float, ...] = field(init=False)
    """Seconds, by host."""
    ports: tuple[int, int] = field(default_factory=lambda: (free_port(), free_port()))
    """Of hosts that listen, and one on which nobody does."""

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        dead, tarpits = round(self.hosts * DEAD), round(self.hosts * TARPITS)
        kinds = ["refusing"] * (dead // 2) + ["silent"] * (dead - dead // 2) + ["tarpit"] * tarpits
        kinds += ["alive"] * (self.hosts - len(kinds))
        object.__setattr__(self, "kinds", tuple(rng.permutation(kinds).tolist()))
        object.__setattr__(
            self, "latencies", tuple(np.minimum(rng.lognormal(np.log(MEDIAN_S), SIGMA, self.hosts), MOST_S).tolist())
        )

    def address(self, host: int) -> str:
        return f"127.{1 + host // 62_500}.{host // 250 % 250}.{1 + host % 250}"

    def host_of(self, address: str) -> int:
        _, a, b, c = map(int, address.split("."))
        return (a - 1) * 62_500 + b * 250 + c - 1

    def url(self, number: int) -> str:
        host = number % self.hosts
        port = self.ports[self.kinds[host] == "refusing"]
        return f"http://{self.address(host)}:{port}/{number}.jpg"

    @property
    def reachable(self) -> int:
        return sum(self.kinds[number % self.hosts] == "alive" for number in range(self.urls))

    def wait(self, number: int) -> float:
        """Seconds before the answer to one URL begins."""
        jitter = np.random.default_rng([self.seed, number]).lognormal(0, JITTER)
        return min(float(self.latencies[number % self.hosts] * jitter), LONGEST_S)

    def floor(self, timeout: float) -> float:
        """Seconds without a processor's time and with no idle place, a dead host costing one timeout."""
        alive = sum(self.wait(number) for number in range(self.urls) if self.kinds[number % self.hosts] == "alive")
        hanging = sum(kind in ("silent", "tarpit") for kind in self.kinds)
        return (alive + hanging * timeout) / (LANES * CONCURRENCY) + timeout


class Server(asyncio.Protocol):
    """Answers as the host would whose address was asked; counts requests under way."""

    def __init__(self, web: Web, body: bytes, peak: Any) -> None:
        self.web, self.body, self.peak = web, body, peak
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.host = self.web.host_of(transport.get_extra_info("sockname")[0])

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            self.peak[0] += 1
            self.peak[1] = max(self.peak[:2])
            self._answer(path)

    def _answer(self, path: str) -> None:
        kind = self.web.kinds[self.host]
        loop = asyncio.get_running_loop()
        if kind == "alive":
            number = int(path[1:-4]) if path.endswith(".jpg") else None
            wait = self.web.latencies[self.host] if number is None else self.web.wait(number)
            loop.call_later(wait, self._send, number)
        elif kind == "tarpit":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            self._drip()

    def _send(self, number: int | None) -> None:
        self.peak[0] -= 1
        if number is None:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        body = self.body + b"%d" % number
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def _drip(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"x")
            asyncio.get_running_loop().call_later(1.0, self._drip)

    def connection_lost(self, error: Exception | None) -> None:
        if self.web.kinds[self.host] != "alive":
            self.peak[0] = max(self.peak[0] - 1, 0)


def jpeg() -> bytes:
    """About 20 kB."""
    small = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((400, 300), Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
    return out.getvalue()


def _serve(web: Web, peak: Any) -> None:
    async def main() -> None:
        body = jpeg()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Server(web, body, peak), "0.0.0.0", web.ports[0], backlog=4096)
        await server.serve_forever()

    asyncio.run(main())


@contextlib.contextmanager
def serving(web: Web) -> Iterator[Any]:
    """The world's server in its own process; yields [requests under way, the most at once]."""
    context = multiprocessing.get_context("spawn")
    peak = context.Array("i", 2)
    process = context.Process(target=_serve, args=(web, peak), daemon=True)
    process.start()
    try:
        time.sleep(2)
        yield peak
    finally:
        process.kill()
        process.join()


def prepare(web: Web, folder: Path, download: dict[str, Any]) -> list[str]:
    """Do all before the download stage; returns the command that does it."""
    urls = [web.url(number) for number in range(web.urls)]
    captions = [f"satellite image {number}" for number in range(web.urls)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "urls.parquet")
    source = {"name": "web", "format": "parquet", "path": str(folder / "urls.parquet")}
    settings = {"allow_private": ["127.0.0.0/8"], **download}
    recipe = {
        "name": "longtail",
        "sources": [source | {"columns": {"url": "url", "caption": "caption"}}],
        "stages": {"keywords": {"pack": "rs5m"}, "download": settings},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    command = [sys.executable, "-m", "curation.run", str(folder / "recipe.yaml"), "--root", str(folder / "root")]
    subprocess.run([*command, "--only", "keywords"], check=True, capture_output=True)
    return [*command, "--only", "download"]


@dataclass(frozen=True)
class Curve:
    """What one run gave."""

    seconds: float
    """From the first fetch to the last result, without Ray's start."""
    done: list[float]
    """When each image was there, seconds from the first fetch."""
    counts: dict[str, int]
    """Kept, and dropped by reason."""
    most_at_once: int
    wall: float


def run(web: Web, folder: Path, download: dict[str, Any]) -> Curve:
    """Fetch the world.

    Raises:
        RuntimeError: the stage failed.
    """
    with serving(web) as peak:
        command = prepare(web, folder, download)
        start = time.time()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        wall = time.time() - start
        most = peak[1]
    manifest = json.loads((folder / "root/download/manifest.json").read_text())
    count = manifest["counts"]["web"]
    facts = [
        pq.read_table(path, columns=["fetched_at", "reason"])
        for path in (folder / "root/download").glob("part-*.parquet")
    ]
    table = pa.concat_tables(facts)
    when = [value.timestamp() for value in table.column("fetched_at").to_pylist() if value]
    kept = [value.timestamp() for value in table.filter(pc.is_null(table["reason"]))["fetched_at"].to_pylist()]
    first = min(when)
    return Curve(
        seconds=max(when) - first,
        done=sorted(each - first for each in kept),
        counts={"kept": count["kept"], **count["dropped"]},
        most_at_once=most,
        wall=wall,
    )


def plot(curve: Curve, web: Web, floor: float, path: Path) -> None:
    """Images done over time, with what is reachable and the floor."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "longtail"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    steps = np.linspace(0, len(curve.done) - 1, 200).astype(int)
    axes.plot(np.array(curve.done)[steps], steps + 1, label="images kept")
    axes.axhline(web.reachable, color="0.6", linewidth=1, linestyle="--", label="reachable")
    axes.axvline(floor, color="tab:red", linewidth=1, linestyle=":", label="floor of the whole")
    axes.axvline(curve.seconds, color="0.3", linewidth=1, label="end, dead hosts included")
    axes.set(xlabel="seconds from the first fetch", ylabel="images", xlim=(0, None), ylim=(0, None))
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hosts", type=int, default=2000)
    parser.add_argument("--urls", type=int, default=20_000)
    parser.add_argument("--timeout", type=float, default=15.0)
    parser.add_argument("--retries", type=int, default=2)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    web = Web(args.hosts, args.urls)
    floor = web.floor(args.timeout)
    with tempfile.TemporaryDirectory(prefix="bench-longtail-") as folder:
        curve = run(web, Path(folder), {"timeout_s": args.timeout, "retries": args.retries})
    print(
        f"{curve.seconds / floor:.2f} x the floor: {curve.seconds:.0f} s, floor {floor:.0f} s; {curve.wall:.0f} s wall"
    )
    print(f"{curve.counts['kept']:,} of {web.reachable:,} reachable; {curve.counts}")
    print(f"at most {curve.most_at_once} requests at once")
    for share in (0.5, 0.9, 0.99, 1.0):
        print(f"{share:.0%} of the images after {curve.done[int(share * len(curve.done)) - 1]:.0f} s")
    if args.plot:
        plot(curve, web, floor, args.plot)


if __name__ == "__main__":
    main()
