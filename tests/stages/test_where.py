import operator
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import where
from stages.errors import UnitError, UserError

TABLE = pa.table(
    {
        "punsafe": [0.1, 0.9, None, 0.5],
        "width": [1, 2, 3, None],
        "name": ["a", "it's", None, ""],
        "text": ["10", "9", "x", None],
        "two words": ["p", "q", "r", "s"],
        "hash": pa.array([1, 2**63 + 5, None, 0], pa.uint64()),
        "day": pa.array([0, 1, 2, None], pa.date32()),
        "raw": [b"a", b"\xff", None, b"b"],
    }
)


def passing(text: str) -> list[int]:
    condition = where.parse(text)
    mask = where.passes(condition, lambda name: TABLE.column(name.lower()).combine_chunks())
    return [row for row, flag in enumerate(mask.to_pylist()) if flag]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("punsafe < 0.5", [0]),
        ("PUNSAFE <= .5", [0, 3]),
        ("not punsafe < 0.5", [1, 3]),
        ("punsafe is null", [2]),
        ("punsafe is not null and width > 1", [1]),
        ("width = 1 or width == 2 AND punsafe > 5", [0]),
        ("(width = 1 or width = 2) and punsafe > 0.5", [1]),
        ("width in (1, 3)", [0, 2]),
        ("width not in (1, 3)", [1]),
        ("name = 'it''s'", [1]),
        ("name <> 'a'", [1, 3]),
        ("name in ('a', '')", [0, 3]),
        ("text > 9", [0]),
        ("text >= 9 or width != 1", [0, 1, 2]),
        ("width = '2'", [1]),
        ("\"two words\" = 'q'", [1]),
        ("width < -1e3", []),
        ("width > 0 or punsafe = 0.5", [0, 1, 2, 3]),
        ("hash > -1", [0, 1, 3]),
        ("hash in (1, 0)", [0, 3]),
        ("hash > 999999999999999999", [1]),
        ("day > '1970-01-01'", [1, 2]),
    ],
)
def test_rows_that_pass(text: str, rows: list[int]) -> None:
    assert passing(text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found the end where a column name, not or ( is accepted, at position 1"),
        ("a <", "found the end where a number or a 'string' is accepted, at position 4"),
        ("a < b", "found 'b' where a number or a 'string' is accepted, at position 5"),
        ("a = 1 b = 2", "found 'b' where and, or, or the end is accepted, at position 7"),
        ("a ; 1", "cannot read '; 1'"),
        ("(a = 1", "where ) is accepted"),
        ("a in ()", "a number or a 'string'"),
        ("a is 3", "where null is accepted"),
        ("__import__('os')", "where =, !=, <, <=, >, >=, in or is is accepted"),
        ("not " * 99 + "a = 1", "nested deeper than 50"),
    ],
)
def test_errors_name_the_place(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        where.parse(text)


@pytest.mark.parametrize(("text", "kind"), [("day > 5", "'day' holds date32"), ("raw = 'a'", "'raw' holds binary")])
def test_columns_that_do_not_compare_are_named(text: str, kind: str) -> None:
    with pytest.raises(UnitError, match=kind):
        passing(text)


def test_missing_columns_are_named() -> None:
    with pytest.raises(UserError, match="no column 'punsave'; there are URL, punsafe"):
        where.check_columns(where.parse("punsave > 1"), ["URL", "punsafe"], "punsave > 1")


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge
}  # fmt: skip


@given(st.lists(st.none() | st.integers(-9, 9)), st.sampled_from(sorted(OPERATORS)), st.integers(-9, 9))
def test_comparisons_agree_with_python(values: list[int | None], sign: str, bound: int) -> None:
    column = pa.array(values, pa.int64())
    mask = where.passes(where.parse(f"x {sign} {bound}"), lambda name: column)
    assert mask.to_pylist() == [value is not None and OPERATORS[sign](value, bound) for value in values]
