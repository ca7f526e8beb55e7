"""Arrays that a course keeps between its trainings, read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featkit.errors import InputError


def read_array(path: Path, *, rows: int | None = None, mapped: bool = False) -> np.ndarray:
    """Read the float32 array of an .npy file, or map it. InputError, naming the file, when it is
    damaged or another run's."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged; remove it, and --resume makes it again.") from error
    if found.dtype != np.float32 or (rows is not None and len(found) != rows):
        raise InputError(
            f"{path} does not belong to this run; remove it, and --resume makes it again."
        )
    return found
