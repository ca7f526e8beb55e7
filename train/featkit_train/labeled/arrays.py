"""Read back the arrays that a course writes between its trainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featkit.errors import InputError


def read_array(path: Path, *, rows: int | None = None, mapped: bool = False) -> np.ndarray:
    """Read, or map into memory, the float32 array of an .npy file.

    InputError, naming the file, if it is damaged or belongs to another run.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged. Remove it; --resume computes it again.") from error
    if array.dtype != np.float32 or (rows is not None and len(array) != rows):
        raise InputError(f"{path} belongs to another run. Remove it; --resume computes it again.")
    return array
