"""The Python API: autodoc of the names that a module exports, from docstrings in plain text."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

# Characters that reStructuredText would read as markup.
MARKUP = re.compile(r"([\\*|_])")


def module_page(name: str, *names: str) -> str:
    """autodoc directives for `names` of a module, by default all that `__all__` lists."""
    module = import_module(name)
    lines = []
    for each in names or module.__all__:
        thing = getattr(module, each)
        if inspect.isclass(thing):
            lines += [f".. autoclass:: {name}.{each}", "   :members:", "   :undoc-members:", ""]
        elif callable(thing):
            lines += [f".. autofunction:: {name}.{each}", ""]
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```"


def plain_docstring(
    _app: object, _kind: str, _name: str, _thing: object, _options: object, lines: list[str]
) -> None:
    """autodoc-process-docstring: featkit's docstrings are plain text, so escape what Sphinx would read as markup.

    Indented blocks become literal blocks, and single backticks stay code.
    """
    converted: list[str] = []
    literal = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not literal:
            converted += ["::", ""]
        if literal and not indented and line.strip():
            converted.append("")
        literal = indented or (literal and not line.strip())
        converted.append(line if literal else _escaped(line))
    lines[:] = converted


def _escaped(line: str) -> str:
    """A line of prose with markup escaped, except within backticks."""
    pieces = line.split("`")
    return "`".join(
        MARKUP.sub(r"\\\1", piece) if i % 2 == 0 else piece for i, piece in enumerate(pieces)
    )
