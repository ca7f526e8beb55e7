"""The images that a source holds now, and the state of their files."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from featkit.digests import content_digest
from featkit.errors import InputError
from featkit.sources import Source
from featkit.stamps import stamp_of

# A file that was modified this shortly before it was looked at may be modified again with the same
# size and time, so its time proves nothing. FAT stores times in steps of 2 s.
SETTLING_NS = 2 * 10**9


@dataclass(frozen=True)
class FileState:
    """The size and modification time of a file; None if the file cannot be looked at.

    is_settled: whether equal values prove that the bytes are the same.
    """

    size: int | None
    mtime_ns: int | None
    is_settled: bool

    @property
    def recorded(self) -> tuple[int | None, int | None]:
        """Return size and time as they are recorded: without a time that proves nothing."""
        return self.size, self.mtime_ns if self.is_settled else None


class Listing:
    """The items of a source by key, each with the state of the file that holds it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.items = {source.key(item): item for item in range(len(source))}
        state_of = lru_cache(maxsize=4096)(file_state)
        self.files = [source.file(item) for item in range(len(source))]
        self.states = [state_of(file) for file in self.files]

    @cached_property
    def _num_items_of(self) -> Counter[Path]:
        return Counter(self.files)

    def is_contained(self, item: int) -> bool:
        """Return whether an item shares its file with others, as in a tar archive."""
        return self._num_items_of[self.files[item]] > 1

    def digest(self, item: int) -> bytes | None:
        """Return the digest of an item's bytes, or None if they cannot be read."""
        try:
            return content_digest(self.source.read(item))
        except InputError:
            return None

    def is_missing(self, item: int) -> bool:
        """Return whether an item's file does not exist; False if that cannot be known."""
        try:
            return not self.files[item].exists()
        except OSError:
            return False

    def hidden_by_failures(self, keys: Collection[str]) -> set[str]:
        """Return those of the keys that lie below a folder or archive that cannot be read now.

        They are not listed, but nobody has deleted them.
        """
        failing: dict[str, bool] = {}

        def fails(key: str) -> bool:
            if key not in failing:
                item = self.items.get(key)
                failing[key] = item is not None and self.digest(item) is None
            return failing[key]

        return {
            key
            for key in keys
            if any(
                fails(key[:end]) or fails(key[: end + 1])  # an archive, or a folder with its /
                for end, letter in enumerate(key)
                if letter == "/"
            )
        }


def file_state(file: Path) -> FileState:
    """Return the state of a file."""
    now_ns = time.time_ns()
    size, mtime_ns, _ = stamp_of(file)
    return FileState(size, mtime_ns, mtime_ns is not None and mtime_ns < now_ns - SETTLING_NS)
