"""What every command prints with: tables and notes on stdout, progress on stderr, JSON for
machines."""

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
WHOLE_LINE = 1000  # columns; no row is longer


def print_json(value: object) -> None:
    """Print a value as one line of JSON, with escapes where stdout could not show its characters or
    they are no text."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)


class _ResultConsole(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which knows that a reader like `head` has had enough; rich
        would end with 1."""
        raise


def stdout() -> Console:
    """The console for results. Made anew, so that a redirected sys.stdout is the one written to.
    Brackets are just text."""
    return _ResultConsole(file=sys.stdout, highlight=False, soft_wrap=True, markup=False)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    whole_lines: bool = False,
) -> None:
    """Print rows under columns; numbers (int, float) to the right, everything as str() without
    control characters.

    whole_lines: a row is one line, however long; else cells are folded to the terminal's width.
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
        console.width = WHOLE_LINE  # of what is laid out; a terminal wraps what it cannot show
    console.print(table)


def shortened(text: str) -> str:
    """Text that would fill the screen, such as the longest paths there are, without its middle."""
    return (
        text
        if len(text) <= LONGEST_CELL
        else f"{text[: LONGEST_CELL // 2]} … {text[-LONGEST_CELL // 2 :]}"
    )


def _harmless(text: str) -> str:
    """Names come out of other people's archives: nothing in them may move the cursor or color the
    terminal."""
    return "".join(character if character.isprintable() else "�" for character in on_one_line(text))


@contextmanager
def step_reporter(*, quiet: bool = False) -> Iterator[Callable[[str], None] | None]:
    """Yield a listener for the steps of long work, to be called with the name of each step.

    It shows a spinner on a terminal and plain lines elsewhere. With quiet=True it is None, so the
    work also shows no progress of its own, such as that of a download.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with Console(stderr=True).status("starting") as status:
            yield lambda step: status.update(f"{step} ...")
    else:
        yield lambda step: print(f"{step} ...", file=sys.stderr, flush=True)


class ProgressReporter:
    """Progress of long work on stderr: a bar with rate and time left on a terminal, a plain line
    every 5 s elsewhere.

    Used as a context manager and called with the counts so far: `report(done, failed)`. Nothing
    with quiet=True.
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
        """Say that `done` of the total are finished, `failed` of them without a result."""
        if self.quiet:
            return
        now = time.monotonic()
        if self._first_done is None:
            self._first_done = done  # what an earlier run left done is no work of this one
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
        """Print a line above the bar, or by itself where there is none."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            self._last_line = time.monotonic()  # it has shown that the work goes on
            print(text, file=sys.stderr, flush=True)
