"""Pieces of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown, with newlines and pipes made safe."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    """Text as inline code."""
    return f"`{text}`"


def prose(text: str) -> str:
    """Text as Markdown: nothing in it is markup but backticks, in which it stays as it is."""
    outside, inside = text.split("`")[::2], text.split("`")[1::2]
    escaped = [re.sub(r"([\\*_<>\[\]#])", r"\\\1", each) for each in outside]
    with_options = [re.sub(r"(?<![\w-])(--?[a-z][\w-]*)", r"`\1`", each) for each in escaped]
    pieces = [with_options[0]]
    for quoted, plain in zip(inside, with_options[1:], strict=True):
        pieces += [f"`{quoted}`", plain]
    return "".join(pieces)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
