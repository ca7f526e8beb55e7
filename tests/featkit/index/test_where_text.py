"""Filters: what is read, what is refused, and where."""

from __future__ import annotations

import pytest

from featkit.index.where import (
    All,
    AtLeastOne,
    Column,
    Comparison,
    Condition,
    Constant,
    FilterError,
    In,
    IsNull,
    IsTrue,
    Like,
    Not,
)
from featkit.index.where_text import MAX_DEPTH, MAX_TEXT, parse_filter


def test_and_binds_closer_than_or_and_not_closest() -> None:
    a, b, c = (IsTrue(Column(name, at)) for name, at in (("a", 1), ("b", 10), ("c", 16)))
    assert parse_filter("a or not b and c") == AtLeastOne((a, All((Not(b), c))))


def test_parentheses_change_precedence() -> None:
    a, b, c = (IsTrue(Column(name, at)) for name, at in (("a", 2), ("b", 7), ("c", 14)))
    assert parse_filter("(a or b)  and c".replace("  ", " ")) == All(
        (AtLeastOne((a, b)), IsTrue(Column("c", 14)))
    )
    assert c == IsTrue(Column("c", 14))


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("a = 1", Comparison(Column("a", 1), "=", Constant(1, 5))),
        ("a == 1", Comparison(Column("a", 1), "=", Constant(1, 6))),
        ("a <> -2.5", Comparison(Column("a", 1), "!=", Constant(-2.5, 6))),
        ("1e3 <= a", Comparison(Constant(1000.0, 1), "<=", Column("a", 8))),
        ("width > height", Comparison(Column("width", 1), ">", Column("height", 9))),
        ("a = 'it''s'", Comparison(Column("a", 1), "=", Constant("it's", 5))),
        ("a = TRUE", Comparison(Column("a", 1), "=", Constant(True, 5))),
        ('"my ""col""" = 1', Comparison(Column('my "col"', 1, False, True), "=", Constant(1, 16))),
        ("metadata.width = 1", Comparison(Column("width", 1, True), "=", Constant(1, 18))),
        ("a in ('x', 2)", In(Column("a", 1), (Constant("x", 7), Constant(2, 12)))),
        ("a NOT IN (1)", Not(In(Column("a", 1), (Constant(1, 11),)))),
        ("a like 'IMG\\_%'", Like(Column("a", 1), Constant("IMG\\_%", 8))),
        ("a is null", IsNull(Column("a", 1))),
        ("a is not null", Not(IsNull(Column("a", 1)))),
        ("order = 1", Comparison(Column("order", 1), "=", Constant(1, 9))),
        ("größe = 1", Comparison(Column("größe", 1), "=", Constant(1, 9))),
        (
            "a between 1 and 2",
            All(
                (
                    Comparison(Column("a", 1), ">=", Constant(1, 11)),
                    Comparison(Column("a", 1), "<=", Constant(2, 17)),
                )
            ),
        ),
    ],
)
def test_each_condition_is_read(text: str, condition: Condition) -> None:
    assert parse_filter(text) == condition


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("", 1, "empty"),
        ("label = 'cat", 9, "no closing quote"),
        ('"label = 1', 1, "no closing quote"),
        ("label =", 8, "a value or the name of a column is missing"),
        ("label = 1 and", 14, "name of a column"),
        ("label 5", 7, "a comparison is missing"),
        ("(a = 1", 7, "a closing parenthesis is missing"),
        ("a = 1)", 6, "not opened"),
        ("a = 1 b", 7, "`and`, `or` or the end"),
        ("a in ()", 7, "a value is missing"),
        ("a in 5", 6, "a list in parentheses"),
        ("a is 5", 6, "`null` or `not null`"),
        ("a not null", 7, "`in`, `like` or `between`"),
        ("a = null", 5, "write `is null`"),
        ("1 = 2", 1, "compares two values"),
        ("x.y = 3", 1, "only metadata can stand before a dot"),
        ("a = 1.5e3x", 5, "not a number"),
        ("a like 5", 8, "a pattern is text"),
        ("a like 'x\\'", 8, "ends with a backslash"),
        ("a = 1; drop table items", 6, "';' has no meaning here"),
        ("and", 1, "name of a column"),
        ("a = 'x\0'", 7, "not valid text"),
        ("a = '\ud800'", 6, "not valid text"),
        ("a = 1 and\n b =", 15, "missing"),
        (f"a = '{'x' * MAX_TEXT}'", 1, "longer than"),
    ],
)
def test_an_error_names_the_column_of_the_text(text: str, column: int, reason: str) -> None:
    with pytest.raises(FilterError, match=f"is wrong at column {column}: ") as caught:
        parse_filter(text)
    assert (caught.value.text, caught.value.column) == (text, column)
    assert reason in caught.value.reason
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("nested", ["(", "not ", "not (", "(" * MAX_TEXT])
def test_deep_nesting_is_refused(nested: str) -> None:
    text = (nested * (MAX_DEPTH + 1))[:MAX_TEXT]
    with pytest.raises(FilterError, match="nested more than"):
        parse_filter(text)


def test_long_flat_filters_are_read() -> None:
    condition = parse_filter(" or ".join(f"a = {i}" for i in range(4000)))
    assert isinstance(condition, AtLeastOne)
    assert len(condition.conditions) == 4000
