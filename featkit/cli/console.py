"""Printing for all commands: tables and notes on stdout, progress on stderr, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from featkit.wording import on_one_line

PLAIN_INTERVAL_S = 5.0
LONGEST_CELL = 400  # characters
WHOLE_LINE = 1000  # columns; wider than any row


def print_json(value: object) -> None:
    """Print a value as one line of JSON, in ASCII if stdout cannot encode its characters."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)


class _ResultConsole(Console):
    def on_broken_pipe(self) -> None:
        """Re-raise BrokenPipeError: `main` ends with 0 when a reader like `head` stops; rich would
        exit with 1."""
        raise


def stdout() -> Console:
    """Return a console for results. Brackets are printed as they are, not as rich's markup.

    Each call creates a new one, so that it writes to the current sys.stdout, even if redirected.
    """
    return _ResultConsole(file=sys.stdout, highlight=False, soft_wrap=True, markup=False)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    whole_lines: bool = False,
) -> None:
    """Print a table of rows, converted by str() and without control characters. Columns of int or
    float are right-aligned.

    whole_lines: print each row on one line of any length, instead of folding cells to the
    terminal's width.
    """
    table = Table(
        title=_harmless(title),
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
        show_header=any(columns),
    )
    for position, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[position], int | float) for row in rows)
        justify: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(column, justify=justify, no_wrap=numeric or whole_lines, overflow="fold")
    for row in rows:
        table.add_row(
            *(Text(_harmless(str(cell) if whole_lines else shortened(str(cell)))) for cell in row)
        )
    console = stdout()
    if whole_lines:
        console.width = WHOLE_LINE  # for the layout; a terminal wraps long lines itself
    console.print(table)


def shortened(text: str) -> str:
    """Return text without its middle if it would fill the screen, like the longest paths."""
    return (
        text
        if len(text) <= LONGEST_CELL
        else f"{text[: LONGEST_CELL // 2]} … {text[-LONGEST_CELL // 2 :]}"
    )


def _harmless(text: str) -> str:
    """Replace control characters: names come from other people's archives, and must not move the
    cursor or color the terminal."""
    return "".join(character if character.isprintable() else "�" for character in on_one_line(text))


@contextmanager
def step_reporter(*, quiet: bool = False) -> Iterator[Callable[[str], None] | None]:
    """Yield a listener for the steps of long work, to be called with the name of each step.

    It shows a spinner on a terminal and plain lines elsewhere. With quiet=True, the listener is
    None, so the work also shows no progress of its own, such as that of a download.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with Console(stderr=True).status("starting") as status:
            yield lambda step: status.update(f"{step} ...")
    else:
        yield lambda step: print(f"{step} ...", file=sys.stderr, flush=True)


class ProgressReporter:
    """Show the progress of long work on stderr: a bar with rate and time left on a terminal, a
    plain line every 5 s elsewhere.

    Use it as a context manager and call it with the counts so far: `progress(done, failed)`. With
    quiet=True it shows nothing.
    """

    def __init__(
        self, label: str, *, total: int | None, unit: str = "images", quiet: bool = False
    ) -> None:
        self.label, self.total, self.unit, self.quiet = label, total, unit, quiet
        self._started = self._last_line = time.monotonic()
        self._first_done: int | None = None
        self._done = 0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self.label, total=self.total, rate="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, failed: int = 0) -> None:
        """Report that `done` items are finished, `failed` of them without a result."""
        if self.quiet:
            return
        now = time.monotonic()
        if self._first_done is None:
            self._first_done = done  # done by an earlier run, so it does not count for the rate
        self._done = done
        rate = (done - self._first_done) / max(now - self._started, 1e-9)
        speed = f"{rate:,.1f} {self.unit}/s" + (f", {failed:,} failed" if failed else "")
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=speed)
        elif now - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = now
            of_total = f" of {self.total:,}" if self.total is not None else ""
            left = (
                f", {(self.total - done) / rate:,.0f} s left"
                if self.total is not None and rate > 0
                else ""
            )
            print(
                f"{self.label}: {done:,}{of_total} {self.unit}, {speed}{left}",
                file=sys.stderr,
                flush=True,
            )

    def line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            self._last_line = time.monotonic()  # the line itself shows that work continues
            print(text, file=sys.stderr, flush=True)
