"""The page of a training run, or of several that belong together: report.html, made of a folder's
files without torch."""

from __future__ import annotations

from pathlib import Path

from featkit_train.report.generations import write_generations_report
from featkit_train.report.page import write_run_report
from featkit_train.watching.standing import STANDING_FILE

__all__ = ["write_report"]


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html anew and return its path: of a run, or of a course of them.
    InputError where it is neither."""
    return (
        write_generations_report(folder)
        if (folder / STANDING_FILE).is_file()
        else write_run_report(folder)
    )
