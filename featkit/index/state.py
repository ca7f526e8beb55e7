"""One committed state of an index, as a reader sees it, and whether the vectors file still belongs
to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from sqlite3 import Connection

import numpy as np

from featkit.errors import InputError
from featkit.index import tables
from featkit.index.tables import StateKey
from featkit.index.vectors import Rows, Signature, WitnessedRows

# Committed vectors whose checksums are compared when the files have changed: the first, the last
# and some between.
SAMPLE_SIZE = 32


@dataclass(frozen=True)
class State:
    """One committed state: N vectors of the file, and which of the N ids are live, (N,) bool.

    signature: of the vectors file when `sample`, checksums by id, was last found to be right.
    """

    key: StateKey
    rows: Rows
    live: np.ndarray
    signature: Signature
    sample: dict[int, int]

    def check_sample(self) -> None:
        """InputError unless the sample's vectors have their checksums: the file is another index's,
        or damaged."""
        rows = WitnessedRows(self.rows)
        rows.take(np.fromiter(self.sample, np.int64, len(self.sample)))
        self.check(rows.checksums, self.sample)

    def check(self, found: Mapping[int, int], committed: Mapping[int, int]) -> None:
        """InputError unless the checksums that were found are those that were committed, by id."""
        for item_id, checksum in committed.items():
            if found[item_id] != checksum:
                raise InputError(
                    f"{self.rows.file.path} does not belong to catalogue.sqlite or is damaged:"
                    f" vector {item_id} is not what was committed; restore both from one copy, or"
                    " index the embeddings again."
                )


def sample_checksums(connection: Connection, num_rows: int) -> dict[int, int]:
    """Some checksums by id: the first, the last and some between; of an index from before
    checksums, any that there are."""
    sample = tables.checksums(connection, spread(num_rows, SAMPLE_SIZE).tolist())
    return sample or tables.any_checksums(connection, limit=SAMPLE_SIZE)


def spread(num_rows: int, count: int) -> np.ndarray:
    """Up to `count` different ids below num_rows, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, num_rows - 1, min(count, num_rows)).round().astype(np.int64))
