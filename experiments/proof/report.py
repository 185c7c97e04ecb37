"""Tables and plots of the results: means over seeds, and differences paired by seed with 95 % intervals (Student's)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.proof.plan import RANDOM
from trainer.errors import UserError

Row = Mapping[str, Any]
MEASURES = {"top1": "30-way zero-shot top-1, %", "mR_same_text": "retrieval mR, %, same text is right"}
KINDS = {"topic": "aerial", "duplicate": "copies", "off_topic": "off topic"}
PLOT = "proof.svg"
MARKS = ("<!-- tables -->", "<!-- /tables -->")
"""Of a page, around what is written anew."""


def write(rows: Sequence[Row], folder: Path) -> str:
    """Draw the plot into a folder; returns all tables as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    contaminated = [row for row in rows if row["experiment"] == "contamination"]
    parts = []
    if contaminated:
        draw(contaminated, folder / PLOT)
        parts.append(f"### Contamination\n\n{contamination(contaminated)}\n\n{reading(contaminated)}")
    for name, against in (
        ("scratch", None),
        ("twins", "0 % of the test images"),
        ("peft", "full"),
        ("captions", "budget"),
    ):
        chosen = [row for row in rows if row["experiment"] == name]
        if chosen:
            parts.append(f"### {name.capitalize()}\n\n" + plain(chosen, against))
    return "\n\n".join(parts)


def fill(page: Path, tables: str) -> None:
    """Write the tables between a page's marks.

    Raises:
        UserError: it has no marks.
    """
    text = page.read_text(encoding="utf-8")
    before, first, rest = text.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise UserError(f"--page {page}: it has no {MARKS[0]} and {MARKS[1]}")
    page.write_text(f"{before}{first}\n\n{tables}\n\n{last}{after}", encoding="utf-8")


def reading(rows: Sequence[Row]) -> str:
    """How many filtered arms are beyond their random subsets, by the intervals."""
    lines = []
    for measure, name in MEASURES.items():
        found = [
            paired(by_seed(rows, level, arm, measure), by_seed(rows, level, RANDOM + arm, measure))
            for level, arm in _points(rows)
        ]
        better, worse = sum(mean - half > 0 for mean, half in found), sum(mean + half < 0 for mean, half in found)
        lines.append(f"{name}: {better} of {len(found)} filtered arms above their random subsets, {worse} below")
    least = min(len(by_seed(rows, level, arm, "top1")) for level, arm in _points(rows)) if _points(rows) else 0
    return f"{'; '.join(lines)}; the others undecided. Seeds an arm: at least {least}."


def by_seed(rows: Sequence[Row], level: float, arm: str, measure: str) -> dict[int, float]:
    """Values of an arm."""
    return {row["seed"]: row[measure] for row in rows if row["arm"] == arm and row["level"] == level}


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[float, float]:
    """Mean of first less second over the seeds that both have, and half of its 95 % interval (nan below two seeds)."""
    from scipy.stats import t

    seeds = sorted(set(first) & set(second))
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    if len(seeds) < 2:
        return float(differences.mean()) if len(seeds) else float("nan"), float("nan")
    spread = differences.std(ddof=1) / np.sqrt(len(seeds)) * t.ppf(0.975, len(seeds) - 1)
    return float(differences.mean()), float(spread)


def _difference(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    mean, half = paired(first, second)
    return f"{mean:+.2f} (one seed)" if np.isnan(half) else f"{mean:+.2f} ± {half:.2f}"


def contamination(rows: Sequence[Row]) -> str:
    """Arms of every level against random subsets of their size."""
    lines = [
        "| bad pairs | arm | pairs | aerial, copies, off topic | seeds | top-1 | less random's | mR | less random's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for level in sorted({row["level"] for row in rows}):
        of_level = [row for row in rows if row["level"] == level]
        for arm in dict.fromkeys(row["arm"] for row in of_level if not row["arm"].startswith(RANDOM)):
            lines.append(_line(of_level, level, arm))
    return "\n".join(lines)


def _line(rows: Sequence[Row], level: float, arm: str) -> str:
    row = next(row for row in rows if row["arm"] == arm)
    counts = ", ".join(f"{row['facts'].get(kind, 0):.0f}" for kind in KINDS)
    cells = [f"{level:.0%}", arm, f"{row['size']:,}", counts, str(len(by_seed(rows, level, arm, "top1")))]
    for measure in MEASURES:
        own, other = by_seed(rows, level, arm, measure), by_seed(rows, level, RANDOM + arm, measure)
        cells.append(f"{np.mean(list(own.values())):.2f}")
        cells.append(_difference(own, other) if other else "")
    return f"| {' | '.join(cells)} |"


def plain(rows: Sequence[Row], against: str | None) -> str:
    """Arms with mean and deviation, and their difference to one of them."""
    lines = ["| arm | seeds | top-1 | difference | mR | difference |", "| --- | --- | --- | --- | --- | --- |"]
    levels = {row["arm"]: row["level"] for row in rows}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = [arm, str(len(by_seed(rows, levels[arm], arm, "top1")))]
        for measure in MEASURES:
            own = by_seed(rows, levels[arm], arm, measure)
            values = np.array(list(own.values()))
            cells.append(
                f"{values.mean():.2f} (sd {values.std(ddof=1):.2f})" if len(values) > 1 else f"{values[0]:.2f}"
            )
            base = by_seed(rows, levels.get(against or "", 0.0), against, measure) if against and against != arm else {}
            cells.append(_difference(own, base) if base else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Every arm's gain over its random twin, with the interval; a panel a measure."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "proof"
    from matplotlib import pyplot

    points = _points(rows)
    figure, panels = pyplot.subplots(1, len(MEASURES), figsize=(10, 0.45 * len(points) + 1.2), sharey=True)
    for panel, measure in zip(panels, MEASURES, strict=True):
        for place, (level, arm) in enumerate(points):
            mean, half = paired(by_seed(rows, level, arm, measure), by_seed(rows, level, RANDOM + arm, measure))
            colour = "tab:green" if mean - half > 0 else "tab:red" if mean + half < 0 else "tab:gray"
            panel.errorbar(mean, place, xerr=half, fmt="o", color=colour, capsize=3)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlabel(f"{MEASURES[measure]}\nfiltered less random subset of equal size")
        panel.set_yticks(range(len(points)), [f"{arm}, {level:.0%} bad" for level, arm in points])
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_ylim(len(points) - 0.5, -0.5)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _points(rows: Sequence[Row]) -> list[tuple[float, str]]:
    arms = {(row["level"], row["arm"]) for row in rows}
    return sorted((level, arm) for level, arm in arms if (level, RANDOM + arm) in arms)
