"""`python -m curation.explain --root DIR KEY_OR_URL`: one sample's passport through every stage."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import finished
from curation.console import exit_code
from curation.finished import Finished
from curation.recipe import root_store
from curation.redact import redact
from stages.base import DROPPED, OutputFile
from stages.passport import passport
from stages.urls import canonical_url

KEY = re.compile("[0-9a-f]{32}")
MOST = 50
"""Samples, or twins of one sample, that are shown."""
IN_THE_HEADING = frozenset({"key", "source", "url"})
CIRCUMSTANCES = ("http_status", "attempts", "fetched_at", "image", "row")
"""Facts of circumstance, which a passport in a shard leaves out and this one shows."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the passport of a sample; 1 when no finished stage knows it."""
    parser = argparse.ArgumentParser(
        prog="python -m curation.explain", description="Why one sample was kept or dropped, with every score."
    )
    parser.add_argument("sample", metavar="KEY_OR_URL", help="a sample's key (32 hex digits) or its URL")
    parser.add_argument("--root", required=True, metavar="DIR", help="the run's folder or fsspec URL")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> int:
    """Find the sample, print what is known."""
    root = finished.load(root_store(args.root))
    found = explain(root, args.sample)
    if not found:
        print(clean(unknown(root, args.sample)), file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=True))
    else:
        print("\n\n".join(describe(entry) for entry in found))
    return 0


def explain(root: Finished, sample: str) -> list[dict[str, Any]]:
    """Every sample with that key or URL: `{key, source, url, outcome, stages: {…}, twins, shard}`."""
    keys = [sample.lower()] if KEY.fullmatch(sample.lower()) else keys_of(root, sample)
    return [entry for key in keys[:MOST] if (entry := _passport(root, key))]


def keys_of(root: Finished, url: str) -> list[str]:
    """Keys of the rows with that URL, as given or in another spelling of it, in the first table."""
    wanted = canonical_url(url)
    part = re.sub(r"^[^:/]*://[^/?#]*", "", url).partition("#")[0]
    found: list[str] = []
    for stage in root.manifests:
        for file in root.parts(stage):
            for _, batch in finished.batches(root.store, file, ["key", "url"]):
                near = batch.filter(pc.match_substring(batch.column("url"), part))
                found += [row["key"] for row in near.to_pylist() if canonical_url(row["url"]) == wanted]
        if found:
            break
    return list(dict.fromkeys(found))


def unknown(root: Finished, sample: str) -> str:
    """Why there is nothing to say."""
    first = next(iter(root.manifests), None)
    if first is None:
        return f"{sample}: no stage of {root.store.url} is finished yet"
    if first == "keywords":
        return (
            f"{sample}: in no table of {root.store.url}; it was not in the sources, or keywords dropped it: "
            "such rows are counted by reason in keywords/manifest.json, not written"
        )
    return f"{sample}: in no table of {root.store.url}"


def _passport(root: Finished, key: str) -> dict[str, Any] | None:
    stages: dict[str, Any] = {}
    first: Mapping[str, Any] | None = None
    told: dict[str, Any] = {}
    for stage in root.manifests:
        row = _row(root, stage, key)
        if row is None:
            continue
        first = first or row
        facts = _facts(row)
        news = {name: value for name, value in facts.items() if name == "status" or told.get(name) != value}
        stages[stage] = news | _thresholds(root, stage)
        told |= facts
    if first is None:
        return None
    shard = _shard(root, key)
    if shard is not None:
        stages["shards"] = {"status": "kept", **shard}
    cluster = stages.get("dedup", {}).get("cluster")
    return {
        "key": key,
        "source": first["source"],
        "url": first["url"],
        "outcome": _outcome(root, stages),
        "stages": stages,
        "twin": _twin(root, cluster) if cluster not in (None, key) else None,
        "merged": twins(root, key) if cluster == key else [],
    }


def _row(root: Finished, stage: str, key: str) -> dict[str, Any] | None:
    """The row with that key; a kept one before a dropped repeat of it."""
    rows = [row for file in root.parts(stage) for row in _rows_where(root, file, "key", key)]
    return min(rows, key=lambda row: row["status"] == DROPPED, default=None)


def _rows_where(root: Finished, file: OutputFile, column: str, value: str) -> Iterator[dict[str, Any]]:
    """Whole rows of one file; other columns are read only where one matches."""
    numbers: list[int] = []
    for start, batch in finished.batches(root.store, file, [column]):
        hits = pc.indices_nonzero(pc.equal(batch.column(0), value)) if batch.num_columns else pa.array([])
        numbers += [start + hit for hit in hits.to_pylist()]
    yield from finished.rows_at(root.store, file, numbers) if numbers else ()


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's verdict on a row, and its columns."""
    verdict = {"status": row["status"], "reason": row["reason"]}
    facts = {**verdict, **passport(row), **_circumstances(row)}
    return {name: value for name, value in facts.items() if value is not None and name not in IN_THE_HEADING}


def _circumstances(row: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of circumstance that a row has."""
    found = {name: row[name] for name in CIRCUMSTANCES if row.get(name) is not None}
    if "fetched_at" in found:
        found["fetched_at"] = found["fetched_at"].isoformat()
    return found


def _thresholds(root: Finished, stage: str) -> dict[str, Any]:
    thresholds = root.manifests[stage].summary.get("thresholds")
    return {"thresholds": thresholds} if thresholds else {}


def _outcome(root: Finished, stages: Mapping[str, Any]) -> str:
    """One sentence: where the sample's way ends."""
    for stage, facts in stages.items():
        if facts["status"] == DROPPED:
            return f"dropped by {stage}: {facts['reason']}"
    last = list(stages)[-1]
    if last == "shards":
        return f"kept, in {stages[last]['tar']}"
    return f"kept by {last}, the last stage that is finished"


def _shard(root: Finished, key: str) -> dict[str, Any] | None:
    shards = root.manifests.get("shards")
    for file in shards.outputs if shards else ():
        if file.kind == "index":
            for row in _rows_where(root, file, "key", key):
                return {name: value for name, value in row.items() if name != "key"}
    return None


def _twin(root: Finished, cluster: str) -> dict[str, Any] | None:
    row = _row(root, "dedup", cluster)
    return {name: row[name] for name in ("key", "source", "url")} if row else None


def twins(root: Finished, key: str) -> list[dict[str, Any]]:
    """Samples that dedup dropped in favour of this one, `MOST` at most."""
    rows = (row for file in root.parts("dedup") for row in _rows_where(root, file, "cluster", key))
    names = ("key", "source", "url", "reason", "caption")
    found = [{name: row[name] for name in names} for row in rows if row["key"] != key]
    return found[:MOST]


def describe(entry: Mapping[str, Any]) -> str:
    """The passport as lines for a terminal; control characters of the web do not reach it."""
    lines = [
        entry["key"],
        f"  source   {entry['source']}",
        f"  url      {entry['url']}",
        f"  outcome  {entry['outcome']}",
    ]
    if entry["twin"]:
        lines.append(f"  twin of  {entry['twin']['key']}  {entry['twin']['source']}  {entry['twin']['url']}")
    for twin in entry["merged"]:
        lines.append(f"  merged   {twin['key']}  {twin['source']}  {twin['url']}  {twin['reason']}")
    for stage, facts in entry["stages"].items():
        lines.append(f"{stage}")
        lines += [f"  {name:<18} {_text(value)}" for name, value in facts.items()]
    return "\n".join(clean(line) for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def clean(text: str) -> str:
    """Text without control characters, secrets or the marks that turn writing round."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]+", " ", redact(text))


if __name__ == "__main__":
    raise SystemExit(main())
