"""Conditions on a source's columns, as in `where: "punsafe < 0.5 and LICENSE is not null"`.

The grammar is SQL's smallest useful part: comparisons (`=`, `==`, `!=`, `<>`, `<`, `<=`, `>`, `>=`) of a column
with a number or a 'string', `[not] in (…)`, `is [not] null`, `and`, `or`, `not` and parentheses. A comparison
with null is unknown; a row passes when the whole condition is true. Nothing is ever evaluated as code.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.errors import UnitError, UserError

Literal = int | float | str
Lookup = Callable[[str], pa.Array]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
      | '(?P<string>(?:[^']|'')*)'
      | "(?P<quoted>(?:[^"]|"")+)"
      | (?P<operator><=|>=|<>|!=|==|[=<>(),])
      | (?P<word>[^\W\d]\w*)
    )""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_COMPARE |= {"==": pc.equal, "<>": pc.not_equal}
_KEYWORDS = frozenset({"and", "or", "not", "in", "is", "null"})
_MOST_DEPTH = 50
_WIDE = pa.decimal128(20, 0)


class Node(ABC):
    """A part of a parsed condition."""

    @abstractmethod
    def columns(self) -> set[str]:
        """The column names it reads, as written."""

    @abstractmethod
    def evaluate(self, column: Lookup) -> pa.Array:
        """A boolean array with nulls where the answer is unknown."""


@dataclass(frozen=True)
class Compare(Node):
    """`column operator literal`."""

    name: str
    operator: str
    literal: Literal

    def columns(self) -> set[str]:
        """The one column."""
        return {self.name}

    def evaluate(self, column: Lookup) -> pa.Array:
        """Compare as numbers or as text, as the literal says."""
        values, scalar = _comparable(self.name, column(self.name), self.literal)
        return _COMPARE[self.operator](values, scalar)


@dataclass(frozen=True)
class In(Node):
    """`column in (literals)`."""

    name: str
    literals: tuple[Literal, ...]

    def columns(self) -> set[str]:
        """The one column."""
        return {self.name}

    def evaluate(self, column: Lookup) -> pa.Array:
        """True when any literal equals; unknown for null."""
        values = column(self.name)
        equals = [pc.equal(*_comparable(self.name, values, literal)) for literal in self.literals]
        result = equals[0]
        for more in equals[1:]:
            result = pc.or_kleene(result, more)
        return result


@dataclass(frozen=True)
class IsNull(Node):
    """`column is null`."""

    name: str

    def columns(self) -> set[str]:
        """The one column."""
        return {self.name}

    def evaluate(self, column: Lookup) -> pa.Array:
        """Never unknown."""
        return pc.is_null(column(self.name))


@dataclass(frozen=True)
class Not(Node):
    """`not part`."""

    part: Node

    def columns(self) -> set[str]:
        """The part's columns."""
        return self.part.columns()

    def evaluate(self, column: Lookup) -> pa.Array:
        """Unknown stays unknown."""
        return pc.invert(self.part.evaluate(column))


@dataclass(frozen=True)
class Junction(Node):
    """`left and right` or `left or right`."""

    word: str
    left: Node
    right: Node

    def columns(self) -> set[str]:
        """Both sides' columns."""
        return self.left.columns() | self.right.columns()

    def evaluate(self, column: Lookup) -> pa.Array:
        """Kleene logic, as in SQL."""
        join = pc.and_kleene if self.word == "and" else pc.or_kleene
        return join(self.left.evaluate(column), self.right.evaluate(column))


def parse(text: str) -> Node:
    """The condition a text means.

    Raises:
        UserError: naming the position, what stands there and what is accepted.
    """
    return _Parser(text).whole()


def check_columns(condition: Node, available: Sequence[str], text: str) -> None:
    """Raise `UserError` naming the first column of the condition that a source lacks, and those it has."""
    known = {name.casefold() for name in available}
    for name in sorted(condition.columns()):
        if name.casefold() not in known:
            raise UserError(f"where {text!r}: no column {name!r}; there are {', '.join(available)}")


def passes(condition: Node, column: Lookup) -> pa.Array:
    """True for the rows that pass; null (unknown) does not."""
    return pc.fill_null(condition.evaluate(column), False)


def _comparable(name: str, values: pa.Array, literal: Literal) -> tuple[pa.Array, pa.Scalar]:
    """A column and a literal in one type.

    Raises:
        UnitError: there is none; naming the column and what it holds.
    """
    try:
        return _in_one_type(values, literal)
    except pa.ArrowException as error:
        raise UnitError(
            f"where: column {name!r} holds {values.type}, which does not compare with {literal!r}"
        ) from error


def _in_one_type(values: pa.Array, literal: Literal) -> tuple[pa.Array, pa.Scalar]:
    """Text that is no number compares as null with a number."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if isinstance(literal, str):
        return _as_text(values), pa.scalar(literal)
    if _is_text(values.type):
        values = _numbers(values)
    if pa.types.is_boolean(values.type) or pa.types.is_null(values.type):
        values = values.cast(pa.int64())
    if pa.types.is_uint64(values.type) and isinstance(literal, int):
        return values.cast(_WIDE), pa.scalar(Decimal(literal), _WIDE)  # half of its range is beyond int64
    if pa.types.is_integer(values.type) and isinstance(literal, int):
        return values, pa.scalar(literal)
    return values.cast(pa.float64(), safe=False), pa.scalar(float(literal))


def _as_text(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_boolean(values.type):
        return values.cast(pa.string())
    return values if _is_text(values.type) else values.cast(pa.string())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _numbers(values: pa.Array) -> pa.Array:
    """Text as float64, null where it is no number."""
    plain = pc.utf8_trim_whitespace(values)
    is_number = pc.match_substring_regex(plain, r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
    signed = pc.replace_substring_regex(plain, r"^\+", "")
    return pc.if_else(is_number, signed, pa.scalar(None, values.type)).cast(pa.float64())


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


class _Parser:
    """Recursive descent over the tokens; `or` binds weakest, then `and`, then `not`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokens())
        self.at = 0
        self.depth = 0

    def _tokens(self) -> Any:
        position, end = 0, len(self.text.rstrip())
        while position < end:
            match = _TOKEN.match(self.text, position)
            if match is None or match.lastgroup is None:
                raise self._error(position, f"cannot read {self.text[position:].strip()[:20]!r}")
            kind, value = match.lastgroup, match[match.lastgroup]
            if kind == "string":
                value = value.replace("''", "'")
            if kind == "quoted":
                kind, value = "column", value.replace('""', '"')
            if kind == "word":
                kind = "keyword" if value.lower() in _KEYWORDS else "column"
                value = value.lower() if kind == "keyword" else value
            yield _Token(kind, value, match.start(match.lastgroup))
            position = match.end()
        yield _Token("end", "the end", end)

    def whole(self) -> Node:
        node = self._either()
        if self._here().kind != "end":
            raise self._unexpected("and, or, or the end")
        return node

    def _either(self) -> Node:
        node = self._both()
        while self._take("keyword", "or"):
            node = Junction("or", node, self._both())
        return node

    def _both(self) -> Node:
        node = self._negated()
        while self._take("keyword", "and"):
            node = Junction("and", node, self._negated())
        return node

    def _negated(self) -> Node:
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise self._error(self._here().at, f"nested deeper than {_MOST_DEPTH}")
        try:
            if self._take("keyword", "not"):
                return Not(self._negated())
            if self._take("operator", "("):
                node = self._either()
                self._need("operator", ")")
                return node
            return self._test()
        finally:
            self.depth -= 1

    def _test(self) -> Node:
        if self._here().kind != "column":
            raise self._unexpected("a column name, not or (")
        name = self._next().text
        if self._take("keyword", "is"):
            negated = self._take("keyword", "not")
            self._need("keyword", "null")
            return Not(IsNull(name)) if negated else IsNull(name)
        negated = self._take("keyword", "not")
        if negated or (self._here().kind, self._here().text) == ("keyword", "in"):
            self._need("keyword", "in")
            node = In(name, self._list())
            return Not(node) if negated else node
        token = self._next()
        if token.text not in _COMPARE or token.kind != "operator":
            self.at -= 1
            raise self._unexpected("=, !=, <, <=, >, >=, in or is")
        return Compare(name, token.text, self._literal())

    def _list(self) -> tuple[Literal, ...]:
        self._need("operator", "(")
        literals = [self._literal()]
        while self._take("operator", ","):
            literals.append(self._literal())
        self._need("operator", ")")
        return tuple(literals)

    def _literal(self) -> Literal:
        token = self._here()
        if token.kind not in ("number", "string"):
            raise self._unexpected("a number or a 'string'")
        self.at += 1
        if token.kind == "string":
            return token.text
        return int(token.text) if re.fullmatch(r"[-+]?\d{1,18}", token.text) else float(token.text)

    def _here(self) -> _Token:
        token: _Token = self.tokens[self.at]
        return token

    def _next(self) -> _Token:
        token = self._here()
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def _take(self, kind: str, text: str) -> bool:
        found = (self._here().kind, self._here().text) == (kind, text)
        self.at += found
        return found

    def _need(self, kind: str, text: str) -> None:
        if not self._take(kind, text):
            raise self._unexpected(text)

    def _unexpected(self, accepted: str) -> UserError:
        token = self._here()
        found = "the end" if token.kind == "end" else repr(token.text)
        return self._error(token.at, f"found {found} where {accepted} is accepted")

    def _error(self, at: int, what: str) -> UserError:
        return UserError(f"where {self.text!r}: {what}, at position {at + 1}")
