"""Options that select files of a source, and the note on what was skipped."""

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
    """Which files of a source to read."""

    exclude: Patterns = None
    """Skip files and folders whose key matches this pattern, as in .gitignore: --exclude '*.png'
    --exclude 'raw/**'. Can be repeated."""

    include: Patterns = None
    """Only read files whose key matches one of these patterns. A pattern that names a hidden or
    system folder, or another suffix, includes it: --include '@eaDir/**'. Can be repeated."""

    follow_links: bool = False
    """Also read folders behind symbolic links, each once."""

    column: str | None = None
    """Read images from this column of Parquet files and data sets. The default is a column of
    {bytes, path} values, or else a binary column."""


def selection_of(flags: SelectionFlags | None, *, own: Sequence[Path] = ()) -> Selection:
    """Return the options as the library's Selection. own: folders that the command itself
    writes."""
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
    """Return notes on the column that was read, if there was a choice, and on skipped files; None
    without any."""
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
    """Print the notes of `passed_over` on stderr, for commands whose stdout is a result."""
    if (line := passed_over(*sources)) is not None:
        print(line, file=sys.stderr)
