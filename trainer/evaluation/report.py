"""Results as JSON, Markdown and a plot, beside the published figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import UserError
from trainer.evaluation.bootstrap import Tally
from trainer.evaluation.judge import Found
from trainer.evaluation.localisation import FIGURES

PUBLISHED = Path(__file__).with_name("published.yaml")
OWN = "this model"
SECTIONS = ("zero_shot", "retrieval", "selo")


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Indented, ended by a line feed; NaN is refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tallies(path: Path, found: Mapping[tuple[str, str], Found]) -> None:
    """What every image added, for `compare`: `results.npz` beside `results.json`."""
    arrays: dict[str, Any] = {}
    for (section, name), one in found.items():
        held = one.tally
        arrays |= {
            f"{section}/{name}/units": np.array(held.units),
            f"{section}/{name}/names": np.array(held.names),
            f"{section}/{name}/sums": held.sums,
            f"{section}/{name}/counts": held.counts,
            f"{section}/{name}/scale": np.array(one.scale),
            f"{section}/{name}/means": np.array(json.dumps({key: list(value) for key, value in held.means.items()})),
        }
    np.savez_compressed(path, **arrays)


def read_tallies(path: Path) -> dict[tuple[str, str], tuple[Tally, float]]:
    """Tallies and scales by section and benchmark.

    Raises:
        UserError: the file is missing or was not written by `write_tallies`.
    """
    try:
        with np.load(path, allow_pickle=False) as read:
            names = sorted({tuple(key.rsplit("/", 1)[0].split("/", 1)) for key in read.files})
            return {(section, name): _tally(read, f"{section}/{name}") for section, name in names}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: the file that evaluate wrote beside its results is wanted ({error})") from error


def _tally(read: Any, at: str) -> tuple[Tally, float]:
    tally = Tally(
        units=read[f"{at}/units"].tolist(),
        names=read[f"{at}/names"].tolist(),
        sums=read[f"{at}/sums"],
        counts=read[f"{at}/counts"],
        means=json.loads(str(read[f"{at}/means"])),
    )
    return tally, float(read[f"{at}/scale"])


def published() -> dict[str, dict[str, Any]]:
    """`models`: {model: {figure, as `comparable` names it: value}}; `images`: {figure: images behind it}."""
    import yaml

    read: dict[str, dict[str, Any]] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return read


@dataclass(frozen=True)
class Figure:
    """One figure that the literature prints, too."""

    value: float
    ci95: Sequence[float]
    images: int


def comparable(results: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures that the literature prints: "aid top-1", "rsicd mR", "Rsu" ….

    Zero-shot figures are those of the paper's averaging.
    """
    found: dict[str, Figure] = {}
    for name, one in results.get("zero_shot", {}).items():
        found[f"{name.lower()} top-1"] = Figure(one["top1_paper"], one["ci95"]["top1_paper"], one["n"])
    for name, one in results.get("retrieval", {}).items():
        found[f"{name.lower()} mR"] = Figure(one["mR"], one["ci95"]["mR"], one["n_images"])
    for one in results.get("selo", {}).values():
        found |= {figure: Figure(one[figure], one["ci95"][figure], one["n_images"]) for figure in FIGURES}
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of a results.json."""
    parts = [f"# Evaluation of {results['model']['name']}", _settings(results)]
    if results.get("zero_shot"):
        parts += ["## Zero-shot classification", _zero_shot(results["zero_shot"])]
    if results.get("retrieval"):
        parts += ["## Retrieval", _retrieval(results["retrieval"])]
    if results.get("selo"):
        parts += ["## Semantic localisation", _selo(results["selo"])]
    own = comparable(results)
    known = published()
    if any(set(row) & set(own) for row in known["models"].values()):
        parts += ["## Beside the published figures", _beside(own, known["models"]), *_other_sizes(own, known["images"])]
    return "\n\n".join(parts) + "\n"


def _settings(results: Mapping[str, Any]) -> str:
    model = results["model"]
    said = ", ".join(f"{key} {value}" for key, value in model.items() if key != "name" and value is not None)
    overlap = results["overlap"]
    checked = "not checked" if overlap is None else ", ".join(f"{name} {count}" for name, count in overlap.items())
    return (
        f"Model: {said}. Brackets: 95 % bootstrap intervals over images. Ties count with their expected value."
        f" Images that were trained on: {checked}."
    )


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows)])


def _spread(value: float, ends: Sequence[float], digits: int = 2) -> str:
    return f"{value:.{digits}f} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def _zero_shot(found: Mapping[str, Any]) -> str:
    head = [
        "benchmark",
        "images",
        "classes",
        "top-1",
        "top-1, paper's averaging",
        "mean over classes",
        "ties, worst–best",
    ]
    rows = [
        [
            name,
            one["n"],
            one["classes"],
            _spread(one["top1"], one["ci95"]["top1"]),
            _spread(one["top1_paper"], one["ci95"]["top1_paper"]),
            f"{one['mean_per_class']:.2f}",
            f"{one['worst']['top1']:.2f}–{one['best']['top1']:.2f}",
        ]
        for name, one in found.items()
    ]
    return _grid(head, rows)


def _retrieval(found: Mapping[str, Any]) -> str:
    head = ["benchmark", "protocol", *(f"{way} R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)), "mR"]
    rows = []
    for name, one in found.items():
        rows.append(
            [f"{name}, {one['n_images']} images", "paper", *_recalls(one), _spread(one["mR"], one["ci95"]["mR"])]
        )
        aware = one["duplicate_aware"]
        rows.append(["", "same text is right", *_recalls(aware), _spread(aware["mR"], aware["ci95"]["mR"])])
        for label, key in (("ties, worst", "worst"), ("ties, best", "best"), ("ceiling by duplicates", "ceiling")):
            rows.append(["", label, *_recalls(one[key]), f"{one[key]['mR']:.2f}"])
    return _grid(head, rows)


def _recalls(one: Mapping[str, Any]) -> list[str]:
    return [f"{one[way][f'R@{k}']:.2f}" for way in ("i2t", "t2i") for k in (1, 5, 10)]


def _selo(found: Mapping[str, Any]) -> str:
    rows = [
        [name, one["n_queries"], *(_spread(one[figure], one["ci95"][figure], 4) for figure in FIGURES)]
        for name, one in found.items()
    ]
    return _grid(["benchmark", "queries", "Rsu ↑", "Ras ↓", "Rda ↑", "Rmi ↑"], rows)


def _beside(own: Mapping[str, Figure], rows: Mapping[str, Mapping[str, float]]) -> str:
    columns = [name for name in own if any(name in row for row in rows.values())]

    def cell(name: str, value: float | None) -> str:
        return "" if value is None else f"{value:.{4 if name in FIGURES else 2}f}"

    lines = [[f"**{OWN}**", *(cell(name, own[name].value) for name in columns)]]
    lines += [[model, *(cell(name, row.get(name)) for name in columns)] for model, row in rows.items()]
    return _grid(["model", *columns], lines)


def _other_sizes(own: Mapping[str, Figure], sizes: Mapping[str, int]) -> list[str]:
    """A sentence, if some benchmark is not the whole one."""
    said = [
        f"{name} over {own[name].images:,} images, published over {size:,}"
        for name, size in sizes.items()
        if name in own and own[name].images != size
    ]
    return [f"Not the same images: {'; '.join(said)}."] if said else []


def draw(results: Mapping[str, Any], path: Path) -> None:
    """A panel for each figure that the literature prints: its models as bars, this one with its interval."""
    from matplotlib.figure import Figure as Sheet

    own, rows = comparable(results), published()["models"]
    sheet = Sheet(figsize=(2.6 * max(2, len(own)), 3.2), layout="constrained")
    panels = sheet.subplots(1, len(own), squeeze=False, sharey=True)[0]
    labels = [OWN, *rows]
    for panel, (name, one) in zip(panels, own.items(), strict=True):
        values = [one.value, *(row.get(name, 0.0) for row in rows.values())]
        panel.barh(labels, values, color=["tab:orange"] + ["tab:grey"] * len(rows))
        ends = [[max(0.0, one.value - one.ci95[0])], [max(0.0, one.ci95[1] - one.value)]]
        panel.errorbar([one.value], [OWN], xerr=ends, color="black", capsize=3)
        panel.set_title(name if name in FIGURES else f"{name}, %")
    panels[0].invert_yaxis()
    sheet.savefig(path, dpi=110, metadata={"Software": None})


def comparison_markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each benchmark and figure: both values, their difference and its interval."""
    rows = [
        [
            name,
            figure,
            f"{one['first']:.4g}",
            f"{one['second']:.4g}",
            _spread(one["difference"], one["ci95"], 4),
            one["images"],
        ]
        for name, figures in found.items()
        for figure, one in figures.items()
    ]
    return _grid(["benchmark", "figure", "first", "second", "second − first [95 %]", "images"], rows) + "\n"
