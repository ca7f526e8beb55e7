"""The work file of a comparison: what was done so far, so that a stopped command continues.

    photos.index/duplicates/NAME.npz

NAME follows from the images that are compared and from the settings, so a changed index begins
again. The file is replaced as a whole now and then, and removed with the result. It is never
needed: a comparison whose work cannot be saved works without.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from featkit.atomic import replace_file
from featkit.errors import EnvironmentProblem

FOLDER = "duplicates"
SAVE_EVERY_S = 60.0
KEPT_S = 7 * 24 * 3600.0  # files of other comparisons


class Work:
    """The work file of one comparison. on_problem: called once, if it cannot be written."""

    def __init__(self, index: Path, name: str, *, on_problem: Callable[[str], None]) -> None:
        self._folder = index / FOLDER
        self._path = self._folder / f"{name}.npz"
        self._on_problem = on_problem
        self._is_writable = True
        self._began = self._saved = time.monotonic()

    def read(self) -> dict[str, np.ndarray]:
        """Return the arrays that were saved last; none if they cannot be read."""
        self._remove_old()
        try:
            with self._path.open("rb") as file, np.load(file) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return {}

    def save_if_due(self, arrays: Callable[[], dict[str, np.ndarray]]) -> None:
        """Save arrays if the last time was a minute ago."""
        if time.monotonic() > self._saved + SAVE_EVERY_S:
            self.save(arrays())

    def save_if_long(self, arrays: Callable[[], dict[str, np.ndarray]]) -> None:
        """Save arrays at the end, unless all the work took less than a minute."""
        if self._path.exists() or time.monotonic() > self._began + SAVE_EVERY_S:
            self.save(arrays())

    def save(self, arrays: dict[str, np.ndarray]) -> None:
        """Save arrays. They replace all that was saved before."""
        if self._is_writable:
            try:
                with replace_file(self._path) as temporary, temporary.open("wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
            except EnvironmentProblem as error:
                self._is_writable = False
                self._on_problem(f"a stopped command would begin again: {error}")
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Remove the file, and the folder if nothing else is in it."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._folder.rmdir()

    def _remove_old(self) -> None:
        """Remove what other comparisons left, if it is old, and temporary files of killed ones."""
        with suppress(OSError):
            for file in self._folder.iterdir():
                if file != self._path and time.time() > file.stat().st_mtime + KEPT_S:
                    file.unlink(missing_ok=True)
