"""The language of filters, such as `label = 'cat' and width >= 640`, as a tree.

    column = value      also ==, !=, <>, <, <=, > and >=; either side may be a column or a value
    column in (v, ...)  also `not in`
    column like 'IMG%'  % is any text and _ any character; a backslash before them takes them as
                        they are; ASCII letters match in either case; also `not like`
    column between a and b      with both ends; also `not between`
    column is null      also `is not null`
    column              a column of true and false
    not, and, or        in this order of precedence; parentheses change it

Text stands in single quotes, and a quote within it is doubled. Names with other characters than
letters, digits and _ stand in double quotes. Keywords may be in upper case. `metadata.width` is the
metadata field named like a column of the index. where_sql.py has what a filter means.
"""

from __future__ import annotations

from functools import cache

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedToken, v_args

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
    Operand,
)

MAX_TEXT = 50_000  # characters
MAX_DEPTH = 25  # of parentheses and `not`; SQLite's parser takes about 30
METADATA = "metadata"

GRAMMAR = r"""
?start: any
?any: all (_OR all)*
?all: negation (_AND negation)*
?negation: _NOT negation -> negated
    | "(" any ")"        -> grouped
    | condition
?condition: operand COMPARE operand                 -> comparison
    | column _IN "(" value ("," value)* ")"         -> within
    | column _NOT _IN "(" value ("," value)* ")"    -> not_within
    | column _LIKE value                            -> like
    | column _NOT _LIKE value                       -> not_like
    | column _BETWEEN operand _AND operand          -> between
    | column _NOT _BETWEEN operand _AND operand     -> not_between
    | column _IS _NULL                              -> is_null
    | column _IS _NOT _NULL                         -> is_not_null
    | column                                        -> is_true
?operand: column | value
column: NAME | QUOTED | NAME "." (NAME | QUOTED)
?value: TEXT -> text
    | NUMBER -> number
    | TRUE   -> true
    | FALSE  -> false

_AND.2: /and\b/i
_OR.2: /or\b/i
_NOT.2: /not\b/i
_IN.2: /in\b/i
_LIKE.2: /like\b/i
_BETWEEN.2: /between\b/i
_IS.2: /is\b/i
_NULL.2: /null\b/i
TRUE.2: /true\b/i
FALSE.2: /false\b/i
COMPARE: "==" | "=" | "!=" | "<>" | "<=" | "<" | ">=" | ">"
NAME: /(?!(and|or|not|in|like|between|is|null|true|false)\b)[^\W\d]\w*/i
QUOTED: /"([^"]|"")+"/
TEXT: /'([^']|'')*'/
NUMBER: /[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?(?![\w.])/i
%ignore /\s+/
"""
SAME = {"==": "=", "<>": "!="}


def parse_filter(text: str) -> Condition:
    """Return the tree of a filter. FilterError if it is not a filter."""
    if len(text) > MAX_TEXT:
        raise FilterError(text, 1, f"it is longer than {MAX_TEXT:,} characters.")
    for position, character in enumerate(text):
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise FilterError(text, position + 1, "this character is not valid text.")
    if not text.strip():
        raise FilterError(text, 1, "it is empty; write one such as label = 'cat'.")
    try:
        _check_depth(text)
        condition: Condition = _parser().parse(text)  # type: ignore[assignment]
    except UnexpectedCharacters as error:
        reason = _about_character(error.char)
        raise FilterError(text, (error.pos_in_stream or 0) + 1, reason) from None
    except UnexpectedToken as error:
        at_end = error.token.type == "$END"
        at = len(text.rstrip()) + 1 if at_end else _position(error.token)
        raise FilterError(text, at, _about_token(error)) from None
    except _Wrong as error:
        raise FilterError(text, error.at, error.reason) from None
    return condition


class _Wrong(Exception):
    """A fault in text that follows the grammar."""

    def __init__(self, at: int, reason: str) -> None:
        self.at, self.reason = at, reason


@v_args(inline=True)
class _Builder(Transformer[Token, Condition]):
    """Makes a tree of what the parser reads, from the leaves up."""

    def column(self, *tokens: Token) -> Column:
        last = tokens[-1]
        is_quoted = last.type == "QUOTED"
        name = last[1:-1].replace('""', '"') if is_quoted else str(last)
        if len(tokens) == 2 and tokens[0].lower() != METADATA:
            raise _Wrong(
                _position(tokens[0]),
                f"only {METADATA} can stand before a dot; put other names with a dot in double"
                " quotes.",
            )
        return Column(name, _position(tokens[0]), len(tokens) == 2, is_quoted)

    def text(self, token: Token) -> Constant:
        return Constant(token[1:-1].replace("''", "'"), _position(token))

    def number(self, token: Token) -> Constant:
        is_whole = token.lstrip("+-").isascii() and token.lstrip("+-").isdigit()
        # int() refuses more than 4,300 digits; a float of them is infinite, which compares alike
        value = int(token) if is_whole and len(token) <= 20 else float(token)
        return Constant(value, _position(token))

    def true(self, token: Token) -> Constant:
        return Constant(True, _position(token))

    def false(self, token: Token) -> Constant:
        return Constant(False, _position(token))

    def comparison(self, left: Operand, operator: Token, right: Operand) -> Comparison:
        if isinstance(left, Constant) and isinstance(right, Constant):
            raise _Wrong(
                left.at, "it compares two values; text is in single quotes, names of columns not."
            )
        return Comparison(left, SAME.get(operator, str(operator)), right)

    def within(self, column: Column, *values: Constant) -> In:
        return In(column, values)

    def not_within(self, column: Column, *values: Constant) -> Not:
        return Not(In(column, values))

    def like(self, column: Column, pattern: Constant) -> Like:
        if not isinstance(pattern.value, str):
            raise _Wrong(pattern.at, "a pattern is text in single quotes, such as 'IMG%'.")
        if len(pattern.value) - len(pattern.value.rstrip("\\")) & 1:
            raise _Wrong(pattern.at, "the pattern ends with a backslash; double it to mean one.")
        return Like(column, pattern)

    def not_like(self, column: Column, pattern: Constant) -> Not:
        return Not(self.like(column, pattern))

    def between(self, column: Column, low: Operand, high: Operand) -> All:
        return All((Comparison(column, ">=", low), Comparison(column, "<=", high)))

    def not_between(self, column: Column, low: Operand, high: Operand) -> Not:
        return Not(self.between(column, low, high))

    def is_null(self, column: Column) -> IsNull:
        return IsNull(column)

    def is_not_null(self, column: Column) -> Not:
        return Not(IsNull(column))

    def is_true(self, column: Column) -> IsTrue:
        return IsTrue(column)

    def negated(self, condition: Condition) -> Not:
        return Not(condition)

    def grouped(self, condition: Condition) -> Condition:
        return condition

    def all(self, *conditions: Condition) -> All:
        return All(conditions)

    def any(self, *conditions: Condition) -> AtLeastOne:
        return AtLeastOne(conditions)


@cache
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", maybe_placeholders=False, transformer=_Builder())


def _check_depth(text: str) -> None:
    """Raise _Wrong if parentheses and `not` are nested too deeply for functions that recurse."""
    depth, negations = 0, 0
    opened: list[int] = []  # what each parenthesis adds, with the negations before it
    for token in _parser().lex(text):
        if token.type == "_NOT":
            negations += 1
        elif token.type == "LPAR":
            opened.append(negations + 1)
            depth += opened[-1]
            negations = 0
        else:
            negations = 0
            if token.type == "RPAR" and opened:
                depth -= opened.pop()
        if depth + negations > MAX_DEPTH:
            raise _Wrong(
                _position(token), f"it is nested more than {MAX_DEPTH} deep; write it flatter."
            )


def _position(token: Token) -> int:
    return (token.start_pos or 0) + 1


def _about_character(character: str) -> str:
    if character in "'\"":
        what = "text" if character == "'" else "name"
        return f"the {what} that begins here has no closing quote."
    if character.isdigit():
        return "this is not a number."
    return (
        f"{character!r} has no meaning here; text is in single quotes, and names with special"
        " characters are in double quotes."
    )


def _about_token(error: UnexpectedToken) -> str:
    if error.token.type == "_NULL" and "TEXT" in error.accepts:
        return "nothing equals null; write `is null` or `is not null`."
    if {"NAME", "TEXT"} <= error.accepts and "_NOT" not in error.accepts:
        return "a value or the name of a column is missing here; text is in single quotes."
    if "NAME" in error.accepts:
        return "the name of a column is missing here."
    if "TEXT" in error.accepts:
        return "a value is missing here; text is in single quotes."
    if "COMPARE" in error.accepts:
        return (
            "a comparison is missing here, such as =, <, in (...), like, between ... and ... or is"
            " null."
        )
    if "RPAR" in error.accepts:
        return "a closing parenthesis is missing here."
    if "LPAR" in error.accepts:
        return "a list in parentheses is missing here, such as ('a', 'b')."
    if "_NULL" in error.accepts:
        return "`null` or `not null` is missing here."
    if "_IN" in error.accepts:
        return "`in`, `like` or `between` is missing here."
    if error.token.type == "RPAR":
        return "this closes a parenthesis that was not opened."
    return "`and`, `or` or the end is missing here."
