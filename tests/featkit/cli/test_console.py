"""Promises of printing: no name disturbs a table, and progress is honest and can be silenced."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from featkit.cli.console import PLAIN_INTERVAL_S, ProgressReporter, print_table, stdout


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """The clock that progress is measured by."""
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(
            "featkit.cli.console.time", SimpleNamespace(monotonic=clock)
        )  # the module's own name, not everybody's clock
        yield clock


def test_a_table_puts_numbers_to_the_right_and_text_to_the_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table("Scores", ("n", "name", "score"), [(1, "a", 0.5), (12, "bcd", 0.25)])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["Scores", " n  name  score", " 1  a       0.5", "12  bcd    0.25"]


def test_a_table_without_rows_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Nothing", ("n", "name"), [])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "Nothing",
        "n  name",
    ]


def test_names_cannot_control_the_terminal_or_break_a_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(
        "T",
        ("name",),
        [
            ("\x1b[31mred",),
            ("two\nlines",),
            ("bell\a\rback\x9b",),
            ("[bold]b[/]",),
            ("\u202eright",),
        ],
    )
    out = capsys.readouterr().out
    names = [line.rstrip() for line in out.splitlines()[2:]]
    assert names == [
        r"\x1b[31mred",
        r"two\nlines",
        r"bell\x07\rback\x9b",
        "[bold]b[/]",
        r"\u202eright",
    ]


def test_a_long_name_is_folded_and_never_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    name = "/".join(f"folder{number}" for number in range(12)) + "/picture.jpg"
    print_table("T", ("image", "size"), [(name, 5)])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert "".join(row.split()[0] for row in rows) == name
    assert rows[0].split()[1] == "5"


def test_brackets_in_a_line_are_just_text(capsys: pytest.CaptureFixture[str]) -> None:
    stdout().print("holds [red]photos[/red] of 2024")
    assert capsys.readouterr().out == "holds [red]photos[/red] of 2024\n"


def test_a_reader_that_has_had_enough_ends_the_command_quietly(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "featkit", "inspect", str(model)],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_progress_without_terminal_is_a_line_every_5_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressReporter("embedding", total=1000) as report:
        for done in (0, 100, 200, 300, 400):
            report(done, done // 100)
            clock.now += PLAIN_INTERVAL_S / 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "embedding: 200 of 1,000 images, 40.0 images/s, 2 failed, 20 s left",
        "embedding: 400 of 1,000 images, 40.0 images/s, 4 failed, 15 s left",
    ]


def test_what_an_earlier_run_did_is_no_speed_of_this_one(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressReporter("embedding", total=1000) as report:
        report(900)
        clock.now += 10
        report(950)
    assert capsys.readouterr().err == "embedding: 950 of 1,000 images, 5.0 images/s, 10 s left\n"


def test_without_a_total_or_a_speed_nothing_is_foretold(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for total, said in (
        (None, "reading: 0 files, 0.0 files/s\n"),
        (10, "reading: 0 of 10 files, 0.0 files/s\n"),
    ):
        with ProgressReporter("reading", total=total, unit="files") as report:
            clock.now += PLAIN_INTERVAL_S
            report(0)
        assert capsys.readouterr().err == said


def test_a_quiet_reporter_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter("embedding", total=10, quiet=True) as report:
        clock.now += 100
        report(5, 1)
        report.line("a line")
    assert capsys.readouterr() == ("", "")


def test_a_line_of_its_own_delays_the_next_plain_line(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressReporter("training", total=10, unit="steps") as report:
        clock.now += PLAIN_INTERVAL_S - 1
        report.line("step 3: loss 2.0")
        clock.now += PLAIN_INTERVAL_S - 1
        report(4)
    assert capsys.readouterr().err == "step 3: loss 2.0\n"


def test_terminal_gets_a_transient_bar_and_keeps_its_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with ProgressReporter("embedding", total=10) as report:
        report(5, 2)
        report.line("a [line] above")
    shown = terminal.getvalue()
    assert "embedding" in shown
    assert "10/10" not in shown
    assert "5/10" in shown
    assert "2 failed" in shown
    assert "a [line] above" in shown
    assert "\x1b[2K" in shown  # the bar's line is cleared
