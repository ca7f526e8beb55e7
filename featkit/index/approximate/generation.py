"""The codes that were built of an index: what is recorded of them, and their files.

    approximate/<name>.faiss    the codes of n of the index's items
    approximate/<name>.ids      their ids, n little-endian int64, ascending

The record is a setting of the catalogue, so a transaction puts a generation in the place of the one
before. The files never change.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from featkit.errors import InputError
from featkit.index.approximate.codes import KINDS, Codes, Kind

SETTING = "generation"
FOLDER = "approximate"
INT64 = np.dtype("<i8")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a generation answers, compared with exact search on queries that have no codes.

    recall_at_1 and recall_at_10: shares of the true nearest that were found; `low` is the lower end
    of the 95 % interval of recall@10. p50_ms and p99_ms: milliseconds of a single query, in one
    thread. exact_ns: nanoseconds to score one of a few allowed rows exactly.
    """

    num_queries: int
    recall_at_1: float
    recall_at_10: float
    low: float
    p50_ms: float
    p99_ms: float
    queries_per_s: float
    exact_ns: float


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The record of built codes.

    until: the id of the first item that was added after they were begun. effort and num_candidates:
    how they are searched. target: the recall@10 that was asked for. built_on: cpu or gpu.
    """

    name: str
    kind_name: str
    num_items: int
    until: int
    ids_crc32: int
    num_bytes: int
    crc32: int
    effort: int
    num_candidates: int
    target: float
    built: str
    seconds: float
    measured: Measured
    built_on: str = "cpu"

    @property
    def kind(self) -> Kind:
        """The kind of codes that were built."""
        return KINDS[self.kind_name]

    @classmethod
    def from_json(cls, text: str) -> Generation:
        """Read what `to_json` wrote. InputError for anything else."""
        try:
            values = json.loads(text)
            record = cls(**{**values, "measured": Measured(**values["measured"])})
            KINDS[record.kind_name]  # of a later version if it is unknown
            return record
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                "The record of an approximate index cannot be read; update featkit, or run `featkit"
                " compact`."
            ) from error

    def to_json(self) -> str:
        """Return the record as the text of a setting."""
        return json.dumps(asdict(self))


def codes_path(index: Path, name: str) -> Path:
    """Return the path of a generation's codes."""
    return index / FOLDER / f"{name}.faiss"


def ids_path(index: Path, name: str) -> Path:
    """Return the path of a generation's ids."""
    return index / FOLDER / f"{name}.ids"


class OpenGeneration:
    """A generation whose files are open. InputError if they are missing or damaged."""

    def __init__(self, index: Path, record: Generation) -> None:
        self.record = record
        path = codes_path(index, record.name)
        ids = ids_path(index, record.name)
        try:
            data, num_bytes = ids.read_bytes(), path.stat().st_size
        except OSError as error:
            raise InputError(
                f"{ids.parent} is incomplete ({error.strerror}); run `featkit compact` to build it"
                " again."
            ) from error
        if (
            len(data) != record.num_items * INT64.itemsize
            or zlib.crc32(data) != record.ids_crc32
            or num_bytes != record.num_bytes
        ):
            raise InputError(
                f"{ids.parent} is damaged: it does not belong to catalogue.sqlite; run `featkit"
                " compact` to build it again."
            )
        self.ids: np.ndarray = np.frombuffer(data, INT64)
        self.codes = Codes.open(path)
        if len(self.codes) != len(self.ids):
            raise InputError(
                f"{path} is damaged: it has {len(self.codes):,} vectors instead of"
                f" {len(self.ids):,}; run `featkit compact` to build it again."
            )


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file, which may be larger than memory."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            value = zlib.crc32(block, value)
    return value
