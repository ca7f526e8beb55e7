"""What the yardsticks share: how many images, and how their figures are printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.cli.console import print_table, stdout
from featkit.cli.selecting import SelectionFlags, note_passed_over, selection_of
from featkit.errors import InputError

if TYPE_CHECKING:
    from featkit.sources import Source


def open_images(
    spec: Path,
    *,
    limit: int | None = None,
    flags: SelectionFlags | None = None,
    check_column: bool = True,
) -> Source:
    """A source, or so many of its images, spread evenly."""
    from featkit.sources import open_source, thinned

    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; it has to be 1 or more.")
    source = open_source(spec, selection=selection_of(flags), check_column=check_column)
    note_passed_over(source)
    return source if limit is None else thinned(source, limit)


def open_two(
    first: Path, second: Path, *, limit: int | None = None, flags: SelectionFlags | None = None
) -> tuple[Source, Source]:
    """Two sources, of which one alone may have the column that is chosen."""
    from featkit.sources.opening import refuse_unused_column

    sources = [
        open_images(spec, limit=limit, flags=flags, check_column=False) for spec in (first, second)
    ]
    refuse_unused_column(selection_of(flags), *sources)
    return sources[0], sources[1]


def print_failures(failures: Sequence[tuple[str, str]]) -> None:
    """The first of the images that were left out, and why."""
    from featkit.embeddings import SHOWN_FAILURES

    if failures:
        print_table("Left out", ("image", "why"), failures[:SHOWN_FAILURES])
    if len(failures) > SHOWN_FAILURES:
        stdout().print(f"... and {len(failures) - SHOWN_FAILURES:,} more.")


def figure(value: float) -> str:
    """A share, as all tables show it."""
    return f"{value:.3f}"


def interval(bounds: tuple[float, float]) -> str:
    """Both ends of an interval."""
    return f"{figure(bounds[0])} – {figure(bounds[1])}"


def labels_from(columns: tuple[str, str]) -> str:
    """Which columns of a training part and of a test part labels came from."""
    return f"the column {columns[0]}" + (
        f", of the test images {columns[1]}" if columns[1] != columns[0] else ""
    )


def say(*lines: str) -> None:
    """Print lines under a table."""
    for line in lines:
        stdout().print(line)
