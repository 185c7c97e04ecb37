"""Scoring images with a vision-language model: the stage beside plain loops, on the same images and the same machine.

    python -m benchmarks.scoring                    # CPU: beside open_clip with a DataLoader, in fp32
    python -m benchmarks.scoring --gpu --plot FILE  # one GPU: four models; which rate binds; beside NeMo Curator's way

Models are the real architectures with random weights. Every contender reads the same JPEGs from a tar, scores each
against the paper's 33 prompts and against its caption, and leaves the scores on disk. Contenders are processes of their
own and take turns; loading and a first batch do not count. Scores that differ by more than `TOLERANCE` end the run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.gpu import Watch, plot
from curation.worker import do_unit
from curation.workspace import StageRun, UnitWorkspace
from stages.base import OutputFile, Phase, Unit
from stages.outliers import OutliersConfig, OutliersStage
from stages.schema import COMMON, DEDUP, DOWNLOAD, extend
from stages.scorers import VlmConfig
from stages.storage import Store
from tests.e2e.world import jpeg, picture
from tests.harness import give_input, run_phase

TOLERANCE = 1e-5
"""Of a cosine, in float32."""
MODELS = ("ViT-B-32", "ViT-L-14", "ViT-H-14", "convnext_xxlarge")
SIDES = (256, 384, 512, 640, 800)
DISTINCT = 200
"""Pictures drawn; the rest are the same under other captions, which nobody remembers."""
ACTOR_IMAGES = 1000
"""Images of the contender that decodes in the model's process: on a GPU it would take minutes for all."""
SCORES = ("vlm_score", "caption_similarity")


def main() -> None:
    args = _arguments()
    if args.contender:
        print(json.dumps(contend(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.root = Path(folder)
        make_images(args.root, args.images)
        print(f"{_machine(args)}; {args.images:,} JPEGs of {min(SIDES)} to {max(SIDES)} pixels; runs: {args.runs}")
        for name in args.model:
            make_model(args.root / "models" / name, name)
            on_gpu(args, name) if args.gpu else on_cpu(args, name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", help="open_clip names (default: ViT-B-32, with --gpu all four)")
    parser.add_argument("--images", type=int, help="default: 256, with --gpu 20,000")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch", type=int, help="images a forward pass (default: 32, with --gpu 256)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that decode")
    parser.add_argument("--gpu", action="store_true", help="rates of one GPU")
    parser.add_argument("--device", help=argparse.SUPPRESS)
    parser.add_argument("--plot", type=Path, help="with --gpu: where to draw the use of the GPU over time (.svg)")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model = args.model or (list(MODELS) if args.gpu else list(MODELS[:1]))
    args.images = args.images or (20_000 if args.gpu else 256)
    args.batch = args.batch or (256 if args.gpu else 32)
    args.device = args.device or ("cuda" if args.gpu else "cpu")
    return args


def _machine(args: argparse.Namespace) -> str:
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if args.device == "cuda" else ""
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}"


def make_images(root: Path, count: int) -> None:
    """The output of dedup: `count` rows that point into one tar."""
    bodies = [jpeg(picture(n, SIDES[n % len(SIDES)])) for n in range(min(count, DISTINCT))]
    starts = np.cumsum([0, *map(len, bodies)])
    (root / "download").mkdir(parents=True)
    (root / "download" / "images-0.tar").write_bytes(b"".join(bodies))
    rows = [
        {
            "key": f"{n:032x}",
            "source": "web",
            "url": f"http://host.invalid/{n}.jpg",
            "caption": f"an aerial view of the harbour of town {n}, with its piers, some ships and the old quarter",
            "status": "kept",
            "sha256": hashlib.sha256(f"{n}".encode()).hexdigest(),
            "image": {
                "tar": "download/images-0.tar",
                "offset": int(starts[n % len(bodies)]),
                "size": len(bodies[n % len(bodies)]),
            },
        }
        for n in range(count)
    ]
    give_input(root, "dedup", [pa.Table.from_pylist(rows, schema=extend(COMMON, DOWNLOAD, DEDUP))])


def make_model(folder: Path, name: str) -> None:
    """An open_clip folder of the named architecture with random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    described = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    weights = open_clip.create_model(name).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "open_clip_model.safetensors")


def contend(args: argparse.Namespace) -> dict[str, Any]:
    """`{seconds, processor}` of one contender; its scores lie in `root/CONTENDER.parquet`."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    kind, _, precision = args.contender.partition("-")
    [name] = args.model
    folder = args.root / "models" / name
    out = args.root / f"{args.contender}.parquet"
    if kind == "ours":
        return Ours(args, folder, precision).score(out)
    return (plain_loop if kind == "loop" else processor_in_the_actor)(args, folder, out)


class Clock:
    """Time since its making, on the wall and of the processors, all processes counted."""

    def __init__(self) -> None:
        self.began = time.perf_counter(), self._processor()

    def read(self) -> dict[str, float]:
        """`{seconds, processor}`."""
        return {"seconds": time.perf_counter() - self.began[0], "processor": self._processor() - self.began[1]}

    def _processor(self) -> float:
        import psutil

        me = psutil.Process()
        mine = me.cpu_times()
        alive = [child.cpu_times() for child in me.children(recursive=True)]
        gone = mine.children_user + mine.children_system
        return float(gone + sum(times.user + times.system for times in [mine, *alive]))


class Ours:
    """The stage's scoring phase: decoding in processes of its own, the model in this one, units committed."""

    def __init__(self, args: argparse.Namespace, folder: Path, precision: str) -> None:
        from stages import scoring

        scoring.UNIT_IMAGES = (2 * args.batch, 1024)
        config = VlmConfig(model=str(folder), precision=precision, batch_size=args.batch, device=args.device)  # type: ignore[arg-type]
        self.plan, self.phase, *_ = OutliersStage(OutliersConfig(vlm=config)).phases()
        fingerprint = f"{args.contender}-{time.time_ns()}"
        self.run = StageRun(
            store=Store(str(args.root)), stage="outliers", fingerprint=fingerprint, adopt=False, input_stage="dedup"
        )
        run_phase(self.run, self.plan)
        self.units = self.phase.cut(self._workspace(Unit(id="cut")))
        self.workers = args.workers

    def _workspace(self, unit: Unit) -> UnitWorkspace:
        return UnitWorkspace(self.run, self.phase.name, unit)

    def score(self, out: Path) -> dict[str, float]:
        """Time from the first unit's decoding to the last unit's commit."""
        state = self.phase.setup(self._workspace(self.units[0]))
        with self._pool() as pool:
            first = self.units[0]
            for warm in [pool.submit(_prepare, self.run, self.phase, first) for _ in range(self.workers)]:
                prepared = warm.result()
            self.phase.work(first, self._workspace(first), state, prepared)
            clock = Clock()
            files: list[OutputFile] = []
            for unit, prepared in self._prepared(pool):
                done = do_unit(self.run, self.phase, unit, state, prepared=prepared)
                assert done.record is not None, done.error
                files += done.record.files
            taken = clock.read()
        tables = [self._workspace(Unit(id="all")).read_table(file.path) for file in files]
        pq.write_table(pa.concat_tables(tables), out)
        return taken

    def decode_only(self) -> float:
        """Images a second that all cores decode and resize."""
        with self._pool() as pool:
            list(islice(self._prepared(pool), self.workers))
            began = time.perf_counter()
            for _ in self._prepared(pool):
                pass
            return sum(unit.rows for unit in self.units) / (time.perf_counter() - began)

    def forward_only(self, batch: int) -> float:
        """Images a second that the model scores, once they lie decoded in memory."""
        state = self.phase.setup(self._workspace(self.units[0]))
        prepared = self.phase.prepare(self.units[0], self._workspace(self.units[0]))
        rounds = -(-self.units[0].rows // batch)
        self.phase.work(self.units[0], self._workspace(self.units[0]), state, prepared)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < 5:
            self.phase.work(self.units[0], self._workspace(self.units[0]), state, prepared)
            done += rounds * batch
        return done / (time.perf_counter() - began)

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))

    def _prepared(self, pool: ProcessPoolExecutor) -> Iterator[tuple[Unit, pa.Table]]:
        """Units in order, a few decoded ahead, as Ray Data feeds the pool of actors."""
        waiting: list[tuple[Unit, Future[pa.Table]]] = []
        for unit in self.units:
            waiting.append((unit, pool.submit(_prepare, self.run, self.phase, unit)))
            if len(waiting) > 2 * self.workers:
                first, future = waiting.pop(0)
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _prepare(run: StageRun, phase: Phase, unit: Unit) -> pa.Table:
    return phase.prepare(unit, UnitWorkspace(run, phase.name, unit))


class Images:
    """A torch dataset of (image tensor, caption), by the library's own preprocessing."""

    def __init__(self, root: Path, count: int, transform: Any) -> None:
        table = pq.read_table(root / "dedup" / "part-00000.parquet", columns=["sha256", "caption", "image"])
        self.rows = table.slice(0, count).to_pylist()
        self.tar = root / "download" / "images-0.tar"
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, str]:
        import io

        from PIL import Image

        place = self.rows[index]["image"]
        with self.tar.open("rb") as file:
            file.seek(place["offset"])
            image = Image.open(io.BytesIO(file.read(place["size"])))
        return self.transform(image), self.rows[index]["caption"]


def plain_loop(args: argparse.Namespace, folder: Path, out: Path) -> dict[str, float]:
    """Time of the loop everybody writes: `DataLoader`, both towers in fp32, one file of scores at the end."""
    import torch

    score, images = _peer(args, folder)
    loader: Any = torch.utils.data.DataLoader(images, batch_size=args.batch, num_workers=args.workers)  # type: ignore[arg-type]
    return _timed(loader, score, images, out)


def processor_in_the_actor(args: argparse.Namespace, folder: Path, out: Path) -> dict[str, float]:
    """Time of NeMo Curator's way with images: the model's process decodes and resizes its own batch, in fp32."""
    score, images = _peer(args, folder)

    def batches() -> Iterator[tuple[Any, list[str]]]:
        import torch

        for start in range(0, len(images), args.batch):
            pairs = [images[n] for n in range(start, min(start + args.batch, len(images)))]
            yield torch.stack([image for image, _ in pairs]), [caption for _, caption in pairs]

    return _timed(batches(), score, images, out)


def _peer(args: argparse.Namespace, folder: Path) -> tuple[Any, Images]:
    """Scores of a batch, (2, n), and the images."""
    import open_clip
    import torch
    import yaml

    source = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(source, device=args.device)
    tokenizer = open_clip.get_tokenizer(source)
    prompts = yaml.safe_load(Path("manifests/prompts/rs5m.yaml").read_text())["prompts"]

    @torch.inference_mode()
    def score(pixels: Any, captions: list[str]) -> Any:
        found = model.encode_image(pixels.to(args.device), normalize=True)
        texts = model.encode_text(tokenizer(captions).to(args.device), normalize=True)
        return torch.stack([found @ mean, (found * texts).sum(dim=1)]).cpu().numpy()

    with torch.inference_mode():
        mean = model.eval().encode_text(tokenizer(prompts).to(args.device), normalize=True).mean(dim=0)
        mean = mean / mean.norm()
    images = Images(args.root, args.images, transform)
    score(torch.stack([images[n][0] for n in range(min(args.batch, len(images)))]), ["warm"] * args.batch)
    return score, images


def _timed(batches: Any, score: Any, images: Images, out: Path) -> dict[str, float]:
    clock = Clock()
    scores = np.concatenate([score(pixels, list(captions)) for pixels, captions in batches], axis=1)
    ids = [row["sha256"] for row in images.rows]
    pq.write_table(pa.table({"id": ids, **dict(zip(SCORES, scores, strict=True))}), out)
    return clock.read()


def _run(args: argparse.Namespace, model: str, contender: str, images: int) -> tuple[float, float]:
    """(images a second, processor seconds an image) of a contender, as a process of its own.

    Ours scores all images, the others the first `images`.
    """
    command = [sys.executable, "-m", "benchmarks.scoring", "--contender", contender, "--root", str(args.root)]
    command += ["--model", model, "--images", str(images), "--batch", str(args.batch)]
    command += ["--workers", str(args.workers), "--device", args.device]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    taken = json.loads(done.stdout.splitlines()[-1])
    return images / taken["seconds"], taken["processor"] / images


def on_cpu(args: argparse.Namespace, name: str) -> None:
    """Ours in fp32 and in bf16 beside the plain loop."""
    contenders = ("loop", "ours-fp32", "ours-bf16")
    runs: dict[str, list[tuple[float, float]]] = {contender: [] for contender in contenders}
    for _ in range(args.runs):
        for contender in contenders:
            runs[contender].append(_run(args, name, contender, args.images))
            rate, cost = runs[contender][-1]
            print(
                f"{name} {contender}: {rate:.1f} images/s, {1000 * cost:.0f} ms of processor an image", file=sys.stderr
            )
    print(f"\n{name}\n\n| contender | images/s | × the loop | processor time, ms an image | × the loop |", end="")
    print(" largest differences | kept alike, best 90 % |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    loop = _scores(args.root / "loop.parquet")
    for contender, found in runs.items():
        mine = _scores(args.root / f"{contender}.parquet")
        differences = [float(np.abs(mine[column] - loop[column]).max()) for column in SCORES]
        rates, costs = ([each[n] for each in found] for n in (0, 1))
        ratios = [statistics.median(a[n] / b[n] for a, b in zip(found, runs["loop"], strict=True)) for n in (0, 1)]
        print(
            f"| {contender} | {statistics.median(rates):.1f} ({min(rates):.1f}–{max(rates):.1f}) | {ratios[0]:.2f} | "
            f"{1000 * statistics.median(costs):.0f} ({1000 * min(costs):.0f}–{1000 * max(costs):.0f}) | "
            f"{1 / ratios[1]:.2f} | {differences[0]:.1e}, {differences[1]:.1e} | {_alike(mine, loop):.1%} |",
            flush=True,
        )
        if contender == "ours-fp32" and max(differences) > TOLERANCE:
            raise SystemExit(f"scores differ by {max(differences):.1e}, more than {TOLERANCE:.0e}")


def _scores(path: Path) -> dict[str, Any]:
    """Columns in the order of ids."""
    table = pq.read_table(path)
    ids = np.array([entry[:64] for entry in table["id"].to_pylist()])
    return {column: table[column].to_numpy()[np.argsort(ids)] for column in SCORES}


def _alike(mine: dict[str, Any], other: dict[str, Any]) -> float:
    """Share of images on the same side of the cut that keeps the best 90 % by `vlm_score`."""
    sides = [scores["vlm_score"] >= np.quantile(scores["vlm_score"], 0.1) for scores in (mine, other)]
    return float((sides[0] == sides[1]).mean())


def on_gpu(args: argparse.Namespace, name: str) -> None:
    """The whole way beside forward-only, decode-only and the processor in the actor."""
    args.contender = "rates"
    alone = Ours(args, args.root / "models" / name, "auto")
    parts = {"decoding": alone.decode_only(), "forward": alone.forward_only(args.batch)}
    with Watch() as watch:
        whole = [_run(args, name, "ours-auto", args.images)[0] for _ in range(args.runs)]
    few = min(ACTOR_IMAGES, args.images)
    actor = [_run(args, name, "actor-fp32", few)[0] for _ in range(args.runs)]
    binding = min(parts, key=lambda part: parts[part])
    middle, peer = statistics.median(whole), statistics.median(actor)
    print(f"\n{name}: whole {middle:,.0f} images/s ({min(whole):,.0f}–{max(whole):,.0f})")
    print(f"decode and resize alone, {args.workers} processes: {parts['decoding']:,.0f}")
    print(f"forward alone: {parts['forward']:,.0f}; {binding} binds: {middle / parts[binding]:.0%} of it")
    print(f"processor in the actor, fp32: {peer:,.0f}; ours is {middle / peer:.1f} times as fast")
    if args.plot and watch.samples:
        plot(watch.samples, args.plot.with_stem(f"{args.plot.stem}-{name}"), name)


if __name__ == "__main__":
    main()
