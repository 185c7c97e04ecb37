"""Which trainings make up which experiment, and what must lie on disk before them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from experiments.proof import arms, world
from experiments.proof.trainings import CONFIG, Run, fit, model_folder
from experiments.subset import draw
from trainer.data import open_index

SCRATCH_SAMPLES = 3
"""The proof that it learns sees so many times what an arm sees."""
LEARNT = 12_800
"""Samples seen by the selector, and by the model that adapters are put into."""
RANDOM = "random for "
COMPOSE = ("budget", "paper")
CONTEXT = 77
TWINS = (0.0, 0.1, 0.5)
"""Shares of the judging images that are in the training set, too."""
VIT: dict[str, Any] = {
    **CONFIG,
    "model_cfg": {
        **CONFIG["model_cfg"],
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 96, "head_width": 32, "patch_size": 8},
    },
}
"""The text tower's companion where adapters are compared: open_clip's own vision transformer."""
ALL_CAPTIONS = ("--set", "captions.weights={user: 1}")
"""Any of an image's captions, another every time."""
PEFT = ("none", "lora", "pfeiffer", "prefix", "unipelt")


def prepare(data: Path, out: Path, detector: Path | None, unseen: Path | None) -> None:
    """Everything but the trainings; what is there already stays."""
    web = out / "web"
    web.mkdir(parents=True, exist_ok=True)
    parts = world.split(data)
    model_folder(out)
    world.write_judge(parts.judge, out / "judge")
    world.write_judge(parts.val, out / "val")
    with arms.cluster():
        _train_part(parts, out)
        _twins(parts, out)
        _captions(parts, out)
        models = {"detector": detector or "builtin", "unseen": unseen, **_selector(parts, out)}
        for level in world.LEVELS:
            _pool(parts, level, models, out)
    _base(parts, out)


def _pool(parts: world.Parts, level: float, models: Mapping[str, Any], out: Path) -> None:
    """A contaminated pool, and what each arm's recipe leaves of it."""
    folder, web = out / "pools" / f"{round(level * 100):02d}", out / "web"
    with arms.serving(web) as base:
        rows = world.write_pool(world.pool(parts, level, web), folder, base)
        for name in arms.arms_at(level):
            if "unseen" in arms.ARMS[name] and not models["unseen"]:
                continue
            described = arms.recipe(name, rows, models)
            _tell(arms.curate(described, folder / "root", folder / name.replace(" ", "_")), name, folder)


def _tell(shards: Path, name: str, folder: Path) -> None:
    facts = kinds(shards, folder)
    print(f"{folder.name} % {name}: {sum(facts.values())} pairs, {dict(facts)}", flush=True)


@cache
def kinds(shards: Path, folder: Path) -> Counter[str]:
    """How many samples of each kind tars hold."""
    truth = {row["name"]: row["kind"] for row in map(json.loads, (folder / "truth.jsonl").read_text().splitlines())}
    return Counter(truth[url.rpartition("/")[2]] for url in arms.keys_of(shards).values())


def _ingest(source: Mapping[str, Any], root: Path) -> Path:
    stages = {"ingest": {}, "shards": {"count": 4, "val_fraction": 0.0}}
    described = {"name": "proof", "subset": "proof", "seed": 1, "sources": [dict(source)], "stages": stages}
    return arms.curate(described, root, root.with_name("tars"))


def _train_part(parts: world.Parts, out: Path) -> None:
    _ingest(world.write_folder(parts.train, out / "train"), out / "train" / "run")


def _selector(parts: world.Parts, out: Path) -> dict[str, Any]:
    """Train the CLIP that selects, on pairs that no pool has; its threshold is from a fifth that it did not see."""
    folder = out / "selector"
    pairs = _selector_pairs(parts)
    (folder / "everything.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "everything.yaml").write_text(_everything())
    cut = len(pairs) * 4 // 5
    prompts = [pair.captions[0] for pair, is_topic in pairs[:cut] if is_topic]
    (folder / "prompts.yaml").write_text(json.dumps({"prompts": prompts}))
    if not (folder / "training" / "model").exists():
        shards = _ingest(world.write_folder([pair for pair, _ in pairs[:cut]], folder / "pairs"), folder / "run")
        fit(f"{shards}/*.tar", folder / "training", str(out / "model"), 100, LEARNT, ALL_CAPTIONS)
    if not (folder / "threshold.json").exists():
        (folder / "threshold.json").write_text(json.dumps(_threshold(folder, pairs[cut:])))
    return {
        "everything": folder / "everything.yaml",
        "prompts": folder / "prompts.yaml",
        "vlm": folder / "training" / "model",
        "at_least": json.loads((folder / "threshold.json").read_text())["at_least"],
    }


def _selector_pairs(parts: world.Parts) -> list[tuple[world.Captioned, int]]:
    """Images with alt texts as the pools have them, and 1 for an aerial one; shuffled."""
    rng = np.random.default_rng([world.SEED, 4])
    found = []
    for items, kind in ((parts.selector, world.TOPIC), (parts.photographs_selector, world.OFF_TOPIC)):
        for item in items:
            texts = [_alt_text(text.strip(), kind, rng) for text in item.captions]
            found.append((world.Captioned(item.path, item.label, texts), int(kind == world.TOPIC)))
    return [found[index] for index in rng.permutation(len(found))]


def _alt_text(text: str, kind: str, rng: np.random.Generator) -> str:
    view = world.VIEWS[int(rng.integers(len(world.VIEWS)))]
    return view.format(text) if rng.random() < world.SAYS[kind] else text


def _everything() -> str:
    """A pack of which every text hits a term: the arm without a keyword filter still goes through the stage."""
    terms = [
        f'  - {{term: "{letter}", end: open, why: "any text"}}' for letter in "abcdefghijklmnopqrstuvwxyz0123456789"
    ]
    return "name: everything\ndescription: Any text at all.\nterms:\n" + "\n".join(terms) + "\n"


def _threshold(folder: Path, pairs: Sequence[tuple[world.Captioned, int]]) -> dict[str, float]:
    """The score of best balanced accuracy on pairs that the selector did not see."""
    from PIL import Image

    from trainer.evaluation.model import Choice, load

    encoder = load(Choice(model=str(folder / "training" / "model")))
    prompts = json.loads((folder / "prompts.yaml").read_text())["prompts"]
    texts = encoder.texts(prompts)
    direction = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).mean(0)
    images = encoder.images([Image.open(pair.path).convert("RGB") for pair, _ in pairs])
    scores = images / np.linalg.norm(images, axis=1, keepdims=True) @ (direction / np.linalg.norm(direction))
    labels = np.array([label for _, label in pairs])
    cuts = np.sort(scores)
    quality = [((scores >= cut)[labels == 1].mean() + (scores < cut)[labels == 0].mean()) / 2 for cut in cuts]
    best = int(np.argmax(quality))
    print(f"selector: balanced accuracy {quality[best]:.3f} from {cuts[best]:.3f} on", flush=True)
    return {"at_least": float(cuts[best]), "balanced_accuracy": float(quality[best])}


def _twins(parts: world.Parts, out: Path) -> None:
    """Clean training sets in which altered copies of judging images stand in for some of the others."""
    web = out / "web"
    for share in TWINS:
        folder = out / "twins" / f"{round(share * 100):02d}"
        rng = np.random.default_rng([world.SEED, 5])
        count = round(len(parts.judge) * share)
        chosen = [parts.judge[index] for index in rng.permutation(len(parts.judge))[:count]]
        pairs = [_altered(item, web, rng) for item in chosen]
        kept = parts.topic[: len(parts.topic) - count]
        _ingest(world.write_folder([*kept, *pairs], folder), folder / "run")


def _altered(item: world.Captioned, web: Path, rng: np.random.Generator) -> world.Captioned:
    path = web / "twins" / item.path.name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(world.altered(item.path, rng))
    return world.Captioned(path, item.label, item.captions)


def _captions(parts: world.Parts, out: Path) -> None:
    """The clean pairs, their captions joined to facts in the order of `compose: budget` and in the paper's."""
    from stages.captioning.meta import load_templates

    templates = load_templates(["fmow"], "templates")
    for mode in COMPOSE:
        if (out / "captions" / mode / "tars" / "shards").exists():
            continue
        rng = np.random.default_rng([world.SEED, 6])
        items = [_with_facts(item, mode, templates, rng) for item in parts.topic]
        _ingest(world.write_folder(items, out / "captions" / mode), out / "captions" / mode / "run")


def _with_facts(item: world.Captioned, mode: str, templates: Any, rng: np.random.Generator) -> world.Captioned:
    """The class is the image's; place, date and sizes are made up, since the images came without."""
    from stages.captioning.compose import compose
    from stages.captioning.facts import slots
    from stages.captioning.meta import Part

    month = int(rng.integers(1, 13))
    record = {
        "labels": ["".join(f" {letter.lower()}" if letter.isupper() else letter for letter in item.label).strip()],
        "country": str(rng.choice(["Brazil", "Kenya", "Italy", "Japan", "Canada"])),
        "place": str(rng.choice(["Riverton", "Old Bridge", "Santa Rita", "Kita", "Moravia"])),
        "platform": str(rng.choice(["WorldView-2", "GeoEye-1", "QuickBird"])),
        "utm_zone": f"{int(rng.integers(1, 61))}S",
        "season": ("winter", "spring", "summer", "autumn")[month % 12 // 3],
        "month": month,
        "year": int(rng.integers(2002, 2018)),
        "gsd_m": float(rng.choice([0.31, 0.5, 0.6])),
        "pixel_x_m": 0.5,
        "pixel_y_m": 0.5,
        "width": 600,
        "height": 600,
    }
    strip = "Sun elevation {} degrees, sun azimuth {} degrees, off-nadir angle {} degrees and cloud cover {} percent"
    strip += " of the strip at the time of the acquisition."
    found = []
    for number, text in enumerate(item.captions):
        key = f"{item.path.name}-{number}"
        sentences = templates.sentences(slots(record), world.SEED, key)
        sentences.append(Part(strip.format(*rng.integers(10, 80, 4)), "metadata"))
        caption, whole = Part(text.strip(), "user"), Part(" ".join(each.text for each in sentences), "metadata")
        found.append(compose(caption, whole, sentences, mode, CONTEXT).text)
    return world.Captioned(item.path, item.label, found)


def _base(parts: world.Parts, out: Path) -> None:
    """A vision transformer that has seen the selector's pairs: what adapters are put into."""
    folder = out / "base"
    if (folder / "model").exists():
        return
    shards = out / "selector" / "tars" / "shards" / "train"
    fit(f"{shards}/*.tar", folder, str(model_folder(out, VIT, "vit")), 200, LEARNT, ALL_CAPTIONS)


def runs(out: Path, seeds: int, samples: int, only: Sequence[str]) -> list[Run]:
    """The trainings of some experiments, seed by seed, so that an early end leaves whole seeds."""
    found = [run for seed in range(seeds) for name in only for run in EXPERIMENTS[name](out, seed, samples)]
    return sorted(found, key=lambda run: run.seed)


def scratch(out: Path, seed: int, samples: int) -> list[Run]:
    """A CLIP from nothing on AID's train part, judged on the val part."""
    return [
        Run(
            experiment="scratch",
            arm="train part",
            seed=seed,
            data=f"{out}/train/tars/shards/train/*.tar",
            judge=str(out / "val"),
            samples=samples * SCRATCH_SAMPLES,
            options=ALL_CAPTIONS,
        )
    ]


def contamination(out: Path, seed: int, samples: int) -> list[Run]:
    """Every arm of every level, and a random subset of the pool of each filtered arm's size."""
    found = []
    for level in world.LEVELS:
        folder = out / "pools" / f"{round(level * 100):02d}"
        whole = folder / arms.NONE / "shards" / "train"
        index = open_index(f"{whole}/*.tar")
        for name in arms.arms_at(level):
            shards = folder / name.replace(" ", "_") / "shards" / "train"
            if not shards.exists():
                continue
            facts = dict(kinds(shards, folder))
            found.append(_arm(out, name, level, seed, samples, shards, facts))
            if name != arms.NONE:
                size = sum(facts.values())
                subset = folder / "random" / f"{name.replace(' ', '_')}-{seed}"
                if not subset.exists():
                    draw(index, size, seed, subset)
                found.append(_arm(out, RANDOM + name, level, seed, samples, subset, dict(kinds(subset, folder))))
    return found


def _arm(out: Path, name: str, level: float, seed: int, samples: int, shards: Path, facts: Mapping[str, int]) -> Run:
    return Run(
        experiment="contamination",
        arm=name,
        level=level,
        seed=seed,
        data=f"{shards}/*.tar",
        judge=str(out / "judge"),
        samples=samples,
        size=sum(facts.values()),
        facts={kind: float(count) for kind, count in facts.items()},
    )


def twins(out: Path, seed: int, samples: int) -> list[Run]:
    """With and without altered copies of judging images among the training pairs."""
    return [
        Run(
            experiment="twins",
            arm=f"{round(share * 100)} % of the test images",
            level=share,
            seed=seed,
            data=f"{out}/twins/{round(share * 100):02d}/tars/shards/train/*.tar",
            judge=str(out / "judge"),
            samples=samples,
            options=ALL_CAPTIONS,
        )
        for share in TWINS
    ]


def captions(out: Path, seed: int, samples: int) -> list[Run]:
    """The caption first and facts while they fit, against all facts first, as RS5M has them: CLIP reads 77 tokens."""
    return [
        Run(
            experiment="captions",
            arm=mode,
            seed=seed,
            data=f"{out}/captions/{mode}/tars/shards/train/*.tar",
            judge=str(out / "judge"),
            samples=samples,
            options=ALL_CAPTIONS,
        )
        for mode in COMPOSE
    ]


def peft(out: Path, seed: int, samples: int) -> list[Run]:
    """All weights against each kind of parts, from one base, on the clean pairs."""
    return [
        Run(
            experiment="peft",
            arm="full" if kind == "none" else kind,
            seed=seed,
            data=f"{out}/twins/00/tars/shards/train/*.tar",
            judge=str(out / "judge"),
            samples=samples // 2,
            model=str(out / "base" / "model"),
            options=("--peft", kind, "--lr", PEFT_LR[kind], *ALL_CAPTIONS),
        )
        for kind in PEFT
    ]


PEFT_LR = {"none": "5e-4", "lora": "2e-3", "pfeiffer": "2e-3", "prefix": "2e-3", "unipelt": "2e-3"}
EXPERIMENTS: dict[str, Callable[[Path, int, int], list[Run]]] = {
    "scratch": scratch,
    "contamination": contamination,
    "twins": twins,
    "captions": captions,
    "peft": peft,
}
