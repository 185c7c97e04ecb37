"""What becomes of each row of a source: kept, or dropped for the first reason that holds."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages import schema, where
from stages.base import KEPT
from stages.blocklist import Blocklist
from stages.errors import UserError
from stages.keys import key_column
from stages.matcher import matcher
from stages.patterns import Pack, alternation
from stages.readers.batch import Batch, find_name
from stages.readers.checked import CheckedText
from stages.readers.roles import (
    OPTIONAL,
    CaptionColumn,
    Texts,
    caption_columns,
    lengths,
    read_captions,
    read_text,
    role_names,
)
from stages.sources import Source, SourceFile
from stages.storage import Store

REASONS = (
    "bad_row",
    "no_url",
    "no_caption",
    "language",
    "filtered",
    "unsafe_score",
    "blocklisted",
    "no_keyword",
    "excluded",
)
"""In the order in which they are asked; the first that holds counts."""
_UNKNOWN_LICENCES = pa.array(["", "?"])
_OUTPUT = schema.extend(schema.COMMON, schema.KEYWORDS)


class Judge:
    """Decides about the rows of one file of a source."""

    def __init__(self, source: Source, url: str, pack: Pack, blocked: Blocklist) -> None:
        self.source = source
        self.file = re.sub(r"//[^/@]*@", "//", url)
        """Without credentials."""
        self.pack = pack
        self.blocked = blocked
        self.names = role_names(source)
        self.captions = caption_columns(source)
        self.matcher = matcher(pack.terms)
        self.condition = where.parse(source.where) if source.where else None
        self._yields: Counter[int] = Counter()

    def yields(self) -> dict[str, int]:
        """Kept rows so far, by term."""
        return {self.pack.terms[term].text: rows for term, rows in sorted(self._yields.items())}

    def view(self, batch: Batch) -> View:
        """The batch with its hits found, to ask for verdicts and tables."""
        return View(self, batch)

    def judge(self, batch: Batch) -> tuple[pa.Table, dict[str, int]]:
        """The kept rows as the stage's table, and the number of rows dropped for each reason."""
        view = self.view(batch)
        verdict = view.verdict()
        table = view.table(np.flatnonzero(verdict == 0))
        counts = [int(np.count_nonzero(verdict == code)) for code in range(1, len(REASONS) + 1)]
        dropped = {reason: count for reason, count in zip(REASONS, counts, strict=True) if count}
        if batch.bad_rows:
            dropped["bad_row"] = dropped.get("bad_row", 0) + batch.bad_rows
        return table, dropped

    def count_yields(self, terms: np.ndarray) -> None:
        """Add the terms of kept rows, a row and term once."""
        for term, rows in enumerate(np.bincount(terms, minlength=1).tolist()):
            if rows:
                self._yields[term] += rows


class View:
    """One batch under judgement."""

    def __init__(self, judge: Judge, batch: Batch) -> None:
        self.judge, self.batch, self.source = judge, batch, judge.source
        self.spoilt = np.zeros(batch.rows, bool)
        if batch.rows == 0:
            return
        self.texts = [read_captions(batch, column, self.spoilt) for column in judge.captions]
        self.hits = [_row_hits(texts, *judge.matcher.hits(texts.values)) for texts in self.texts]
        self.is_hit = np.zeros(batch.rows, bool)
        for hits in self.hits:
            self.is_hit[hits.rows] = True
        self.urls, self.url_text = self._urls()

    def _urls(self) -> tuple[pa.Array | None, CheckedText | None]:
        """(all URLs, a column to take kept rows' URLs from); the first is None where nobody will ask for all.

        That is where statistics prove that none is missing; without a hit, nobody will ask for any.
        """
        names = self.judge.names["url"]
        blocks = self.judge.blocked.urls or self.judge.blocked.domains
        asks = blocks or len(names) > 1 or self.source.only or self.source.except_
        if not asks and self.batch.is_filled(name := self.batch.find(names[0])):
            if not self.is_hit.any():
                return None, None
            if (text := self.batch.checked(name)) is not None:
                return None, text
        return read_text(self.batch, names, self.spoilt), None

    def verdict(self) -> np.ndarray:
        """0 for kept rows, else 1 + the position of the reason in `REASONS`."""
        verdict = np.zeros(self.batch.rows, np.uint8)
        if self.batch.rows == 0:
            return verdict
        tests = {
            "bad_row": self.spoilt,
            "no_url": None if self.urls is None else lengths(self.urls) == 0,
            "no_caption": self._without_caption(),
            "language": self._other_language(),
            "filtered": self._filtered(),
            "unsafe_score": self._unsafe(),
            "blocklisted": None if self.urls is None else self.judge.blocked.blocked_urls(self.urls),
            "no_keyword": ~self.is_hit,
            "excluded": self._excluded(),
        }
        for code, reason in enumerate(REASONS, 1):
            mask = tests[reason]
            if mask is not None and mask.any():
                verdict[mask & (verdict == 0)] = code
        return verdict

    def _without_caption(self) -> np.ndarray:
        filled = np.zeros(self.batch.rows, bool)
        for texts in self.texts:
            has_text = lengths(texts.values) > 0
            if texts.parents is None:
                filled |= has_text
            else:
                filled[texts.parents[has_text]] = True
        return ~filled

    def _other_language(self) -> np.ndarray | None:
        wanted = self.source.options.get("language")
        if not wanted or "language" not in self.judge.names:
            return None
        language = pc.ascii_lower(read_text(self.batch, self.judge.names["language"], self.spoilt))
        accepted = pa.array([str(code).lower() for code in ([wanted] if isinstance(wanted, str) else wanted)])
        return ~_flags(pc.is_in(language, accepted.cast(language.type)))

    def _filtered(self) -> np.ndarray | None:
        mask = None
        if self.judge.condition is not None:
            mask = ~_flags(where.passes(self.judge.condition, self._column))
        if self.source.only:
            mask = ~self._listed(self.source.only) if mask is None else mask | ~self._listed(self.source.only)
        if self.source.except_:
            listed = self._listed(self.source.except_)
            mask = listed if mask is None else mask | listed
        return mask

    def _column(self, name: str) -> pa.Array:
        return self.batch.load(self.batch.find(name))

    def _listed(self, files: tuple[SourceFile, ...]) -> np.ndarray:
        """Rows whose id, or else URL, stands in the lists."""
        ids = id_list(_Files(files, self.source))
        found = np.zeros(self.batch.rows, bool)
        if self.urls is not None:
            found |= _flags(pc.is_in(self.urls, ids.cast(self.urls.type)))
        for name in self.judge.names.get("id", ()):
            exact = find_name(self.batch.names, name)
            if exact is not None:
                found |= _flags(pc.is_in(self.batch.load(exact).cast(pa.string()), ids))
        return found

    def _unsafe(self) -> np.ndarray | None:
        """Rows above a safety bound; null, or a column that the file lacks, is not unsafe."""
        mask = None
        for condition in self.source.unsafe:
            name = str(condition["column"])
            if find_name(self.batch.names, name) is None:
                continue
            test: where.Node
            if "over" in condition:
                test = where.Compare(name, ">", float(condition["over"]))
            else:
                test = where.In(name, tuple(condition["equals"]))
            unsafe = _flags(where.passes(test, self._column))
            mask = unsafe if mask is None else mask | unsafe
        return mask

    def _excluded(self) -> np.ndarray | None:
        """Rows of which any caption holds a vetoing term; only hits are looked at."""
        if not self.judge.pack.exclude or not self.is_hit.any():
            return None
        excluded = np.zeros(self.batch.rows, bool)
        expression = alternation(self.judge.pack.exclude)
        for texts in self.texts:
            rows = np.arange(self.batch.rows) if texts.parents is None else texts.parents
            asked = np.flatnonzero(self.is_hit[rows])
            holds = pc.match_substring_regex(texts.values.take(pa.array(asked)), expression)
            excluded[rows[asked[_flags(holds)]]] = True
        return excluded

    # The table of kept rows

    def table(self, kept: np.ndarray) -> pa.Table:
        """The given rows, in file order."""
        if len(kept) == 0:
            return _OUTPUT.empty_table()
        name, count = self.source.name, len(kept)
        urls = self._kept_urls(kept)
        captions, entries = self._captions(kept)
        columns = {
            "key": key_column(name, urls, captions),
            "source": pa.repeat(name, count),
            "url": urls,
            "caption": captions,
            "status": pa.repeat(KEPT, count),
            "reason": pa.nulls(count, pa.string()),
            "keywords": self._keywords(kept),
            "row": self._rows(kept),
            "captions": entries,
            "licence": self._licences(kept),
            "page": self._optional("page", kept),
        }
        return pa.table([columns[name] for name in _OUTPUT.names], schema=_OUTPUT)

    def _kept_urls(self, kept: np.ndarray) -> pa.Array:
        if self.urls is not None:
            return self.urls.take(pa.array(kept)).cast(pa.string())
        assert self.url_text is not None, "a kept row is a hit"
        return self.url_text.take(kept)

    def _keywords(self, kept: np.ndarray) -> pa.Array:
        """The terms that hit any of a row's captions, in the pack's order."""
        count = len(self.judge.pack.terms)
        codes = np.unique(np.concatenate([hits.rows * count + hits.terms for hits in self.hits]))
        rows, terms = codes // count, codes % count
        is_kept = np.isin(rows, kept)
        rows, terms = rows[is_kept], terms[is_kept]
        self.judge.count_yields(terms)
        texts = pa.array([term.text for term in self.judge.pack.terms]).take(pa.array(terms))
        bounds = np.searchsorted(rows, np.append(kept, self.batch.rows))
        return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), texts)

    def _captions(self, kept: np.ndarray) -> tuple[pa.Array, pa.Array]:
        """(the first caption that hit, all distinct captions) of each kept row."""
        if len(self.texts) == 1 and self.texts[0].parents is None:
            texts = self.texts[0].values.take(pa.array(kept)).cast(pa.string())
            return texts, _one_each(texts, self.source.name, self.judge.captions[0].origin)
        first: dict[int, str] = {}
        entries: dict[int, dict[str, str]] = {int(row): {} for row in kept}
        for texts, hits, column in zip(self.texts, self.hits, self.judge.captions, strict=True):
            _gather(texts, hits, column, kept, first, entries)
        name = self.source.name
        lists = [
            [{"text": text, "source": name, "origin": origin} for text, origin in entries[int(row)].items()]
            for row in kept
        ]
        texts = [first.get(int(row)) or next(iter(entries[int(row)])) for row in kept]  # without a hit: the first
        return pa.array(texts, pa.string()), pa.array(lists, pa.list_(schema.CAPTION))

    def _rows(self, kept: np.ndarray) -> pa.Array:
        numbers, groups = self.batch.row_numbers[kept], self.batch.row_groups
        places = np.full(len(kept), -1, np.int32) if groups is None else groups[kept]
        file = pa.repeat(self.judge.file, len(kept))
        return pa.StructArray.from_arrays([file, pa.array(places), pa.array(numbers)], fields=list(schema.ROW))

    def _licences(self, kept: np.ndarray) -> pa.Array:
        """The row's own where the source has such a column, else the source's for all.

        A row whose own licence is unknown stays without one: the metadata's would claim what nobody granted.
        """
        if not any(find_name(self.batch.names, name) for name in self.judge.names.get("licence", ())):
            return pa.repeat(pa.scalar(self.source.licence, pa.string()), len(kept))
        own = self._optional("licence", kept)
        return pc.if_else(pc.is_in(own, _UNKNOWN_LICENCES), pa.scalar(None, pa.string()), own)

    def _optional(self, role: str, kept: np.ndarray) -> pa.Array:
        """A role's text for the kept rows; null where the file has no such column."""
        names = [name for name in self.judge.names.get(role, ()) if find_name(self.batch.names, name)]
        if role not in OPTIONAL or not names:
            return pa.nulls(len(kept), pa.string())
        name = self.batch.find(names[0])
        if (text := self.batch.checked(name)) is not None:
            return text.take(kept)
        return self.batch.load(name).take(pa.array(kept)).cast(pa.string())


class Hits:
    """Where terms hit: for each pair the row, the value within its column, and the term."""

    def __init__(self, rows: np.ndarray, values: np.ndarray, terms: np.ndarray) -> None:
        self.rows, self.values, self.terms = rows, values, terms


def _row_hits(texts: Texts, values: np.ndarray, terms: np.ndarray) -> Hits:
    return Hits(values if texts.parents is None else texts.parents[values], values, terms)


def _gather(
    texts: Texts,
    hits: Hits,
    column: CaptionColumn,
    kept: np.ndarray,
    first: dict[int, str],
    entries: dict[int, dict[str, str]],
) -> None:
    """Add a caption column's texts of the kept rows to `entries`, and to `first` where none hit before."""
    rows = np.arange(len(texts.values)) if texts.parents is None else texts.parents
    asked = np.flatnonzero(np.isin(rows, kept))
    hit = set(hits.values.tolist())
    found = texts.values.take(pa.array(asked)).to_pylist()
    for value, row, text in zip(asked.tolist(), rows[asked].tolist(), found, strict=True):
        if text:
            entries[row].setdefault(text, column.origin)
            if value in hit:
                first.setdefault(row, text)


def _one_each(texts: pa.Array, source: str, origin: str) -> pa.Array:
    """Lists of one caption."""
    count = len(texts)
    parts = [texts, pa.repeat(source, count), pa.repeat(origin, count)]
    structs = pa.StructArray.from_arrays(parts, fields=list(schema.CAPTION))
    return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32)), structs)


def _flags(mask: pa.Array) -> np.ndarray:
    result: np.ndarray = mask.fill_null(False).to_numpy(zero_copy_only=False)
    return result


class _Files:
    """List files as a cache key, with what opening them takes."""

    def __init__(self, files: tuple[SourceFile, ...], source: Source) -> None:
        self.files, self.source = files, source

    def __hash__(self) -> int:
        return hash(self.files)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Files) and self.files == other.files


@lru_cache(maxsize=4)
def id_list(lists: _Files) -> pa.Array:
    """The ids in list files, one a line.

    Raises:
        UserError: a file that is not UTF-8 text.
    """
    ids: set[str] = set()
    for file in lists.files:
        try:
            text = Store(file.url, lists.source.storage_options).read(file.url).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{file.url} is not UTF-8 text (byte {error.start})") from error
        ids.update(line.strip() for line in text.split("\n"))
    return pa.array(sorted(ids - {""}), pa.string())
