"""Helpers of the evaluation commands: open their images, and print their results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.cli.console import print_table, stdout
from featkit.cli.selecting import SelectionFlags, note_passed_over, selection_of
from featkit.errors import InputError
from featkit.wording import counted

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
    from featkit.sources import open_source

    refuse_none("--limit", limit)
    source = open_source(spec, selection=selection_of(flags), check_column=check_column)
    note_passed_over(source)
    return limited(source, limit)


def open_two(
    first: Path, second: Path, *, limit: int | None = None, flags: SelectionFlags | None = None
) -> tuple[Source, Source]:
    """Open two sources. The chosen column must exist in at least one of them."""
    sources = open_several((first, second), limit=limit, flags=flags)
    return sources[0], sources[1]


def open_several(
    specs: Sequence[Path], *, limit: int | None = None, flags: SelectionFlags | None = None
) -> list[Source]:
    """Open sources. The chosen column must exist in at least one of them."""
    from featkit.sources.opening import refuse_unused_column

    sources = [open_images(spec, limit=limit, flags=flags, check_column=False) for spec in specs]
    if sources:
        refuse_unused_column(selection_of(flags), *sources)
    return sources


def limited(source: Source, limit: int | None) -> Source:
    """Return at most `limit` images of a source, spread evenly; all for None."""
    from featkit.sources import thinned

    refuse_none("--limit", limit)
    return source if limit is None else thinned(source, limit)


def last_of(source: Source, last: int | None) -> Source:
    """Return at most `last` images from the end of a source; all for None."""
    from featkit.sources import subset

    refuse_none("--last", last)
    if last is None:
        return source
    return subset(source, range(max(0, len(source) - last), len(source)))


def refuse_none(option: str, count: int | None) -> None:
    """Raise InputError if a number of images is given and is not positive."""
    if count is not None and count < 1:
        raise InputError(f"{option} is {count}; it has to be 1 or more.")


def print_failures(
    failures: Sequence[tuple[str, str]], sources: Sequence[str] | None = None
) -> None:
    """Print the first of the images that were left out, with the reason for each.

    sources: the name of the source of each, if there are several.
    """
    from featkit.embeddings import SHOWN_FAILURES

    rows: list[tuple[str, ...]] = list(failures[:SHOWN_FAILURES])
    columns: tuple[str, ...] = ("image", "why")
    if sources is not None:
        columns = ("source", *columns)
        rows = [(source, *row) for source, row in zip(sources, rows, strict=False)]
    if rows:
        print_table("Left out", columns, rows)
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


def near_copies(count: int) -> str:
    """Return a warning about test images that are copies of training images."""
    return (
        f"{counted(count, 'test image')} can be found among the training images, in another size at"
        " most, so the figures are too good; list such images with `featkit duplicates --against`."
    )


def say(*lines: str) -> None:
    """Print lines under a table."""
    for line in lines:
        stdout().print(line)
