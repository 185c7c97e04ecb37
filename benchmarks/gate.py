"""How many captions of each kind of error the gate of `captions` stops, and how many true ones it lets pass.

    python -m benchmarks.gate
    python -m benchmarks.gate --published FILE.parquet       # generated parts of RS5M's captions, as published

The first counts captions that were written for it (`gate.yaml`). The second reads a table with the column `caption` and
counts reasons by kind of image. Published captions of fMoW and BigEarthNet begin with a meta caption, which is cut off;
from fMoW's the country is taken as the record.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.captioning.gate import Gate, load_gate

GROUPS = Path(__file__).with_name("gate.yaml")
_META_END = re.compile(r"^.*(?:utm zone \d+[A-Z]|off-nadir[^.]*\.\d+\?|\d{1,2}, \d{4})[^.]*\.\s*", re.DOTALL)


def groups() -> list[dict[str, Any]]:
    """`{name, passes, record, texts}` each."""
    found: list[dict[str, Any]] = yaml.safe_load(GROUPS.read_text(encoding="utf-8"))["groups"]
    return found


def failures(gate: Gate, group: Mapping[str, Any]) -> list[str]:
    """The captions of a group that the gate judges wrongly."""
    return [text for text in group["texts"] if (gate.reason(text, group["record"]) is None) != group["passes"]]


def published(captions: list[str], gate: Gate) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(kind of image, generated part, record) of captions of RS5M's third subset."""
    known = gate.lists["countries"].items()
    names = {other.lower(): country for country, (_, *others) in known for other in (country, *others)}
    for caption in captions:
        meta = _META_END.match(caption)
        if meta is None:
            yield "MillionAID", caption, {}
            continue
        said = meta[0].lower()
        kind = "fMoW" if "ground sample distance" in said else "BigEarthNet"
        here = [name for name in names if re.search(rf"\b{re.escape(name)}\b", said)]
        record = {"country": names[max(here, key=len)]} if here else {}
        yield kind, caption[meta.end() :], record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--published", type=Path, help="parquet with the column caption (and source: rs3_dump is taken)"
    )
    parser.add_argument("--gate", default="rs")
    args = parser.parse_args()
    gate = load_gate(args.gate, "--gate")
    if args.published is None:
        for group in groups():
            wrong = failures(gate, group)
            verb = "pass" if group["passes"] else "are stopped"
            print(f"{group['name']}: {len(group['texts']) - len(wrong)} of {len(group['texts'])} {verb}")
            print("".join(f"    not so: {text}\n" for text in wrong), end="")
        return
    _count_published(gate, args.published)


def _count_published(gate: Gate, path: Path) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    captions = [row["caption"] for row in rows if row.get("source", "rs3_dump") == "rs3_dump"]
    totals: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    for kind, text, record in published(captions, gate):
        totals[kind] += 1
        reasons[(kind, gate.reason(text, record) or "passes")] += 1
    for kind, total in sorted(totals.items()):
        found = {reason: count for (of, reason), count in sorted(reasons.items()) if of == kind}
        print(f"{kind}, {total:,} captions: {', '.join(f'{name} {count:,}' for name, count in found.items())}")


if __name__ == "__main__":
    main()
