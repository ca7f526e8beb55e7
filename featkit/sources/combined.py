"""Several sources as one, and some items of a source."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from featkit.errors import InputError
from featkit.sources.base import NOTHING_SKIPPED, Metadata, Source, merge_skipped
from featkit.sources.locality import Locality, joined, locality_of
from featkit.sources.rows import Columns, columns_of
from featkit.sources.selection import Selection
from featkit.wording import counted


class Concatenation:
    """Several sources as one, in the order given."""

    def __init__(
        self, name: str, parts: Sequence[Source], *, skipped: Mapping[str, int] = NOTHING_SKIPPED
    ) -> None:
        """skipped: what was skipped when the parts were chosen."""
        self.name, self._parts = name, [part for part in parts if len(part)]
        self._skipped = merge_skipped([skipped, *(part.skipped for part in parts)])
        self._ends = list(accumulate(len(part) for part in self._parts))

    @property
    def skipped(self) -> Mapping[str, int]:
        """The number of files skipped in all parts together, by reason."""
        return self._skipped

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, item: int, /) -> str:
        """Return the part's own key, which begins with the name of its file."""
        part, i = self._locate(item)
        return part.key(i)

    def older_key(self, item: int) -> str:
        """Return the key that an earlier version gave the item."""
        part, i = self._locate(item)
        return str(getattr(part, "older_key", part.key)(i))

    def read(self, item: int, /) -> bytes:
        """Return the item's bytes from its part."""
        part, i = self._locate(item)
        return part.read(i)

    def metadata(self, item: int, /) -> Metadata:
        """Return the item's metadata from its part."""
        part, i = self._locate(item)
        return part.metadata(i)

    def file(self, item: int, /) -> Path:
        """Return the item's file from its part."""
        part, i = self._locate(item)
        return part.file(i)

    @property
    def columns(self) -> Sequence[Columns]:
        """The columns chosen in each table among the parts."""
        return [columns for part in self._parts for columns in columns_of(part)]

    def locality(self) -> Locality:
        """Return the locality of all parts together."""
        return joined(self._parts)

    def _locate(self, item: int) -> tuple[Source, int]:
        if not 0 <= item < len(self):
            raise IndexError(item)
        i = bisect_right(self._ends, item)
        return self._parts[i], item - (self._ends[i - 1] if i else 0)


class Subset:
    """Some items of a source, in the order given."""

    def __init__(
        self,
        source: Source,
        items: Sequence[int],
        *,
        skipped: Mapping[str, int] = NOTHING_SKIPPED,
    ) -> None:
        """skipped: what else was skipped when these items were chosen."""
        self.name, self._source, self._items = source.name, source, items
        self._skipped = dict(skipped)

    @property
    def skipped(self) -> Mapping[str, int]:
        """The number of files skipped in the whole source and when these items were chosen, by
        reason."""
        return merge_skipped([self._source.skipped, self._skipped])

    def __len__(self) -> int:
        return len(self._items)

    def key(self, item: int, /) -> str:
        """Return the item's key in the whole source."""
        return self._source.key(self._items[item])

    def older_key(self, item: int) -> str:
        """Return the key that an earlier version gave the item."""
        return str(getattr(self._source, "older_key", self._source.key)(self._items[item]))

    def read(self, item: int, /) -> bytes:
        """Return the item's bytes."""
        return self._source.read(self._items[item])

    def metadata(self, item: int, /) -> Metadata:
        """Return the item's metadata."""
        return self._source.metadata(self._items[item])

    def file(self, item: int, /) -> Path:
        """Return the item's file."""
        return self._source.file(self._items[item])

    @property
    def columns(self) -> Sequence[Columns]:
        """The columns chosen in the whole source."""
        return columns_of(self._source)

    def locality(self) -> Locality:
        """Return the locality of these items."""
        whole = locality_of(self._source)
        return whole._replace(group_of=whole.group_of[np.asarray(self._items, np.int64)])


def concatenate(sources: Sequence[Source]) -> Source:
    """Return several sources as one, in their order."""
    return (
        sources[0]
        if len(sources) == 1
        else Concatenation(", ".join(source.name for source in sources), sources)
    )


def subset(source: Source, items: Sequence[int]) -> Source:
    """Return only these items of a source."""
    return Subset(source, items)


def thinned(source: Source, count: int) -> Source:
    """Return at most `count` items, spread evenly over the source."""
    return source if count >= len(source) else subset(source, evenly(len(source), most=count))


def evenly(count: int, *, most: int) -> list[int]:
    """Return at most `most` of `range(count)`, spread evenly, since sources are often sorted by
    class."""
    num_taken = min(count, most)
    return [i * count // num_taken for i in range(num_taken)]


def select(source: Source, selection: Selection) -> Source:
    """Return the items whose keys pass `include` and `exclude`. InputError if none does."""
    selected = select_any(source, selection)
    if not len(selected):
        raise InputError(none_left(source.name, len(source)))
    return selected


def select_any(source: Source, selection: Selection) -> Source:
    """Return the items whose keys pass `include` and `exclude`; perhaps no item at all."""
    if not selection.include and not selection.exclude:
        return source
    reasons = [selection.skip_key(source.key(item)) for item in range(len(source))]
    kept = [item for item, reason in enumerate(reasons) if reason is None]
    return Subset(source, kept, skipped=Counter(reason for reason in reasons if reason is not None))


def none_left(name: str, count: int) -> str:
    """Return the sentence for a selection that leaves nothing."""
    return f"{name} has {counted(count, 'image')}, but --include and --exclude leave none of them."
