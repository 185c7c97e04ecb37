"""The planted answers, looked up in what a run wrote: its tables, manifests, tars and report, never its logs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from demo.corpus import SOURCES, Corpus, Row
from demo.web import Web

STAGES = ("keywords", "download", "dedup", "outliers", "shards")
ORIGINAL = (".jpg", ".png", ".webp")
"""Images that shards hold byte for byte; others become PNG there."""


@dataclass(frozen=True)
class Written:
    """What a run left below `root`."""

    root: Path

    def manifest(self, stage: str) -> dict[str, Any]:
        """A stage's manifest."""
        return dict(json.loads((self.root / stage / "manifest.json").read_text()))

    @cached_property
    def _tables(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        return {}

    def rows(self, stage: str, key: str) -> list[dict[str, Any]]:
        """Rows of a stage's table that have this key."""
        if stage not in self._tables:
            self._tables[stage] = self._read(stage)
        return self._tables[stage].get(key, [])

    def _read(self, stage: str) -> dict[str, list[dict[str, Any]]]:
        rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for output in self.manifest(stage)["outputs"]:
            if output["kind"] == "part":
                for row in pq.read_table(self.root / output["path"]).to_pylist():
                    rows[row["key"]].append(row)
        return dict(rows)

    @cached_property
    def index(self) -> dict[str, dict[str, Any]]:
        """`shards/index.parquet` by key."""
        rows = pq.read_table(self.root / "shards" / "index.parquet").to_pylist()
        return {row["key"]: row for row in rows}

    @cached_property
    def funnel(self) -> dict[str, dict[str, Any]]:
        """The report's funnel by source."""
        report = json.loads((self.root / "report" / "report.json").read_text())
        return {row["name"]: row for row in report["funnel"]}

    def members(self, key: str) -> dict[str, bytes]:
        """A sample's files in its tar, by extension, found through the index alone."""
        import io
        import tarfile

        entry = self.index[key]
        path = next(path for path in (self.root / "shards").rglob("*.tar") if path.name == Path(entry["tar"]).name)
        with open(path, "rb") as file:
            file.seek(entry["offset"])
            data = file.read(entry["size"])
        with tarfile.open(fileobj=io.BytesIO(data + bytes(1024))) as tar:
            named = {member.name: tar.extractfile(member) for member in tar}
        return {name.partition(".")[2]: file.read() for name, file in named.items() if file and name.startswith(key)}


@dataclass(frozen=True)
class Answer:
    """Something planted, and how to look whether it is there: None when it is, else what is there instead."""

    name: str
    look: Callable[[Written], str | None]


def answers(corpus: Corpus) -> list[Answer]:
    """Everything that a run of the demo's recipe over the corpus must have written."""
    return [
        *(Answer(f"{row.case} ({row.source}, {row.url})", _Fate(row, corpus.web)) for row in corpus.rows),
        *(
            Answer(f"counts of {source} in {stage}", _Counts(stage, source, counts))
            for (stage, source), counts in expected_counts(corpus.rows).items()
        ),
        *(Answer(f"funnel of {row['name']}", _Funnel(row)) for row in expected_funnel(corpus.rows)),
        Answer("sizes of the shards", _Sizes(corpus.kept)),
        Answer("markup in captions stays text in the report", _no_markup),
    ]


def wrong(corpus: Corpus, root: Path) -> list[str]:
    """A line for every answer that is not found under `root`."""
    written = Written(root)
    found = [(answer.name, _look(answer, written)) for answer in answers(corpus)]
    return [f"{name}: {problem}" for name, problem in found if problem]


def _look(answer: Answer, written: Written) -> str | None:
    try:
        return answer.look(written)
    except (FileNotFoundError, KeyError, StopIteration) as error:
        return f"not found: {error!r}"


@dataclass(frozen=True)
class _Fate:
    """One row's way through the stages."""

    row: Row
    web: Web

    def __call__(self, written: Written) -> str | None:
        row = self.row
        if row.stage == "keywords":
            return "it passed the keywords stage" if written.rows("keywords", row.key) else None
        if row.stage == "shards":
            return self._kept(written)
        found = written.rows(row.stage, row.key)
        reasons = [entry["reason"] for entry in found]
        if not set(reasons) & set(row.reasons):
            return f"stage {row.stage} says {reasons or 'nothing'}, not {' or '.join(row.reasons)}"
        clusters = {entry.get("cluster") for entry in found if entry["reason"]}
        if row.twin and clusters != {row.twin}:
            return f"its cluster is {clusters}, not {row.twin}"
        return None

    def _kept(self, written: Written) -> str | None:
        row = self.row
        for stage in STAGES[:-1]:
            found = written.rows(stage, row.key)
            if not any(entry["status"] == "kept" for entry in found):
                return f"stage {stage} says {[entry['reason'] for entry in found] or 'nothing'}, not kept"
        entry = next(entry for entry in written.rows("download", row.key) if entry["status"] == "kept")
        values = {name: entry[name] for name in row.columns}
        if values != dict(row.columns):
            return f"its columns are {values}, not {dict(row.columns)}"
        texts = {caption["text"] for caption in written.rows("dedup", row.key)[0]["captions"]}
        if not {row.caption, *row.gains} <= texts:
            return f"its captions are {sorted(texts)}, without {row.gains}"
        return self._packed(written.members(row.key))

    def _packed(self, members: dict[str, bytes]) -> str | None:
        row = self.row
        if members["txt"] != (row.caption or "").encode():
            return f"its text in the tar is {members['txt'][:80]!r}"
        if json.loads(members["json"])["url"] != row.url:
            return "its passport in the tar names another URL"
        body, suffix = served(self.web, row.url or "")
        if suffix in ORIGINAL and body not in members.values():
            digests = [hashlib.sha256(data).hexdigest()[:8] for data in members.values()]
            return f"the bytes that were served are not in the tar, which holds {digests}"
        return None


def served(web: Web, url: str) -> tuple[bytes, str]:
    """What the web gives for a URL after redirects, and its suffix."""
    for (host, path), page in web.pages.items():
        if web.url(host, path) == url:
            location = page.headers.get("Location")
            return served(web, location) if location else (page.body, Path(path).suffix)
    raise KeyError(url)


Counts = dict[str, Any]


def expected_counts(rows: Sequence[Row]) -> dict[tuple[str, str], Counts]:
    """Rows in, kept and dropped by reason, per stage and source. Outliers fall for either of two scores."""
    counts: dict[tuple[str, str], Counts] = {}
    for stage in STAGES:
        for source in SOURCES:
            arrived = [row for row in rows if row.source == source and STAGES.index(row.stage) >= STAGES.index(stage)]
            dropped = Counter(_merged(row.reasons[0]) for row in arrived if row.stage == stage and row.reasons)
            kept = len(arrived) - dropped.total()
            counts[stage, source] = {"in": len(arrived), "kept": kept, "dropped": dict(dropped)}
    return counts


def _merged(reason: str) -> str:
    return "outlier" if reason in ("low_vlm_score", "low_detector_score") else reason


@dataclass(frozen=True)
class _Counts:
    stage: str
    source: str
    expected: Counts

    def __call__(self, written: Written) -> str | None:
        found = written.manifest(self.stage)["counts"].get(self.source, {"in": 0, "kept": 0, "dropped": {}})
        dropped: Counter[str] = Counter()
        for reason, rows in found["dropped"].items():
            dropped[_merged(reason)] += rows
        found = {"in": found["in"], "kept": found["kept"], "dropped": dict(dropped)}
        return None if found == self.expected else f"{found}, not {self.expected}"


UNANSWERED = ("dns", "connect", "timeout", "http_error", "host_down", "tls", "bad_url", "blocked_address")
NO_BYTES = frozenset([*UNANSWERED, "too_large", "too_many_redirects", "robots", "opt_out"])


def expected_funnel(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The funnel's rows, in its columns, from the planted fates."""
    lines = [_funnel_row(source, [row for row in rows if row.source == source]) for source in SOURCES]
    total = {name: sum(line[name] for line in lines) for name in lines[0] if name != "name"}
    return [*lines, {"name": "Total", **total}]


def _funnel_row(source: str, rows: Sequence[Row]) -> dict[str, Any]:
    fates = Counter((row.stage, _merged(row.reasons[0]) if row.reasons else "") for row in rows)
    matched = sum(n for (stage, _), n in fates.items() if stage != "keywords")
    no_bytes = sum(n for (stage, reason), n in fates.items() if stage == "download" and reason in NO_BYTES)
    repeated = fates["download", "duplicate_row"]
    at_download = sum(n for (stage, _), n in fates.items() if stage == "download")
    return {
        "name": source,
        "amount": len(rows),
        "after_keyword_filtering": matched,
        "download_image": matched - no_bytes,
        "invalid_image": at_download - no_bytes - repeated,
        "duplicate_image": repeated + sum(n for (stage, _), n in fates.items() if stage == "dedup"),
        "outlier_image": fates["outliers", "outlier"],
        "other_removed": 0,
        "remain": fates["shards", ""],
    }


@dataclass(frozen=True)
class _Funnel:
    expected: dict[str, Any]

    def __call__(self, written: Written) -> str | None:
        found = written.funnel[self.expected["name"]]
        return None if found == self.expected else f"{found}, not {self.expected}"


@dataclass(frozen=True)
class _Sizes:
    """Every kept sample is in a tar, and the tars of a split are equally long but for one."""

    kept: int

    def __call__(self, written: Written) -> str | None:
        total = 0
        for split in ("train", "val"):
            sizes = json.loads((written.root / "shards" / split / "sizes.json").read_text()).values()
            total += sum(sizes)
            if max(sizes) - min(sizes) > 1:
                return f"{split} has tars of {sorted(sizes)} samples"
        if total != self.kept or len(written.index) != self.kept:
            return f"{total} samples in tars and {len(written.index)} in the index, not {self.kept}"
        return None


def _no_markup(written: Written) -> str | None:
    page = (written.root / "report" / "index.html").read_text()
    return "a caption's script tag is in the page" if '<script>alert("aerial' in page else None
