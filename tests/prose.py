"""The prose of a Python file: its docstrings, comments and strings, each with its line."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["docstring", "comment", "string"]

# Directives to tools, shebangs and commented-out arguments are not prose.
DIRECTIVES = re.compile(r"#\s*(noqa|type:|ruff:|pragma|fmt:|!)")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z`\"'(\[])")
WORD = re.compile(r"\W*[A-Za-z'-]{2,}\W*$")
MIN_WORDS = 3  # of a sentence; shorter strings are mostly names and codes
PLACEHOLDER = "{}"


class Passage(NamedTuple):
    """A run of text that one person wrote in one place."""

    line: int
    kind: Kind
    text: str


def passages(source: str) -> list[Passage]:
    """Return every docstring, comment and string of `source`, in the order of their lines.

    Comments on consecutive lines are one passage; so are the parts of one f-string, whose values
    read as `{}`.
    """
    tree = ast.parse(source)
    docstrings = {id(node): node for node in docstring_nodes(tree)}
    strings = [
        Passage(node.lineno, "docstring" if id(node) in docstrings else "string", text)
        for node, text in _texts(tree)
    ]
    return sorted([*strings, *_comments(source)], key=lambda passage: passage.line)


def sentences(passage: Passage) -> Iterator[tuple[int, str]]:
    """Yield each sentence of a passage with its line.

    Blocks indented below the passage, such as formulas and command lines, are left out.
    """
    for line, paragraph in _paragraphs(passage):
        for sentence in SENTENCE_END.split(paragraph):
            if sum(bool(WORD.match(word)) for word in sentence.split()) >= MIN_WORDS:
                yield line, sentence


def docstring_nodes(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the docstring of the module, of each class and of each function that has one."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


def read_python(path: Path) -> str:
    """Read a source file as text."""
    return path.read_text(encoding="utf-8")


def _texts(tree: ast.Module) -> Iterator[tuple[ast.expr, str]]:
    """Yield each string that is not part of another one."""
    inner: set[int] = set()
    for node in ast.walk(tree):  # a parent comes before its children
        if id(node) in inner:
            continue
        if isinstance(node, ast.JoinedStr):
            # a format specification is a JoinedStr, too
            inner.update(id(child) for child in ast.walk(node))
            yield node, "".join(_shown(value) for value in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, node.value


def _shown(value: ast.expr) -> str:
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return str(value.value) if is_text and isinstance(value, ast.Constant) else PLACEHOLDER


def _comments(source: str) -> list[Passage]:
    merged: list[Passage] = []
    last_line = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or DIRECTIVES.match(token.string):
            continue
        line, text = token.start[0], token.string.lstrip("#").strip()
        stands_alone = token.line.lstrip().startswith("#")
        if merged and stands_alone and line == last_line + 1:
            merged[-1] = merged[-1]._replace(text=f"{merged[-1].text}\n{text}")
        else:
            merged.append(Passage(line, "comment", text))
        # a comment after code never continues on the next line
        last_line = line if stands_alone else -1
    return merged


def _paragraphs(passage: Passage) -> Iterator[tuple[int, str]]:
    lines = passage.text.split("\n")
    indented = [line for line in lines[1:] if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in indented), default=0)
    start, words = 0, list[str]()
    for offset, line in enumerate([*lines, ""]):
        is_block = offset > 0 and len(line) - len(line.lstrip()) > margin and not words
        if line.strip() and not is_block:
            if not words:
                start = offset
            words.append(line.strip())
        elif words:
            yield passage.line + start, " ".join(words)
            words = []
