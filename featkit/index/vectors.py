"""The vectors file: rows of float32, append-only, the row number is the item's id.

What is committed is said by the catalogue alone: rows from its count on are what a writer has not committed, or left
when it died. Readers never map them; the next writer cuts them off.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np

from featkit.atomic import explain_os_errors
from featkit.errors import EnvironmentProblem, InputError

FLOAT32 = np.dtype("<f4")


def map_vectors(path: Path, *, num_rows: int, width: int) -> np.ndarray:
    """The first `num_rows` rows as a read-only memory map (num_rows, width) float32.

    InputError when the file is missing or holds fewer rows than that; EnvironmentProblem when it cannot be read.
    """
    _check_length(path, num_rows=num_rows, width=width)
    if num_rows == 0:
        return np.zeros((0, width), np.float32)  # nothing can be mapped
    try:
        return np.asarray(np.memmap(path, FLOAT32, "r", shape=(num_rows, width)))
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be read: {error.strerror}.") from error


class VectorWriter:
    """Appends rows. What is past `num_rows` at the opening is cut off. InputError when committed rows are missing."""

    def __init__(self, path: Path, *, num_rows: int, width: int) -> None:
        _check_length(path, num_rows=num_rows, width=width)
        self.path, self.width = path, width
        with explain_os_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.cut(num_rows)

    def write(self, start: int, vectors: np.ndarray) -> None:
        """Write (n, width) rows from row `start` on and flush them to the disk."""
        rest = np.ascontiguousarray(vectors, FLOAT32).reshape(-1).view(np.uint8).data
        place = start * self.width * FLOAT32.itemsize
        with explain_os_errors(self.path):
            while rest:
                written = os.pwrite(self._descriptor, rest, place)
                if written == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest, place = rest[written:], place + written
            os.fsync(self._descriptor)

    def cut(self, num_rows: int) -> None:
        """Remove the rows from `num_rows` on, if there are any."""
        length = num_rows * self.width * FLOAT32.itemsize
        with explain_os_errors(self.path):
            if os.fstat(self._descriptor).st_size > length:
                os.ftruncate(self._descriptor, length)

    def close(self) -> None:
        """Does nothing the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _check_length(path: Path, *, num_rows: int, width: int) -> None:
    try:
        length = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{path} is missing; restore it from a copy, or index the embeddings again.") from None
    wanted = num_rows * width * FLOAT32.itemsize
    if length < wanted:
        raise InputError(
            f"{path} is truncated: {length:,} bytes where {num_rows:,} vectors of {width} take {wanted:,}; "
            "restore it from a copy, or index the embeddings again."
        )
