"""Images as files: a folder with all below it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from featkit.errors import InputError
from featkit.images import ImageLimits, printable, read_file
from featkit.sources.base import Metadata
from featkit.sources.keys import key_of
from featkit.sources.selection import skipped_in_words
from featkit.sources.walk import Listing


class FileSource:
    """Files by path; the key of each is its path below `root`."""

    def __init__(
        self,
        name: str,
        root: Path,
        paths: list[str],
        *,
        limits: ImageLimits,
        skipped: Mapping[str, int] | None = None,
        failed: Mapping[str, str] | None = None,
    ) -> None:
        """failed: of `paths`, those that cannot be read, such as a closed folder, each with a
        sentence that says why."""
        self.name, self.root, self.limits = printable(name), root, limits
        self.skipped: Mapping[str, int] = dict(skipped or {})
        self._paths = paths
        self._failed = dict(failed or {})

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, number: int) -> str:
        """The path below the root, with `/`."""
        return key_of(self._paths[number])

    def older_key(self, number: int) -> str:
        """The key by which an earlier version knew the item."""
        return printable(self._paths[number].replace(os.sep, "/"))

    def read(self, number: int) -> bytes:
        """The file's bytes."""
        if (sentence := self._failed.get(self._paths[number])) is not None:
            raise InputError(sentence)
        return read_file(self.file(number), limits=self.limits)

    def metadata(self, number: int) -> Metadata:
        """The folder it lies in as `folder`, where it lies in one below the root. InputError for
        what cannot be read."""
        if (sentence := self._failed.get(self._paths[number])) is not None:
            raise InputError(sentence)
        parent = self.key(number).rpartition("/")[0]
        return {"folder": parent} if parent else {}

    def file(self, number: int, /) -> Path:
        """The image's own file."""
        return self.root / self._paths[number]


def files_of(root: Path, listing: Listing, *, limits: ImageLimits) -> FileSource:
    """The images below `root`, sorted by key; a folder that cannot be listed is an item `folder/`
    that cannot be read."""
    paths = sorted(
        [*listing.paths, *listing.failed], key=lambda path: path.encode("utf-8", "surrogateescape")
    )
    return FileSource(
        str(root), root, paths, limits=limits, skipped=listing.skipped, failed=listing.failed
    )


def nothing_found(name: str, listing: Listing) -> str:
    """Return the sentence that refuses a folder without images."""
    if listing.failed:
        return next(iter(listing.failed.values()))
    passed_over = skipped_in_words(listing.skipped)
    return f"{name} holds no images" + (f". {passed_over}" if passed_over else ": it is empty.")
