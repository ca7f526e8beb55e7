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
    """Plain text as Markdown.

    Only backticks are markup in it. Options become code, and numbers of papers links.
    """
    pieces = []
    for place, piece in enumerate(text.split("`")):
        pieces.append(f"`{piece}`" if place % 2 else _linked(_options(_escaped(piece))))
    return "".join(pieces)


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_<>\[\]#])", r"\\\1", text)


def _options(text: str) -> str:
    return re.sub(r"(?<![\w-])(--?[a-z][\w-]*)", r"`\1`", text)


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
