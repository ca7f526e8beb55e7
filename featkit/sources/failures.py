"""Items that cannot be read and are reported: an unreadable shard, a closed folder, a damaged
region of an archive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from featkit.errors import InputError
from featkit.images import printable
from featkit.sources.base import Metadata


class NoImages(InputError):
    """A container that is whole and holds no images: an error by itself, passed over among
    others."""


class FailedItems:
    """A source whose items only raise: each becomes a row with its error, and the items next to it
    are still read.

    failures: the error sentence of each key, in the order of the items. path: the file or folder
    that the items stand for; `name` by default.

    Example:
        FailedItems("photos", {"2023/": "photos/2023 cannot be opened: Permission denied. Allow it to be read."})
    """

    def __init__(self, name: str, failures: Mapping[str, str], *, path: Path | None = None) -> None:
        self.name = name
        self._path = Path(name) if path is None else path
        self._keys = [printable(key) for key in failures]
        self._sentences = [printable(sentence) for sentence in failures.values()]

    @property
    def skipped(self) -> Mapping[str, int]:
        """Nothing: what failed is an item."""
        return {}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, number: int) -> str:
        """The key that was given."""
        return self._keys[number]

    def read(self, number: int) -> bytes:
        """Raise InputError with the sentence that was given."""
        raise InputError(self._sentences[number])

    def metadata(self, number: int) -> Metadata:
        """Nothing is known of an item that cannot be read."""
        del number
        return {}

    def file(self, _number: int, /) -> Path:
        """The file or folder that the item stands for."""
        return self._path
