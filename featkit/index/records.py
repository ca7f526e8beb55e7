"""The records that an index takes and returns: items, hits, reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featkit.errors import InputError
from featkit.index.meaning import Meaning

Value = str | int | float  # and bool, which is an int
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1  # of SQLite


class NoSuchItem(InputError):
    """The index has no item with this id or key, or no longer has it."""

    def __init__(self, index: Path, item: int | str) -> None:
        self.index, self.item = index, item
        super().__init__(f"{index} has no item {item!r}.")


@dataclass(frozen=True, kw_only=True)
class Item:
    """An image of the index.

    Width and height are those of the upright original in pixels, or None if unknown. added: when it
    came into the index, in UTC as ISO 8601; None if that was before featkit recorded it.
    """

    id: int
    key: str
    source: str
    width: int | None
    height: int | None
    metadata: dict[str, Value]
    added: str | None = None


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """Everything that is stored about an image except its vector. added: now by default."""

    key: str
    source: str = ""
    width: int | None = None
    height: int | None = None
    thumbnail: bytes | None = None
    metadata: Mapping[str, Value | None] = field(default_factory=dict)
    added: str | None = None


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An item that a search returned.

    score: its cosine similarity to the query. meaning: whether such a score is that of a copy, of
    something similar, or of something unrelated; None if the index is not calibrated.
    """

    id: int
    key: str
    score: float
    width: int | None
    height: int | None
    metadata: dict[str, Value]
    meaning: Meaning | None = None

    @classmethod
    def of(cls, item: Item, score: float, meaning: Meaning | None = None) -> Hit:
        """Return the hit for an item."""
        return cls(
            id=item.id,
            key=item.key,
            score=score,
            width=item.width,
            height=item.height,
            metadata=dict(item.metadata),
            meaning=meaning,
        )


@dataclass(frozen=True, kw_only=True)
class KnownFile:
    """The record that `featkit sync` keeps of one image of a folder.

    It has the state of its file, a digest of its bytes, and why it has no item, if so. size and
    mtime_ns are None if they do not show whether the file is the same. digest: BLAKE2b of 16 bytes,
    or None if the bytes could not be read. item: the id of its item.
    """

    size: int | None
    mtime_ns: int | None
    digest: bytes | None
    error: str | None = None
    item: int | None = None


@dataclass(frozen=True, kw_only=True)
class AddReport:
    """Counts of what happened to the rows of an embeddings folder.

    num_replaced are included in num_added; num_unchanged are not. num_kept are included in
    num_without_embedding: the index still holds them from a time when their files were readable.
    """

    num_added: int = 0
    num_replaced: int = 0
    num_unchanged: int = 0
    num_without_embedding: int = 0
    num_kept: int = 0

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(
            **{name: value + getattr(other, name) for name, value in vars(self).items()}
        )


def same_item(old: Item, new: NewItem) -> bool:
    """Return whether a stored item has the source, size and metadata of a new one."""
    metadata = {name: value for name, value in new.metadata.items() if value is not None}
    return (old.source, old.width, old.height) == (new.source, new.width, new.height) and (
        same_metadata(old.metadata, metadata)
    )


def same_metadata(first: Mapping[str, Value], second: Mapping[str, Value]) -> bool:
    """Return whether the fields and values are equal, NaN included."""
    # NaN != NaN, but both have the same repr
    return first == second or repr(sorted(first.items())) == repr(sorted(second.items()))


def in_json(value: Value) -> Value:
    """Return a metadata value as JSON can hold it.

    JSON has no numbers for NaN and infinity; they become the text that JavaScript prints.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
