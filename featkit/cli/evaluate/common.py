"""Helpers of the evaluation commands: open their images, and print their results."""

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
    """Open a source, or `limit` of its images, spread evenly."""
    from featkit.sources import open_source, thinned

    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; it has to be 1 or more.")
    source = open_source(spec, selection=selection_of(flags), check_column=check_column)
    note_passed_over(source)
    return source if limit is None else thinned(source, limit)


def open_two(
    first: Path, second: Path, *, limit: int | None = None, flags: SelectionFlags | None = None
) -> tuple[Source, Source]:
    """Open two sources. The chosen column must exist in at least one of them."""
    from featkit.sources.opening import refuse_unused_column

    sources = [
        open_images(spec, limit=limit, flags=flags, check_column=False) for spec in (first, second)
    ]
    refuse_unused_column(selection_of(flags), *sources)
    return sources[0], sources[1]


def print_failures(failures: Sequence[tuple[str, str]]) -> None:
    """Print the first of the images that were left out, with the reason for each."""
    from featkit.embeddings import SHOWN_FAILURES

    if failures:
        print_table("Left out", ("image", "why"), failures[:SHOWN_FAILURES])
    if len(failures) > SHOWN_FAILURES:
        stdout().print(f"... and {len(failures) - SHOWN_FAILURES:,} more.")


def figure(value: float) -> str:
    """Return a fraction as text, as in all tables."""
    return f"{value:.3f}"


def interval(bounds: tuple[float, float]) -> str:
    """Return an interval as text."""
    return f"{figure(bounds[0])} – {figure(bounds[1])}"


def labels_from(columns: tuple[str, str]) -> str:
    """Return the label columns of the training and the test images as text."""
    return f"the column {columns[0]}" + (
        f", and {columns[1]} for the test images" if columns[1] != columns[0] else ""
    )


def note_if(count: int, note: str) -> list[str]:
    """Return the note as a list if the count is not 0, else an empty list."""
    return [note] if count else []


def say(*lines: str) -> None:
    """Print lines under a table."""
    for line in lines:
        stdout().print(line)
