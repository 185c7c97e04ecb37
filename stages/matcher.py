"""Which texts of an Arrow column hold which terms, at the speed of one pass over the column's bytes.

Hyperscan scans the whole data buffer once for all terms; its match ends give the rows. It knows nothing of where a
text begins, so it may find too much (a word that begins before a row's border, or within another word), never too
little; each term's published pattern then decides, by RE2, on the few rows found for it. Where there is no
hyperscan (it needs x86-64), RE2 finds the rows by the alternation of all patterns.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.patterns import Term, alternation
from stages.readers.roles import offsets

_JOINTS = (b" ", b"-", b"_")
"""A run of separators between words is one of these alone, or begins with one of `_RUNS`."""
_RARE = tuple(character.encode() for character in "\t\n\v\f\r\u00a0\u2010\u2011\u2012\u2013\u2014\u2015")
_RUNS = (*_RARE, *(first + second for first in _JOINTS for second in (*_JOINTS, *_RARE)))


class Matcher:
    """Finds terms; make it once a process (`matcher`), since compiling takes a moment."""

    def __init__(self, terms: tuple[Term, ...]) -> None:
        self.terms = terms
        self._database = _compile(terms)
        self._any = alternation(terms)
        self._patterns = [term.pattern for term in terms]

    def hits(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Rows that hold a term and the term's number, pair by pair, in order of both; nulls never hit.

        `texts` is string or large_string, valid UTF-8.
        """
        count = len(self.terms)
        if len(texts) == 0 or count == 0:
            return _pairs(np.zeros(0, np.int64), 1)
        candidates = self._scan(texts) if self._database is not None else self._search(texts)
        rows, terms = _pairs(candidates, count)
        order = np.argsort(terms, kind="stable")
        asked = texts.take(pa.array(rows[order]))
        bounds = np.searchsorted(terms[order], np.arange(count + 1))
        found = [candidates[:0]]
        for term, (start, stop) in enumerate(pairwise(bounds)):
            if start < stop:
                holds = pc.match_substring_regex(asked.slice(start, stop - start), self._patterns[term])
                found.append(candidates[order[start:stop][_true(holds)]])
        return _pairs(np.sort(np.concatenate(found)), count)

    def _scan(self, texts: pa.Array) -> np.ndarray:
        """Candidates (row × number of terms + term) by hyperscan, sorted."""
        bounds = offsets(texts)
        base = int(bounds[0])
        if bounds[-1] == base:
            return np.zeros(0, np.int64)
        ids: list[int] = []
        ends: list[int] = []

        def found(number: int, start: int, end: int, flags: int, context: Any) -> None:
            ids.append(number)
            ends.append(end)

        self._database.scan(memoryview(texts.buffers()[2])[base : int(bounds[-1])], match_event_handler=found)
        rows = np.searchsorted(bounds[1:], np.array(ends, bounds.dtype) + base, side="left")
        return np.unique(rows.astype(np.int64) * len(self.terms) + np.array(ids, np.int64))

    def _search(self, texts: pa.Array) -> np.ndarray:
        """Candidates by RE2: rows that hold any term, each paired with every term."""
        rows = np.flatnonzero(_true(pc.match_substring_regex(texts, self._any)))
        pairs: np.ndarray = (rows[:, None] * len(self.terms) + np.arange(len(self.terms))).ravel()
        return pairs


@lru_cache(maxsize=4)
def matcher(terms: tuple[Term, ...]) -> Matcher:
    """The matcher of some terms, kept by the process."""
    return Matcher(terms)


def _pairs(codes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    return codes // count, codes % count


def _true(flags: pa.Array) -> np.ndarray:
    result: np.ndarray = flags.fill_null(False).to_numpy(zero_copy_only=False)
    return result


def _compile(terms: tuple[Term, ...]) -> Any:
    """A hyperscan database of the terms' literals, or None where the library is missing."""
    try:
        import hyperscan
    except ImportError:
        return None
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    literals = [(number, literal) for number, term in enumerate(terms) for literal in _literals(term.text)]
    if literals:
        ids, expressions = zip(*literals, strict=True)
        flags = [hyperscan.HS_FLAG_CASELESS] * len(literals)
        database.compile(expressions=list(expressions), ids=list(ids), flags=flags, literal=True)
    return database


def _literals(text: str) -> list[bytes]:
    """Bytes of which every text that holds the term holds some: its first two words, or the first and a long run.

    A word alone would be found too often, and a pattern costs more than all these literals.
    """
    words = [word.encode() for word in re.split("[ -]", text)]
    if len(words) == 1:
        return words
    return [words[0] + joint + words[1] for joint in _JOINTS] + [words[0] + run for run in _RUNS]
