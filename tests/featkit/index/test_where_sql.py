"""Filters match what a plain Python evaluation does, and their text never runs as SQL."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.index.records import NewItem, Value
from featkit.index.table_writer import CatalogueWriter
from featkit.index.tables import SCHEMA
from featkit.index.where import FilterError

Row = dict[str, Any]
Truth = bool | None
# A condition as its text and a function that evaluates it for a row.
Made = tuple[str, Callable[[Row], Truth]]

WORDS = st.text(alphabet="aAbé%_\\'\";- 1", max_size=4)
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-3, 3),
    st.floats(allow_nan=False),
    st.sampled_from([0.5, -0.0, 2.0, math.inf, 2.0**53, 2.0**63]),
)
NAMES = ["plain", "odd \"name'; --", "width"]  # the last one is also a column of the index
FIELDS = {"plain": "plain", "odd \"name'; --": '"odd ""name\'; --"', "width": "metadata.width"}
VALUES = st.one_of(st.none(), WORDS, NUMBERS, st.just(math.nan))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "key": WORDS.map(lambda word: word + "/k"),
            "own width": st.one_of(st.none(), st.integers(0, 5)),
            "flag": st.sampled_from([None, False, True]),
            **dict.fromkeys(NAMES, VALUES),
        }
    ),
    max_size=6,
)


def shown(value: Value) -> str:
    """Write a value in a filter."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return repr(value)


def kind_of(value: Any) -> str:
    if value is None or value != value:
        return "unknown"
    return "text" if isinstance(value, str) else "number"


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def compared(operator: str, left: Any, right: Any) -> Truth:
    kinds = {kind_of(left), kind_of(right)}
    if len(kinds) > 1 or "unknown" in kinds:
        return None
    return OPERATORS[operator](left, right)


def negated(truth: Truth) -> Truth:
    return None if truth is None else not truth


def all_of(truths: list[Truth]) -> Truth:
    return False if False in truths else None if None in truths else True


def any_of(truths: list[Truth]) -> Truth:
    return negated(all_of([negated(truth) for truth in truths]))


def like(value: Any, pattern: str) -> Truth:
    """The definition of `like`, by a regular expression."""
    if kind_of(value) != "text":
        return None
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    wild = {"%": ".*", "_": "."}
    expression = "".join(wild.get(part) or re.escape(part[-1]) for part in parts)
    return re.fullmatch(ascii_lower(expression), ascii_lower(value), re.DOTALL) is not None


def ascii_lower(text: str) -> str:
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


@st.composite
def simple(draw: st.DrawFn) -> Made:
    """Draw a condition without others in it."""
    name = draw(st.sampled_from(NAMES))
    field = FIELDS[name]
    form = draw(st.sampled_from("compare reversed columns in like between null flag own".split()))
    operator = draw(st.sampled_from([*OPERATORS]))
    value = draw(st.one_of(WORDS, NUMBERS))
    if form == "compare":
        return f"{field} {operator} {shown(value)}", lambda row: compared(
            operator, row[name], value
        )
    if form == "reversed":
        return f"{shown(value)} {operator} {field}", lambda row: compared(
            operator, value, row[name]
        )
    if form == "columns":
        other = draw(st.sampled_from(NAMES))
        text = f"{field} {operator} {FIELDS[other]}"
        return text, lambda row: compared(operator, row[name], row[other])
    if form == "in":
        values = [value, *draw(st.lists(st.one_of(WORDS, NUMBERS), max_size=3))]
        text = f"{field} in ({', '.join(map(shown, values))})"
        return text, lambda row: any_of([compared("=", row[name], each) for each in values])
    if form == "like":
        pattern = re.sub(r"\\$", "", draw(WORDS).replace("\\\\", "\\"))
        return f"{field} like {shown(pattern)}", lambda row: like(row[name], pattern)
    if form == "between":
        high = draw(st.one_of(WORDS, NUMBERS))
        return f"{field} between {shown(value)} and {shown(high)}", lambda row: all_of(
            [compared(">=", row[name], value), compared("<=", row[name], high)]
        )
    if form == "null":
        return f"{field} is null", lambda row: row[name] is None
    if form == "flag":
        wanted = draw(st.booleans())
        if draw(st.booleans()):
            return "flag", lambda row: row["flag"]
        return f"flag = {str(wanted).lower()}", lambda row: compared("=", row["flag"], wanted)
    least = draw(st.integers(0, 5))
    return f"width >= {least}", lambda row: compared(">=", row["own width"], least)


def extended(inner: st.SearchStrategy[Made]) -> st.SearchStrategy[Made]:
    def joined(word: str, join: Callable[[list[Truth]], Truth]) -> st.SearchStrategy[Made]:
        return st.lists(inner, min_size=2, max_size=4).map(
            lambda parts: (
                "(" + f" {word} ".join(text for text, _ in parts) + ")",
                lambda row: join([holds(row) for _, holds in parts]),
            )
        )

    opposite = inner.map(lambda made: (f"not ({made[0]})", lambda row: negated(made[1](row))))
    return st.one_of(joined("and", all_of), joined("OR", any_of), opposite)


CONDITIONS = st.recursive(simple(), extended, max_leaves=8)


def writer_with(rows: list[Row]) -> CatalogueWriter:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    writer = CatalogueWriter(connection)
    # so that the fields exist and their kinds are known, whatever the rows hold
    fields: dict[str, Any] = {**dict.fromkeys(NAMES, "text"), "flag": True}
    names = [*NAMES, "flag"]
    items = [NewItem(key="fields", metadata=fields)] + [
        NewItem(
            key=f"{row['key']}{i}",
            width=row["own width"],
            metadata={name: row[name] for name in names},
        )
        for i, row in enumerate(rows)
    ]
    writer.insert_items(0, items, [0] * len(items))
    writer.remove_items(["fields"])
    return writer


def matching(writer: CatalogueWriter, where: str) -> list[int]:
    """Return the positions of the rows that match."""
    try:
        return [item_id - 1 for item_id in writer.ids_matching(where)]
    except FilterError as error:
        # nothing matches, and the reason is known
        assert " only; write" in error.reason  # noqa: PT017
        return []


@given(ROWS, CONDITIONS)
def test_matches_equal_a_plain_evaluation(rows: list[Row], condition: Made) -> None:
    text, holds = condition
    assert matching(writer_with(rows), text) == [i for i, row in enumerate(rows) if holds(row)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("key = 'a/1'", [0]),
        ("folder = 'a'", [0]),
        ("folder = ''", [2]),
        ("folder like 'a%'", [0, 1]),
        ("source = 'photos'", [0, 1, 2]),
        ("added >= '2020' and added < '9999'", [0, 1, 2]),
        ("width > height", [0]),
        ("metadata.width = 'wide'", [1]),
        ("width in (640, 'x')", "width holds numbers, but this is text."),
        ("height is null", [2]),
        ("label in ('cat', 5)", [0, 2]),
        ("label != 'cat'", [1]),
        ("not label in ('dog', 'bird')", [0]),
        ("favorite", [0]),
        ("not favorite", [1]),
        ("favorite = false or favorite is null", [1, 2]),
        ("metadata.label = 'cat'", [0]),
        ("key like '%A/_'", [0]),
        ("key like '%\\_%'", [2]),
        ("label = 12345678901234567890123", "label = 12345678901234567890123"),
    ],
)
def test_each_column_is_compared_as_it_is(where: str, expected: list[int] | str) -> None:
    writer = example()
    if isinstance(expected, list):
        assert writer.ids_matching(where) == expected
    elif expected == where:  # beyond 64 bits
        assert writer.ids_matching(where) == []
    else:
        with pytest.raises(FilterError, match=re.escape(expected)):
            writer.ids_matching(where)


def example() -> CatalogueWriter:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    writer = CatalogueWriter(connection)
    metadata: list[dict[str, Any]] = [
        {"label": "cat", "favorite": True},
        {"label": "dog", "favorite": False, "width": "wide"},
        {"label": 5},
    ]
    items = [
        NewItem(key=key, source="photos", width=640, height=height, metadata=fields)
        for key, height, fields in zip(
            ("a/1", "ab/c/2", "3_"), (480, 640, None), metadata, strict=True
        )
    ]
    writer.insert_items(0, items, [0] * len(items))
    return writer


@pytest.mark.parametrize(
    ("where", "column", "reason"),
    [
        ("labl = 'cat'", 1, "there is no column 'labl'; did you mean label?"),
        ('label = "cat"', 9, "there is no column 'cat'; text is in single quotes."),
        ("metadata.key = 'a'", 1, "there is no column 'key'; there are"),
        ("1 < widthx", 5, "did you mean width?"),
        ("width = 'cat'", 9, "width holds numbers, but this is text."),
        ("key > 5", 7, "key holds text, but this is a number."),
        ("favorite = 1", 12, "favorite holds true and false, but this is a number."),
        ("favorite > false", 12, "equal or not"),
        ("label = true", 9, "label holds text or numbers, but this is a truth value."),
        ("label", 1, "label holds text or numbers; compare it"),
        ("width", 1, "width holds numbers; compare it"),
        ("key = width", 7, "key holds text, and width numbers."),
        ("metadata.width > 5", 18, "width holds text only; write '5' in single quotes."),
    ],
)
def test_a_filter_that_means_nothing_is_refused(where: str, column: int, reason: str) -> None:
    with pytest.raises(FilterError) as caught:
        example().ids_matching(where)
    assert caught.value.column == column
    assert reason in caught.value.reason


@given(st.text(max_size=30))
def test_text_never_runs_as_sql(text: str) -> None:
    writer = example()
    for where in (text, f"label = {shown(text)}", f'"{text}" = 1', f"label like {shown(text)}"):
        try:
            writer.ids_matching(where)
        except FilterError:
            continue
    assert sorted(writer.items_by_id([0, 1, 2])) == [0, 1, 2]


def test_as_many_values_as_fit_into_a_filter_are_compared() -> None:
    numbers = ", ".join(str(number) for number in range(8000))
    assert example().ids_matching(f"label in ({numbers})") == [2]
    either = " or ".join(f"label={number}" for number in range(3000))
    assert example().ids_matching(either) == [2]
    nested = "not (" * 11 + "label = 'cat' or " * 1000 + "label = 'x'" + ")" * 11
    assert example().ids_matching(nested) == [1]


def test_more_values_than_sqlite_takes_are_refused() -> None:
    writer = example()
    writer._connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
    with pytest.raises(FilterError, match="more than 999 values"):
        writer.ids_matching(f"label in ({', '.join('1' * 1000)})")


@pytest.mark.parametrize(
    "where",
    [
        "(width = 1 and " * 24 + "width = 2" + ")" * 24,
        "(width = 2 or width = 1 and key = 'b' and " * 10 + "width = 1" + ")" * 10,
        f"key like '{'é' * 26_000}'",
    ],
)
def test_what_is_too_complex_for_sqlite_is_a_wrong_filter(where: str) -> None:
    try:
        assert example().ids_matching(where) == []
    except FilterError as error:
        assert "too complex" in error.reason  # noqa: PT017


def test_a_list_without_matches_is_checked_once() -> None:
    writer = example()
    statements: list[str] = []
    writer._connection.set_trace_callback(statements.append)
    names = ", ".join(f"'z{number}'" for number in range(100))
    assert writer.ids_matching(f"label in ({names})") == []
    assert len(statements) < 12
