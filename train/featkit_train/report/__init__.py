"""Write the report of a run or of a course, report.html, from the folder's files, without torch."""

from __future__ import annotations

from pathlib import Path

from featkit_train.report.generations import write_generations_report
from featkit_train.report.page import write_run_report
from featkit_train.watching.standing import STANDING_FILE

__all__ = ["write_report"]


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html for a run or a course, and return its path. InputError for any
    other folder."""
    return (
        write_generations_report(folder)
        if (folder / STANDING_FILE).is_file()
        else write_run_report(folder)
    )
