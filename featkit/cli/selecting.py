"""The flags that say which files of a source are wanted, and the line that says which were passed
over."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from featkit.sources import Source
    from featkit.sources.selection import Selection

Patterns = Annotated[list[str] | None, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SelectionFlags:
    """Which files of a source are wanted."""

    exclude: Patterns = None
    """Leave out files and folders by a pattern of their keys, as in .gitignore: --exclude '*.png'
    --exclude 'raw/**'. Repeat for more."""

    include: Patterns = None
    """Take only what one of these patterns matches. A pattern that names a hidden or system folder,
    or another suffix, takes it in: --include '@eaDir/**'. Repeat for more."""

    follow_links: bool = False
    """Also read folders that links point to, each once."""

    column: str | None = None
    """Read the images from this column of Parquet files and data sets; by default one of {bytes,
    path} values, before plain binary ones."""


def selection_of(flags: SelectionFlags | None, *, own: Sequence[Path] = ()) -> Selection:
    """Return the flags as the library takes them. own: the folders that the command writes to."""
    from featkit.sources.selection import Selection

    flags = flags or SelectionFlags()
    return Selection(
        include=tuple(flags.include or ()),
        exclude=tuple(flags.exclude or ()),
        follow_links=flags.follow_links,
        own=tuple(own),
        column=flags.column,
    )


def passed_over(*sources: Source) -> str | None:
    """Return the lines that say which column was read if there are others, and what was passed
    over; None if there are none."""
    from featkit.sources.base import merge_skipped
    from featkit.sources.rows import column_notes
    from featkit.sources.selection import skipped_in_words

    lines = list(dict.fromkeys(note for source in sources for note in column_notes(source)))
    if (
        skipped := skipped_in_words(merge_skipped(source.skipped for source in sources))
    ) is not None:
        lines.append(skipped)
    return "\n".join(lines) or None


def note_passed_over(*sources: Source) -> None:
    """Print those lines on stderr, for commands whose result is something else."""
    if (line := passed_over(*sources)) is not None:
        print(line, file=sys.stderr)
