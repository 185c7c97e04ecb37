"""The statistics report: `report.json`, `report.md`, PNG charts and one self-contained `index.html`."""

from __future__ import annotations

import json

from curation import finished
from curation.funnel import COLUMNS
from curation.report.labels import number
from stages.storage import Store

FOLDER = "report"


def build(store: Store) -> str:
    """Write the report of what is finished under a root; returns the funnel as text, and where the report lies.

    Raises:
        UserError: the root holds no run, or a manifest is damaged.
        ConservationError: the sums of the manifests do not hold.
    """
    from curation.report import captioning, charts, facts, groups, page, samples

    root = finished.load(store)
    found = facts.collect(root)
    chosen = samples.choose(root)
    pictures = dict(charts.draw(found))
    for name, picture in pictures.items():
        store.write(f"{FOLDER}/{name}", picture)
    store.write(f"{FOLDER}/report.json", json.dumps(found, indent=1, ensure_ascii=False).encode())
    store.write(f"{FOLDER}/report.md", page.markdown(found, list(pictures)).encode())
    store.write(
        f"{FOLDER}/index.html", page.html(found, chosen, groups.choose(root, found), captioning.choose(root)).encode()
    )
    return f"{text_table(found['funnel'])}\n\nreport: {store.url}/{FOLDER}/index.html"


def text_table(rows: list[dict[str, object]]) -> str:
    """The funnel for a terminal: names left, numbers right."""
    cells = [list(COLUMNS)] + [
        [str(row["name"]), *(number(row[name]) for name in COLUMNS[1:])]  # type: ignore[arg-type]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    lines = []
    for line in cells:
        first, *others = (
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join([first, *others]))
    return "\n".join(lines)
