"""The meaning of a filter: its tree as an SQL condition with bound parameters.

As in SQL, a condition is true, false or unknown, and an item matches if the whole filter is true
for it. A comparison is unknown if one side has no value, or if one side is text and the other a
number. The opposite of unknown is unknown, so `not label = 'cat'` does not match an item without a
label. Numbers compare by value and text by code points. NaN compares like a missing value, but is
not null.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featkit.index.records import MAX_INTEGER, MIN_INTEGER
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

TEXT, NUMBER, BOOLEAN, ANY = "text", "number", "boolean", "any"
HOLDS = {TEXT: "text", NUMBER: "numbers", BOOLEAN: "true and false", ANY: "text or numbers"}
SQL_TYPES = {TEXT: "('text')", NUMBER: "('integer', 'real')"}


@dataclass(frozen=True)
class SqlColumn:
    """A column that filters may name: its SQL, and the kind of its values.

    ANY is text or numbers. old_booleans: an ANY column in which 0 and 1 may stand for booleans.
    """

    sql: str
    kind: str = ANY
    old_booleans: bool = False


@dataclass(frozen=True)
class Expectation:
    """A comparison that is only known for the values of one kind in an ANY column."""

    sql: str
    name: str
    kind: str
    constant: Constant


@dataclass
class SqlFilter:
    """A condition in SQL, its parameters in order, and what it expects of ANY columns."""

    text: str
    sql: str = ""
    parameters: list[str | int | float] = field(default_factory=list)
    expectations: list[Expectation] = field(default_factory=list)


def to_sql(
    text: str,
    condition: Condition,
    *,
    columns: Mapping[str, SqlColumn],
    metadata: Mapping[str, SqlColumn],
) -> SqlFilter:
    """Return the SQL of a filter's tree.

    columns: those of the index itself, by name; metadata: the others. A name means the former if
    both have it. text: the filter, for messages. FilterError for an unknown column, and for a value
    of a kind that its column never holds.
    """
    translator = _Translator(text, columns, metadata)
    translator.made.sql = translator.condition(condition)
    return translator.made


def never_known(text: str, expectation: Expectation) -> FilterError:
    """Return the error for a comparison with a value of another kind than all in its column."""
    constant = expectation.constant
    if expectation.kind == NUMBER:
        hint = f"write '{constant.value}' in single quotes"
    else:
        hint = "write a number without quotes"
    held = HOLDS[NUMBER if expectation.kind == TEXT else TEXT]
    return FilterError(text, constant.at, f"{expectation.name} holds {held} only; {hint}.")


class _Translator:
    def __init__(
        self, text: str, columns: Mapping[str, SqlColumn], metadata: Mapping[str, SqlColumn]
    ) -> None:
        self.text, self.columns, self.metadata = text, columns, metadata
        self.made = SqlFilter(text)

    def condition(self, condition: Condition) -> str:
        match condition:
            case All(conditions):
                return _joined([self.condition(each) for each in conditions], "AND")
            case AtLeastOne(conditions):
                return _joined([self.condition(each) for each in conditions], "OR")
            case Not(inner):
                return f"(NOT {self.condition(inner)})"
            case IsNull(column):
                return f"({self.column(column).sql} IS NULL)"
            case IsTrue(column):
                return self.is_true(column)
            case In(column, values):
                return self.is_one_of(column, values)
            case Like(column, pattern):
                sql = self.column(column).sql
                kind = self.kind_of(pattern, column)
                return self.if_known(column, kind, f"{sql} LIKE {self.bound(pattern)} ESCAPE '\\'")
            case Comparison(Column() as left, operator, Column() as right):
                return self.compare_columns(left, operator, right)
            case Comparison(Column() as column, operator, Constant() as constant):
                return self.compare(column, f"{{}} {operator} {{}}", constant, operator)
            case Comparison(Constant() as constant, operator, Column() as column):
                return self.compare(column, f"{{1}} {operator} {{0}}", constant, operator)
        raise AssertionError(condition)

    def column(self, column: Column) -> SqlColumn:
        """Return what a name means. FilterError with the nearest name if it means nothing."""
        if not column.is_metadata and column.name in self.columns:
            return self.columns[column.name]
        if column.name in self.metadata:
            return self.metadata[column.name]
        names = [*([] if column.is_metadata else self.columns), *self.metadata]
        if near := difflib.get_close_matches(column.name, names, 1):
            hint = f"; did you mean {near[0]}?"
        elif column.is_quoted:
            hint = "; text is in single quotes."
        else:
            hint = f"; there are {', '.join(names)}." if names else "; there is no metadata."
        raise FilterError(self.text, column.at, f"there is no column {column.name!r}{hint}")

    def is_true(self, column: Column) -> str:
        known = self.column(column)
        if known.kind != BOOLEAN and not known.old_booleans:
            raise FilterError(
                self.text,
                column.at,
                f"{column.name} holds {HOLDS[known.kind]}; compare it, as in {column.name} = "
                f"{0 if known.kind == NUMBER else repr('text')}.",
            )
        return f"({known.sql} = 1)"

    def compare(self, column: Column, form: str, constant: Constant, operator: str) -> str:
        """Compare a column with a constant; `form` has places for both."""
        kind = self.kind_of(constant, column)
        if kind == BOOLEAN and operator not in ("=", "!="):
            raise FilterError(
                self.text, constant.at, "true and false are equal or not; write = or !=."
            )
        return self.if_known(
            column, kind, form.format(self.column(column).sql, self.bound(constant))
        )

    def is_one_of(self, column: Column, values: Sequence[Constant]) -> str:
        by_kind: dict[str, list[Constant]] = {}
        for value in values:
            by_kind.setdefault(self.kind_of(value, column), []).append(value)
        sql = self.column(column).sql
        parts = []
        for kind, constants in by_kind.items():
            marks = ", ".join([self.bound(constant) for constant in constants])
            parts.append(self.if_known(column, kind, f"{sql} IN ({marks})"))
        return _joined(parts, "OR")

    def compare_columns(self, left: Column, operator: str, right: Column) -> str:
        first, second = self.column(left), self.column(right)
        kinds = {first.kind, second.kind} - {ANY}
        if len(kinds) == 2:
            raise FilterError(
                self.text,
                right.at,
                f"{left.name} holds {HOLDS[first.kind]}, and {right.name} {HOLDS[second.kind]}.",
            )
        compared = f"({first.sql} {operator} {second.sql})"
        unknown_kinds = [each.sql for each in (first, second) if each.kind == ANY]
        if not unknown_kinds:
            return compared
        both = [
            " AND ".join(f"typeof({sql}) IN {types}" for sql in unknown_kinds)
            for kind, types in SQL_TYPES.items()
            if kind in ({NUMBER} if kinds == {BOOLEAN} else kinds or SQL_TYPES)
        ]
        return f"(CASE WHEN {' OR '.join(both)} THEN {compared} END)"

    def kind_of(self, constant: Constant, column: Column) -> str:
        """Return the kind of a constant. FilterError if its column never holds that kind."""
        known = self.column(column)
        value = constant.value
        kind = BOOLEAN if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER
        if kind == BOOLEAN and known.old_booleans:
            return NUMBER
        if kind != known.kind and (known.kind != ANY or kind == BOOLEAN):
            raise FilterError(
                self.text,
                constant.at,
                f"{column.name} holds {HOLDS[known.kind]}, but this is"
                f" {'a number' if kind == NUMBER else kind if kind == TEXT else 'a truth value'}.",
            )
        if known.kind == ANY:
            self.made.expectations.append(Expectation(known.sql, column.name, kind, constant))
        return kind

    def if_known(self, column: Column, kind: str, sql: str) -> str:
        """Return SQL that is unknown where the column holds a value of another kind."""
        known = self.column(column)
        if known.kind != ANY:
            return f"({sql})"
        return f"(CASE WHEN typeof({known.sql}) IN {SQL_TYPES[kind]} THEN {sql} END)"

    def bound(self, constant: Constant) -> str:
        value = constant.value
        if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
            value = float(value)
        self.made.parameters.append(int(value) if isinstance(value, bool) else value)
        return "?"


def _joined(conditions: Sequence[str], operator: str) -> str:
    """Join conditions as a balanced tree, since SQLite bounds the depth of expressions."""
    if len(conditions) == 1:
        return conditions[0]
    half = len(conditions) // 2
    first, second = _joined(conditions[:half], operator), _joined(conditions[half:], operator)
    return f"({first} {operator} {second})"
