"""A filter as a tree, and the error of a wrong one. where_text.py reads its text."""

from __future__ import annotations

from dataclasses import dataclass

from featkit.errors import InputError
from featkit.wording import on_one_line

MAX_SHOWN = 60  # characters of a filter in a message

Scalar = str | int | float | bool


class FilterError(InputError):
    """A filter cannot be used. `column` is the position in its text, counted from 1."""

    def __init__(self, text: str, column: int, reason: str) -> None:
        self.text, self.column, self.reason = text, column, reason
        shown = _near(text, column)
        super().__init__(f"The filter `{shown}` is wrong at column {column}: {reason}")


@dataclass(frozen=True)
class Column:
    """A column by name. at: its position in the text, counted from 1."""

    name: str
    at: int
    is_metadata: bool = False  # written as metadata.name
    is_quoted: bool = False


@dataclass(frozen=True)
class Constant:
    """A value that is written in the filter."""

    value: Scalar
    at: int


Operand = Column | Constant


@dataclass(frozen=True)
class Comparison:
    """A comparison of two operands. operator: =, !=, <, <=, > or >=."""

    left: Operand
    operator: str
    right: Operand


@dataclass(frozen=True)
class In:
    """A column with one of several values."""

    column: Column
    values: tuple[Constant, ...]


@dataclass(frozen=True)
class Like:
    """A column whose text matches a pattern."""

    column: Column
    pattern: Constant


@dataclass(frozen=True)
class IsNull:
    """A column without a value."""

    column: Column


@dataclass(frozen=True)
class IsTrue:
    """A column of booleans that is true."""

    column: Column


@dataclass(frozen=True)
class Not:
    """The opposite of a condition; unknown if the condition is unknown."""

    condition: Condition


@dataclass(frozen=True)
class All:
    """Conditions that all hold."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class AtLeastOne:
    """Conditions of which at least one holds."""

    conditions: tuple[Condition, ...]


Condition = Comparison | In | Like | IsNull | IsTrue | Not | All | AtLeastOne


def _near(text: str, column: int) -> str:
    """Return the text around a column, on one line without control characters."""
    start = max(0, min(column - 1 - MAX_SHOWN // 2, len(text) - MAX_SHOWN))
    end = start + MAX_SHOWN
    shown = on_one_line(text[start:end])
    return f"{'...' if start else ''}{shown}{'...' if end < len(text) else ''}"
