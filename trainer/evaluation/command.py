"""The command line of `python -m trainer.evaluate`: judge a model, compare two results, prepare RET-2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.evaluation.data import Classification, Retrieval, Scene
    from trainer.evaluation.judge import Found

DESCRIPTION = (
    "Judge a CLIP: zero-shot classification, retrieval and semantic localisation."
    " `compare A.json B.json` sets two results against each other; `prepare-ret2` makes training sets."
)
HEAT_MAPS = "-heatmaps"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one sentence and status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"compare": (compare_parser, compare), "prepare-ret2": (ret2_parser, prepare_ret2)}
    parser, run = commands.get(words[0] if words else "", (evaluate_parser, evaluate))
    options = parser().parse_args(words[1:] if run is not evaluate else words)
    try:
        run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def evaluate_parser() -> argparse.ArgumentParser:
    """Options of an evaluation."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate", description=DESCRIPTION)
    add = parser.add_argument
    add("--model", required=True, help="open_clip name, hub id (org/name), or open_clip folder")
    add("--pretrained", help="open_clip's tag of weights")
    add("--checkpoint", type=Path, help="state dict: open_clip's, GeoRSCLIP's or ITRA's")
    add("--adapter", type=Path, help="trained parts (peft.safetensors) for the model; a folder's own are found unasked")
    add("--quick-gelu", choices=("yes", "no"), help="the activation of a checkpoint's model, where nothing records it")
    add("--zero-shot", action="append", default=[], metavar="NAME=FOLDER")
    add("--retrieval", action="append", default=[], metavar="NAME=CSV_OR_JSON,IMAGES[,SPLIT] or NAME=FOLDER")
    add("--selo", action="append", default=[], metavar="FOLDER", help="AIR-SLT's folder")
    add("--out", type=Path, required=True, help="results.json; .md, .png, .npz and heat maps are written beside it")
    add("--benchmarks", type=Path, help="YAML of class names and templates beside the shipped ones")
    add(
        "--train-data",
        action="append",
        default=[],
        metavar="TARS",
        help="what the model was trained on; may be repeated",
    )
    add("--allow-overlap", action="store_true", help="judge on images of --train-data, too")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    add("--batch-size", type=int, default=64)
    add("--workers", type=int, default=2, help="threads that decode images")
    add("--seed", type=int, default=0, help="of the bootstrap")
    return parser


def compare_parser() -> argparse.ArgumentParser:
    """Options of a comparison."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate compare",
        description="The second results less the first, paired by image, with 95 % bootstrap intervals.",
    )
    parser.add_argument("first", type=Path, help="results.json with the .npz beside it")
    parser.add_argument("second", type=Path)
    parser.add_argument("--out", type=Path, help="JSON; a .md is written beside it")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def ret2_parser() -> argparse.ArgumentParser:
    """Options of the preparation of training sets."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate prepare-ret2",
        description="RSICD's, RSITMD's and both train sets as tars, without twins of either test set.",
    )
    parser.add_argument("--rsicd", required=True, metavar="JSON,IMAGES")
    parser.add_argument("--rsitmd", required=True, metavar="JSON,IMAGES")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--radius", type=int, default=2, help="bits by which perceptual hashes of twins may differ")
    parser.add_argument("--shards", type=int, default=4, help="tars of each set")
    return parser


def evaluate(options: argparse.Namespace) -> None:
    """Read every benchmark, then load the model, then judge: mistakes are told before the work."""
    from trainer.evaluation import report
    from trainer.evaluation.model import Choice, load

    if min(options.batch_size, options.workers) < 1:
        raise UserError(f"--batch-size {options.batch_size} --workers {options.workers}: at least 1 is wanted")
    benchmarks = _benchmarks(options)
    overlap = _overlap(options, benchmarks)
    choice = Choice(
        model=options.model,
        pretrained=options.pretrained,
        checkpoint=options.checkpoint,
        adapter=options.adapter,
        quick_gelu=None if options.quick_gelu is None else options.quick_gelu == "yes",
        device=options.device,
        precision=options.precision,
    )
    encoder = load(choice, batch=options.batch_size, workers=options.workers)
    found: dict[tuple[str, str], Found] = {}
    for (section, name), data in benchmarks.items():
        print(f"{section} {name} …", file=sys.stderr, flush=True)
        found[section, name] = _judge(encoder, section, name, data, options)
    results: dict[str, Any] = {"model": _described(options), "seed": options.seed, "overlap": overlap}
    for (section, name), one in found.items():
        results.setdefault(section, {})[name] = one.figures
    report.write_json(options.out, results)
    report.write_tallies(options.out.with_suffix(".npz"), found)
    text = report.markdown(results)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    report.draw(results, options.out.with_suffix(".png"))
    print(text, end="")


def _described(options: argparse.Namespace) -> dict[str, Any]:
    checkpoint = options.checkpoint
    return {
        "name": options.model,
        "pretrained": options.pretrained,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "adapter": str(options.adapter) if options.adapter else None,
        "quick_gelu": options.quick_gelu,
        "precision": options.precision,
    }


def _benchmarks(options: argparse.Namespace) -> dict[tuple[str, str], Any]:
    from trainer.evaluation import data

    found: dict[tuple[str, str], Classification | Retrieval | Sequence[Scene]] = {}
    known = data.definitions(options.benchmarks)
    for said in options.zero_shot:
        name, folder = _named("--zero-shot", said)
        _add(found, "zero_shot", name, data.read_classification(name, Path(folder), known))
    for said in options.retrieval:
        name, rest = _named("--retrieval", said)
        captions, images, split = (*rest.split(","), "", "")[:3]
        read = data.read_retrieval(name, Path(captions), Path(images) if images else None, split or "test")
        _add(found, "retrieval", name, read)
    for folder in options.selo:
        _add(found, "selo", Path(folder).resolve().name, data.read_scenes(Path(folder)))
    if not found:
        raise UserError("nothing to judge on: give --zero-shot, --retrieval or --selo")
    return found


def _add(found: dict[tuple[str, str], Any], section: str, name: str, data: Any) -> None:
    if (section, name) in found:
        raise UserError(f"--{section.replace('_', '-')} {name}: the name is given twice")
    found[section, name] = data


def _named(option: str, said: str) -> tuple[str, str]:
    name, sign, rest = said.partition("=")
    if not (name and sign and rest) or "/" in name:
        raise UserError(f"{option} {said}: NAME=… is wanted, the name without a slash")
    return name, rest


def _overlap(options: argparse.Namespace, benchmarks: dict[tuple[str, str], Any]) -> dict[str, int] | None:
    from trainer.evaluation.overlap import refuse, trained_digests

    if not options.train_data:
        return None
    trained = trained_digests(options.train_data)
    counts = {}
    for (section, name), data in benchmarks.items():
        images = data.images if section != "selo" else list(dict.fromkeys(scene.image for scene in data))
        option = f"--{section.replace('_', '-')} {name}"
        counts[f"{section}/{name}"] = refuse(option, images, trained, options.allow_overlap)
    return counts


def _judge(encoder: Any, section: str, name: str, data: Any, options: argparse.Namespace) -> Found:
    from trainer.evaluation import judge

    if section == "zero_shot":
        return judge.judge_classification(encoder, data, options.seed)
    if section == "retrieval":
        return judge.judge_retrieval(encoder, data, options.seed)
    pictures = options.out.with_name(f"{options.out.stem}{HEAT_MAPS}") / name
    return judge.judge_scenes(encoder, data, pictures, options.seed)


def compare(options: argparse.Namespace) -> None:
    """Paired differences over the benchmarks that both results have."""
    from trainer.evaluation import bootstrap, report

    first, second = (report.read_tallies(path.with_suffix(".npz")) for path in (options.first, options.second))
    found = {}
    for section, name in sorted(set(first) & set(second)):
        (one, scale), (other, _) = first[section, name], second[section, name]
        if not set(one.units) & set(other.units):
            raise UserError(f"{section} {name}: the two results have no image in common")
        found[f"{section}/{name}"] = bootstrap.compare(one, other, options.seed, scale)
    if not found:
        raise UserError(f"{options.first} and {options.second}: no benchmark in common")
    text = report.comparison_markdown(found)
    if options.out:
        report.write_json(options.out, found)
        options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text, end="")


def prepare_ret2(options: argparse.Namespace) -> None:
    """Write the training sets and say how many images were left out."""
    from trainer.evaluation.ret2 import prepare

    sets = {}
    for name, said in (("rsicd", options.rsicd), ("rsitmd", options.rsitmd)):
        captions, sign, images = said.partition(",")
        if not sign:
            raise UserError(f"--{name} {said}: JSON,IMAGES is wanted")
        sets[name] = Path(captions), Path(images)
    for name, (kept, dropped) in prepare(sets, options.out, options.radius, options.shards).items():
        print(f"{name}: {kept} images kept, {dropped} left out")
