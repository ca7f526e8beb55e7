"""The vectors of an index: one append-only file of float32 rows, read by memory map.

Row `id` is the item's vector. The file may be longer than the catalogue says, by what a killed writer left; that tail is
not read, and is cut at the next open for writing.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from featkit.atomic import explain_os_errors
from featkit.errors import InputError

ITEM_BYTES = 4


class Vectors:
    """`vectors.f32` with rows of `width` numbers."""

    def __init__(self, path: Path, *, width: int) -> None:
        self.path, self.width = path, width

    def rows(self, num_rows: int) -> np.ndarray:
        """The first `num_rows` rows (num_rows, D) float32, mapped, read-only. InputError where the file is shorter."""
        if num_rows == 0:
            return np.zeros((0, self.width), np.float32)
        self.check_length(num_rows)
        return np.memmap(self.path, np.float32, "r", shape=(num_rows, self.width))

    def check_length(self, num_rows: int) -> None:
        """InputError where the file holds fewer rows than the catalogue promises."""
        wanted = num_rows * self.width * ITEM_BYTES
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < wanted:
            raise InputError(
                f"{self.path} has {size:,} bytes where the catalogue promises {wanted:,}; the index is damaged: "
                "restore it from a copy, or make it again with `featkit index`."
            )

    def append(self, vectors: np.ndarray, *, at_row: int) -> None:
        """Write (n, D) float32 rows from `at_row` on and flush them to the disk. EnvironmentProblem on a full disk."""
        data = np.ascontiguousarray(vectors, np.float32).tobytes()
        with explain_os_errors(self.path), self.path.open("r+b") as file:
            file.seek(at_row * self.width * ITEM_BYTES)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def cut(self, num_rows: int) -> None:
        """Remove what lies past the last committed row."""
        wanted = num_rows * self.width * ITEM_BYTES
        if self.path.stat().st_size > wanted:
            with explain_os_errors(self.path):
                os.truncate(self.path, wanted)
