"""Items that cannot be read but are reported: a damaged shard, or a folder without permission."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from featkit.errors import InputError
from featkit.images import printable
from featkit.sources.base import Metadata


class NoImages(InputError):
    """An intact container has no images: an error if it is the only one, skipped among others."""


class FailedItems:
    """A source whose items cannot be read: each becomes a row with its error.

    failures: the error sentence of each key, in the order of the items. path: the file or folder
    that the items stand for; `name` by default.

    Example:
        FailedItems("photos", {"2023/": "photos/2023 cannot be opened: Permission denied."})
    """

    def __init__(self, name: str, failures: Mapping[str, str], *, path: Path | None = None) -> None:
        self.name = name
        self._path = Path(name) if path is None else path
        self._keys = [printable(key) for key in failures]
        self._sentences = [printable(sentence) for sentence in failures.values()]

    @property
    def skipped(self) -> Mapping[str, int]:
        """Always empty: a failure is an item."""
        return {}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, item: int, /) -> str:
        """Return the key that was given."""
        return self._keys[item]

    def read(self, item: int, /) -> bytes:
        """Raise InputError with the sentence that was given."""
        raise InputError(self._sentences[item])

    def metadata(self, _item: int, /) -> Metadata:
        """Return an empty mapping."""
        return {}

    def file(self, _item: int, /) -> Path:
        """Return the file or folder that the item stands for."""
        return self._path
