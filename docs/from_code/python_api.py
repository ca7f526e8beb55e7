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
    _app: object, _kind: str, _name: str, thing: object, _options: object, lines: list[str]
) -> None:
    """autodoc-process-docstring: turn a docstring of featkit, plain text, into reStructuredText.

    Indented blocks become literal blocks, a line `name: ...` about a parameter becomes a field, and
    what Sphinx would read as markup is escaped. Single backticks stay code.
    """
    parameters = _parameters(thing)
    converted: list[str] = []
    literal = field = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not literal:
            converted += ["::", ""]
        if literal and not indented and line.strip():
            converted.append("")
        literal = indented or (literal and not line.strip())
        name, colon, rest = line.partition(": ")
        if literal:
            converted.append(line)
        elif colon and name in parameters:
            converted += [] if field else [""]
            converted.append(f":param {name}: {_escaped(rest)}")
            field = True
        else:
            field = field and bool(line.strip())
            converted.append(("    " if field else "") + _escaped(line))
    lines[:] = converted


def _parameters(thing: object) -> set[str]:
    try:
        return set(inspect.signature(thing).parameters) if callable(thing) else set()
    except (TypeError, ValueError):  # a class without a signature, such as an exception's
        return set()


def _escaped(line: str) -> str:
    """A line of prose with markup escaped, except within backticks."""
    pieces = line.split("`")
    return "`".join(
        MARKUP.sub(r"\\\1", piece) if i % 2 == 0 else piece for i, piece in enumerate(pieces)
    )
