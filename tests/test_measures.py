"""The measures of a package of one file."""

from __future__ import annotations

import ast
from pathlib import Path
from textwrap import dedent

import pytest

from tests.measures import ROWS, Package, draw_sentences, percentiles, private_reaches, read_package

SOURCE = dedent('''
    """Boxes and what is in them."""


    class Box:
        """A box of things."""

        def put(self, thing: int, *, at: int = 0) -> int:
            """Put a thing into the box."""
            # counted from the left
            if thing and at:
                return 1

            return 0

        def look(self, a, b, c, d, e, f):
            return a
''').lstrip()


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A package of one module, and one test of another module."""
    for name, text in {"box/box.py": SOURCE, "tests/test_lid.py": "def test_lid(): pass\n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text, encoding="utf-8")
    return read_package(tmp_path, "box", ["tests"])


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ("functions", "2"),
        ("  lines of code, p50 / p90 / max", "2 / 4 / 4"),
        ("  lines with docstring, p50 / p90 / max", "2 / 7 / 7"),
        ("  parameters, p90 / max", "6 / 6"),
        ("  with more than 5 / 8 parameters", "1 / 0"),
        ("  with more than 4 by position", "1"),
        ("  typed", "50.0%"),
        ("  complexity, p50 / p90 / p99 / max", "1 / 3 / 3 / 3"),
        ("lines", "16"),
        ("  with a comment", "6.2%"),
        ("  of docstrings", "18.8%"),
        ("public names with a docstring", "75.0%"),
        ("  length of name, median / max", "8 / 8"),
        ("modules without a test at their path", "1 of 1"),
        ("lines of tests : of source", "0.06"),
    ],
)
def test_a_row_counts_what_it_names(package: Package, row: str, value: str) -> None:
    assert ROWS[row](package) == value


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("module._machine()", True),
        ("from a import _b", True),
        ("patch.setattr(module, '_x', 1)", True),
        ("self._x = 1", False),
        ("row._replace(a=1)", False),
        ("_helper()", False),
    ],
)
def test_private_reaches_are_into_other_code(line: str, is_one: bool) -> None:
    assert bool(private_reaches(ast.parse(line))) is is_one


def test_percentiles_are_values_that_occur() -> None:
    assert percentiles(range(1, 101), 50, 90, 100) == "51 / 90 / 100"


@pytest.mark.usefixtures("package")
def test_drawn_sentences_depend_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (
        draw_sentences([tmp_path / "box"], count=2, seed=seed) for seed in (1, 1, 2)
    )

    assert first == again != other
    assert all(":" in sentence for sentence in first)
