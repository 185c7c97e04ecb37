"""The trainer's loader beside RS5M's published one and open_clip's: images a second from the same tars, two workers.

Each pair of contenders shows the same kind of view: RS5M's (crop of 90–100 %, mirror, rotation with black corners) and
open_clip's (the crop alone, texts tokenized). RS5M's loader is written anew after its description: webdataset, a
shuffle buffer of 10,000, a decode function with Pillow and torchvision. open_clip's is its own code. Every contender
ends with normalised float32 batches in the main process. `decoder` only reads and decodes, at the scale that ours asks
for: nothing that uses this decoder can be faster.

    python -m benchmarks.loader --images FOLDER --side 512 --runs 5
    python -m benchmarks.loader s3 --images FOLDER
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.transforms import InterpolationMode

from trainer.data import NORMALISATIONS, Augment, Loader, LoaderOptions, State, normalise, open_index
from trainer.data.files import expand
from trainer.data.files import opened as opened_file
from trainer.data.images import View, centre_view, opened, random_view, render
from trainer.data.loader import IMAGES
from trainer.data.order import generator
from trainer.data.tars import contents, members

SIZE, BATCH, SHARDS = 224, 64, 8
CAPTION = "An aerial photograph of an airport with several planes beside the terminal."
BICUBIC = InterpolationMode.BICUBIC
PAIRS = (("rs5m", "ours_turned"), ("open_clip", "ours_cropped"))


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args)
        args.data, args.storage, args.cache = folder, {}, f"{folder}/cache"
        kilobytes = statistics.mean(len(data) for data in _images(args)) / 1000
        print(f"{_machine(args)}\n{args.count} JPEGs of {args.side} px, {kilobytes:.0f} kB each\n", flush=True)
        if args.what == "s3":
            over_s3(Path(folder), args)
        else:
            local(Path(folder), args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("local", "s3"), default="local")
    parser.add_argument("--images", type=Path, help="folder of images that are resized; drawn ones without it")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--count", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def make(folder: Path, args: argparse.Namespace, caption: str = CAPTION) -> None:
    """Tars of jpg, txt and json, and `sizes.json`."""
    pictures = list(_pictures(args))
    sizes = {}
    for shard in range(SHARDS):
        name = f"bench-{shard:04d}.tar"
        numbers = range(shard, args.count, SHARDS)
        sizes[name] = len(numbers)
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers:
                key = f"{number:08d}"
                passport = json.dumps({"key": key, "source": "bench", "caption": caption}).encode()
                for extension, data in (
                    ("jpg", pictures[number % len(pictures)]),
                    ("txt", caption.encode()),
                    ("json", passport),
                ):
                    facts = tarfile.TarInfo(f"{key}.{extension}")
                    facts.size = len(data)
                    tar.addfile(facts, io.BytesIO(data))
    (folder / "sizes.json").write_text(json.dumps(sizes))


def _pictures(args: argparse.Namespace) -> Iterator[bytes]:
    """256 JPEGs of the wanted size."""
    from PIL import Image

    rng = np.random.default_rng(0)
    names = sorted(args.images.rglob("*.jpg")) if args.images else []
    for number in range(256):
        if names:
            image = Image.open(names[number * len(names) // 256]).convert("RGB")
        else:
            image = Image.fromarray(rng.integers(0, 255, (args.side // 4, args.side // 4, 3)).astype(np.uint8))
        held = io.BytesIO()
        image.resize((args.side, args.side), Image.Resampling.BICUBIC).save(held, "JPEG", quality=90)
        yield held.getvalue()


def rs5m(args: argparse.Namespace) -> Iterator[Any]:
    """RS5M's method: Pillow and torchvision, one image at a time."""
    import webdataset as wds
    from PIL import Image
    from torchvision import transforms

    turned = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, (0.9, 1.0), interpolation=BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation((0, 360)),
            transforms.ToTensor(),
            transforms.Normalize(*NORMALISATIONS["clip"]),
        ]
    )

    def decoded(key: str, value: bytes) -> Any:
        if key.endswith("jpg"):
            return turned(Image.open(io.BytesIO(value)).convert("RGB"))
        return value.decode() if key.endswith("txt") else None

    tars = sorted(str(path) for path in Path(args.data).glob("*.tar"))
    data = wds.WebDataset(tars, shardshuffle=False).shuffle(10_000).decode(decoded).to_tuple("jpg", "txt")
    for images, _ in DataLoader(data, batch_size=BATCH, num_workers=args.workers):
        yield images


def open_clip(args: argparse.Namespace) -> Iterator[Any]:
    """open_clip's own webdataset pipeline."""
    import open_clip
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset

    cropped = image_transform(SIZE, is_train=True, mean=None, std=None, aug_cfg={"scale": (0.9, 1.0)})
    options = SimpleNamespace(
        train_data=f"{args.data}/bench-{{0000..{SHARDS - 1:04d}}}.tar",
        train_num_samples=None,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=BATCH,
        workers=args.workers,
        world_size=1,
    )
    for images, _ in get_wds_dataset(options, cropped, is_train=True, tokenizer=open_clip.SimpleTokenizer()).dataloader:
        yield images


def ours(args: argparse.Namespace, augment: Augment | None, tokenize: Any = None, **options: Any) -> Iterator[Any]:
    index = open_index(f"{args.data}/*.tar", storage=args.storage, cache=args.cache)
    given = LoaderOptions(batch_size=BATCH, size=SIZE, augment=augment, workers=args.workers, **options)
    held = None
    for batch in Loader(index, given, tokenize=tokenize).batches(1):
        held = normalise(batch.images, "clip", out=held if held is not None and len(held) == len(batch) else None)
        yield held


def ours_turned(args: argparse.Namespace) -> Iterator[Any]:
    return ours(args, Augment(corners="black"))


def ours_cropped(args: argparse.Namespace) -> Iterator[Any]:
    import open_clip

    return ours(args, Augment(flip=0, rotation=0), open_clip.SimpleTokenizer())


class Decoded:
    """Batches that are read and decoded, and nothing more."""

    def __init__(self, args: argparse.Namespace, reduced: bool) -> None:
        self.index = open_index(f"{args.data}/*.tar", cache=args.cache)
        self.reduced = reduced

    def __len__(self) -> int:
        return len(self.index) // BATCH

    def __getitem__(self, number: int) -> np.ndarray:
        for block in self.index.read(range(number * BATCH, (number + 1) * BATCH)):
            assert isinstance(block, bytes)
            image = opened(contents(block)["jpg"])
            if self.reduced:
                image.draft("RGB", (round(SIZE / 0.95), round(SIZE / 0.95)))
            image.load()
        return np.empty(BATCH)


def decoder(args: argparse.Namespace, reduced: bool = True) -> Iterator[Any]:
    yield from DataLoader(Decoded(args, reduced), batch_size=None, num_workers=args.workers)  # type: ignore[arg-type]


def full_decoder(args: argparse.Namespace) -> Iterator[Any]:
    return decoder(args, reduced=False)


class Streamed(IterableDataset[np.ndarray]):
    """Tars read from front to back through the same file system, same decoding: what any streaming loader does."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def __iter__(self) -> Iterator[np.ndarray]:
        worker = get_worker_info()
        urls = expand(f"{self.args.data}/*.tar", self.args.storage)
        for url in urls[worker.id :: worker.num_workers] if worker else urls:
            with opened_file(url, self.args.storage) as file:
                for member in members(file):
                    if member.name.rpartition(".")[2] in IMAGES:
                        file.seek(member.offset)
                        image = opened(file.read(member.size))
                        yield render(image, centre_view(image.width, image.height, SIZE), SIZE)


def streamed(args: argparse.Namespace) -> Iterator[Any]:
    for images in DataLoader(Streamed(args), batch_size=BATCH, num_workers=args.workers):
        yield normalise(images.permute(0, 3, 1, 2), "clip")


def indexed(args: argparse.Namespace) -> Iterator[Any]:
    return ours(args, None)


def indexed_runs(args: argparse.Namespace) -> Iterator[Any]:
    return ours(args, None, run=16)


CONTENDERS: dict[str, Callable[[argparse.Namespace], Iterator[Any]]] = {
    each.__name__: each
    for each in (rs5m, open_clip, ours_turned, ours_cropped, decoder, full_decoder, streamed, indexed, indexed_runs)
}


def measured(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Images a second between the first batch and the last, and core-milliseconds an image, all processes together."""
    batches = CONTENDERS[name](args)
    began = time.monotonic()
    next(batches)
    started, busy = time.monotonic(), _busy()
    images = 0
    for batch in batches:
        images += len(batch)
        ended, spent = time.monotonic(), _busy() or busy
    return {
        "first": started - began,
        "rate": images / (ended - started),
        "core_ms": 1000 * (spent - busy) / images,
    }


def _busy() -> float:
    """Processor seconds of this process and its children."""
    import psutil

    here = psutil.Process()
    total = 0.0
    for process in (here, *here.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def in_turns(names: tuple[str, ...], args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """What each run of each contender gave; they take turns, in the other order every second time."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(args.runs):
        for name in names[:: -1 if number % 2 else 1]:
            found[name].append(measured(name, args))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    return found


def local(folder: Path, args: argparse.Namespace) -> None:
    found = in_turns(("rs5m", "ours_turned", "open_clip", "ours_cropped", "decoder", "full_decoder"), args)
    _table(found)
    for theirs, mine in PAIRS:
        rate = [a["rate"] / b["rate"] for a, b in zip(found[mine], found[theirs], strict=True)]
        core = [b["core_ms"] / a["core_ms"] for a, b in zip(found[mine], found[theirs], strict=True)]
        print(f"{mine} / {theirs}: {_spread(rate)} by the clock, {_spread(core)} by processor time")
        near = [100 * a["core_ms"] / b["core_ms"] for a, b in zip(found["decoder"], found[mine], strict=True)]
        print(f"{mine}: {_spread(near)} % of its processor time is the decoder's")
    tolerance(args)


def _table(found: dict[str, list[dict[str, float]]]) -> None:
    print("| | images/s | core-ms an image | first batch, s |\n| --- | ---: | ---: | ---: |")
    for name, runs in found.items():
        rate, core, first = ([run[key] for run in runs] for key in ("rate", "core_ms", "first"))
        print(f"| {name} | {_spread(rate)} | {_spread(core)} | {_spread(first)} |")


def _spread(values: list[float]) -> str:
    middle, low, high = (
        f"{value:,.0f}" if value >= 20 else f"{value:.2f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low}–{high})"


def _machine(args: argparse.Namespace) -> str:
    load, cores = os.getloadavg()[0], os.cpu_count()
    return f"{platform.machine()}, {cores} cores, load {load:.1f}, {args.workers} workers, medians of {args.runs}"


def _images(args: argparse.Namespace) -> list[bytes]:
    """64 of the JPEGs."""
    blocks = open_index(f"{args.data}/*.tar", storage=args.storage, cache=args.cache).read(range(64))
    return [contents(block)["jpg"] for block in blocks if isinstance(block, bytes)]


def tolerance(args: argparse.Namespace) -> None:
    """Print how far our pixels are from torchvision's: of the centre view, and of turned and mirrored crops."""
    from PIL import Image
    from torchvision.transforms import CenterCrop, Compose, Resize

    cut = Compose([Resize(SIZE, BICUBIC), CenterCrop(SIZE)])
    centres, turned = [], []
    for number, data in enumerate(_images(args)):
        theirs = Image.open(io.BytesIO(data)).convert("RGB")
        centre = centre_view(*theirs.size, SIZE)
        centres.append(_difference(data, centre, np.asarray(cut(theirs))))
        view = random_view(*theirs.size, SIZE, Augment(corners="black"), generator(number))
        turned.append(_difference(data, view, _torchvision(theirs, view)))
    for name, found in (("centre view", centres), ("turned view", turned)):
        print(f"{name} beside torchvision's: {np.mean(found):.2f} levels of 255 an image, {max(found):.2f} at most")


def _torchvision(image: Any, view: View) -> np.ndarray:
    """The view by torchvision's steps, the rotation without interpolation as RandomRotation does it unasked."""
    from torchvision.transforms import functional

    box = (int(view.top), int(view.left), int(view.height), int(view.width))
    square = functional.resized_crop(image, *box, [SIZE, SIZE], BICUBIC)
    return np.asarray(functional.rotate(functional.hflip(square) if view.mirrored else square, view.angle))


def _difference(data: bytes, view: View, expected: np.ndarray) -> float:
    return float(np.abs(render(opened(data), view, SIZE).astype(int) - expected).mean())


def over_s3(folder: Path, args: argparse.Namespace) -> None:
    """Indexed reads of a shuffled epoch beside streaming, from a real S3 server; and going on in the middle."""
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        args.storage = {
            "key": "bench",
            "secret": "bench",
            "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"},
        }
        args.data = "s3://bench"
        _upload(folder, args, port)
        began = time.monotonic()
        index = open_index("s3://bench/*.tar", storage=args.storage, cache=args.cache)
        walked = time.monotonic() - began
        found = in_turns(("streamed", "indexed", "indexed_runs"), args)
        _table(found)
        for name in ("indexed", "indexed_runs"):
            ratio = [a["rate"] / b["rate"] for a, b in zip(found[name], found["streamed"], strict=True)]
            print(f"{name} / streamed: {_spread(ratio)}")
        print(f"walking through the tars for the index: {walked:.1f} s, once")
        _middle(index, args)
    finally:
        server.terminate()
        server.wait()


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def _upload(folder: Path, args: argparse.Namespace, port: int) -> None:
    import s3fs

    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    store = s3fs.S3FileSystem(**args.storage)
    store.mkdir("bench")
    for path in sorted(folder.glob("*.tar")):
        store.put(str(path), f"bench/{path.name}")


def _middle(index: Any, args: argparse.Namespace) -> None:
    """Seconds to the first batch of an epoch's second half."""
    options = LoaderOptions(batch_size=BATCH, size=SIZE, augment=None, workers=0)
    half = State(epoch=0, samples=len(index) // 2, seed=0, run=1, data=index.digest)
    began = time.monotonic()
    next(Loader(index, options).batches(1, half))
    indexed_s = time.monotonic() - began
    began = time.monotonic()
    images = 0
    for batch in streamed(argparse.Namespace(**{**vars(args), "workers": 0})):
        images += len(batch)
        if images >= len(index) // 2:
            break
    skipped_s = time.monotonic() - began
    print(f"first batch from the middle of an epoch: {indexed_s:.2f} s; by streaming up to there {skipped_s:.1f} s")


if __name__ == "__main__":
    main()
