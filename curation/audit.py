"""`python -m curation.audit`: how good is the selection by scores? A sheet for a person to label, and what follows.

    python -m curation.audit --root DIR --out FOLDER     # draws samples: FOLDER/sheet.csv and FOLDER/images/
    python -m curation.audit --labels FOLDER/sheet.csv   # reads the labels back: precision and recall

Samples come from four strata: just inside the cut, just outside of it, and the rest of either side; the sheet
does not tell which. Estimates weigh each stratum by its rows.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation import finished
from curation.console import exit_code
from curation.estimates import Stratum, precision_and_recall
from curation.finished import Finished
from curation.recipe import root_store
from stages.base import KEPT
from stages.errors import UserError
from stages.selection import CUTS, UNSCORABLE

STRATA = ("just inside", "inside", "just outside", "outside")
NEAR = 0.1
"""Share of either side that counts as near the cut."""
SIDE = 512
"""Longest side of an exported image, in pixels."""
YES, NO = frozenset(["1", "yes", "y", "true"]), frozenset(["0", "no", "n", "false"])
SHEET, KEY = "sheet.csv", "strata.json"
COLUMNS = ("number", "label", "image", "caption", "source", "url")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a sheet, or read one back."""
    parser = argparse.ArgumentParser(
        prog="python -m curation.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", metavar="DIR", help="the run's folder or fsspec URL")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="a new folder for the sheet and its images")
    parser.add_argument("--samples", type=int, default=200, help="samples in all (default: 200)")
    parser.add_argument("--seed", type=int, default=2023, help="of the draw (default: 2023)")
    parser.add_argument("--labels", metavar="CSV", type=Path, help="a sheet whose column `label` holds 1 or 0")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return exit_code(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    if args.labels is not None:
        print(read_back(args.labels))
    elif args.root is None or args.out is None:
        raise UserError("give --root and --out to draw a sheet, or --labels to read one back")
    elif args.samples < len(STRATA):
        raise UserError(f"--samples is {args.samples}; accepted: {len(STRATA)} or more")
    else:
        count = draw(finished.load(root_store(args.root)), args.out, args.samples, args.seed)
        print(f"{count} samples: write 1 (remote sensing) or 0 into the column `label` of {args.out / SHEET}, then")
        print(f"python -m curation.audit --labels {args.out / SHEET}")
    return 0


def draw(root: Finished, out: Path, samples: int, seed: int) -> int:
    """Write a sheet; returns the number of its samples.

    Raises:
        UserError: the run has no scores, or the folder holds a sheet already.
    """
    if (out / SHEET).exists():
        raise UserError(f"--out {out} holds a sheet already, perhaps with labels: choose another folder")
    table = _scored(root)
    strata = stratify(table, root.manifests["outliers"].config.get("keep", {}).get("combine", "and"))
    order = _ranks(table["key"].to_pylist(), seed)
    chosen = np.concatenate([_first(np.flatnonzero(strata == s), order, samples // len(STRATA)) for s in range(4)])
    chosen = chosen[np.argsort(order[chosen])]
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = list(_full_rows(root, table, chosen))
    with (out / SHEET).open("w", newline="", encoding="utf-8") as file:
        sheet = csv.writer(file)
        sheet.writerow(COLUMNS)
        for number, row in enumerate(rows, 1):
            image = f"images/{number:04d}.jpg"
            (out / image).write_bytes(_picture(root, row))
            sheet.writerow([number, "", image, *(_cell(row[name]) for name in COLUMNS[3:])])
    key = {
        "seed": seed,
        "rows": {name: int(np.sum(strata == s)) for s, name in enumerate(STRATA)},
        "samples": [{"key": row["key"], "stratum": STRATA[strata[at]]} for row, at in zip(rows, chosen, strict=True)],
    }
    (out / KEY).write_text(json.dumps(key, indent=1), encoding="utf-8")
    return len(rows)


def _scored(root: Finished) -> pa.Table:
    """`key, status, part, row` and the scores of every row that the cuts decided about."""
    if "outliers" not in root.manifests:
        raise UserError(f"--root {root.store.url} has no finished stage outliers to audit")
    tables = []
    for number, file in enumerate(root.parts("outliers")):
        for start, batch in finished.batches(root.store, file, ["key", "status", "reason", *CUTS.values()]):
            places = {"part": np.full(batch.num_rows, number), "row": start + np.arange(batch.num_rows)}
            table = pa.Table.from_batches([batch])
            for name, values in places.items():
                table = table.append_column(name, pa.array(values))
            tables.append(table.filter(pc.fill_null(pc.not_equal(batch.column("reason"), UNSCORABLE), True)))
    if not tables or not sum(table.num_rows for table in tables):
        raise UserError(f"--root {root.store.url}: the stage outliers scored no row")
    return pa.concat_tables(tables)


def stratify(table: pa.Table, combine: str) -> NDArray[np.int64]:
    """The position in STRATA of each row: by its side of the cut, and by how near its rank is to the other side."""
    kept = pc.equal(table["status"], KEPT).to_numpy()
    closest = np.min if combine == "and" else np.max
    margins = [_margins(table[name].combine_chunks(), kept) for name in CUTS.values()]
    margin = closest(np.stack([m for m in margins if m is not None]), axis=0)
    strata = np.where(kept, 1, 3)
    for side, code in ((kept, 0), (~kept, 2)):
        rows = np.flatnonzero(side)
        near = int(np.ceil(NEAR * len(rows)))
        strata[rows[np.argsort(np.abs(margin[rows]), kind="stable")[:near]]] = code
    return strata


def _margins(scores: pa.Array, kept: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Ranks, as a share of all, that lie between each row and the lowest one kept; None without scores."""
    if scores.null_count == len(scores):
        return None
    values = scores.fill_null(np.nan).to_numpy(zero_copy_only=False).astype(np.float64)
    order = np.argsort(values, kind="stable")
    share = np.empty(len(values))
    share[order] = np.arange(len(values)) / len(values)
    return share - (share[kept].min() if kept.any() else 1.0)


def _ranks(keys: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """A draw for each key from the seed and the key alone."""
    digests = (hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def _first(rows: NDArray[np.int64], order: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    return rows[np.argsort(order[rows])[:count]]


def _full_rows(root: Finished, table: pa.Table, chosen: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """What the sheet shows, in the order chosen."""
    places = table.select(["part", "row"]).take(pa.array(chosen)).to_pylist()
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number, file in enumerate(root.parts("outliers")):
        mine = sorted(place["row"] for place in places if place["part"] == number)
        rows = finished.rows_at(root.store, file, mine, ["key", "caption", "source", "url", "image"]) if mine else []
        found |= {(number, at): row for at, row in zip(mine, rows, strict=True)}
    for place in places:
        yield found[place["part"], place["row"]]


def _picture(root: Finished, row: Mapping[str, Any]) -> bytes:
    from stages.images import open_rgb

    place = row["image"]
    [data] = root.store.read_ranges(place["tar"], [(place["offset"], place["size"])])
    image = open_rgb(data)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _cell(text: str | None) -> str:
    """What no spreadsheet takes for a formula."""
    text = text or ""
    return f"'{text}" if text.startswith(_FORMULA) else text


def read_back(sheet: Path) -> str:
    """Precision and recall by the labels of a sheet, as text.

    Raises:
        UserError: no sheet, a label that is none, or a stratum without labels.
    """
    try:
        key = json.loads((sheet.parent / KEY).read_text(encoding="utf-8"))
        with sheet.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise UserError(f"--labels {sheet}: no sheet with its {KEY} beside it ({error})") from error
    labels = {name: [0, 0] for name in STRATA}
    for line, row in enumerate(rows, 2):
        label, number = (row.get("label") or "").strip().lower(), row.get("number") or ""
        if not label:
            continue
        if label not in YES | NO:
            raise UserError(f"--labels {sheet}, line {line}: label is {label!r}; accepted: 1, 0 or nothing")
        if not number.isdigit() or not 1 <= int(number) <= len(key["samples"]):
            raise UserError(f"--labels {sheet}, line {line}: number is {number!r}, which the sheet never had")
        counts = labels[key["samples"][int(number) - 1]["stratum"]]
        counts[0] += 1
        counts[1] += label in YES
    strata = {
        name: Stratum(rows=key["rows"][name], labelled=n, positive=yes, is_kept=name in STRATA[:2])
        for name, (n, yes) in labels.items()
    }
    bare = [name for name, stratum in strata.items() if stratum.rows and not stratum.labelled]
    if bare:
        raise UserError(f"--labels {sheet}: no sample of the stratum {bare[0]!r} has a label yet; go on labelling")
    precision, recall = precision_and_recall(strata, key["seed"])
    lines = [
        f"{name:<13}{s.rows:>12,} rows, {s.positive:>4} of {s.labelled} labelled positive" for name, s in strata.items()
    ]
    return "\n".join([*lines, f"precision {precision}", f"recall    {recall}", "(95 % intervals)"])


if __name__ == "__main__":
    raise SystemExit(main())
