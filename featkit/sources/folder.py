"""Images as files: a folder with everything below it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from featkit.errors import InputError
from featkit.images import ImageLimits, printable, read_file
from featkit.sources.base import Metadata
from featkit.sources.keys import key_of
from featkit.sources.selection import skipped_in_words
from featkit.sources.walk import FolderList


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
        """failed: the error sentence of each of `paths` that cannot be read, such as a folder
        without permission."""
        self.name, self.root, self.limits = printable(name), root, limits
        self.skipped: Mapping[str, int] = dict(skipped or {})
        self._paths = paths
        self._failed = dict(failed or {})

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, item: int, /) -> str:
        """Return the path below the root, with `/`."""
        return key_of(self._paths[item])

    def older_key(self, item: int) -> str:
        """Return the key that an earlier version gave the item."""
        return printable(self._paths[item].replace(os.sep, "/"))

    def read(self, item: int, /) -> bytes:
        """Return the file's bytes."""
        self._refuse_failed(item)
        return read_file(self.file(item), limits=self.limits)

    def metadata(self, item: int, /) -> Metadata:
        """Return the path of the image's folder as `folder`, unless that is the root. InputError
        for an item that cannot be read."""
        self._refuse_failed(item)
        parent = self.key(item).rpartition("/")[0]
        return {"folder": parent} if parent else {}

    def file(self, item: int, /) -> Path:
        """Return the image's own file."""
        return self.root / self._paths[item]

    def _refuse_failed(self, item: int) -> None:
        if (sentence := self._failed.get(self._paths[item])) is not None:
            raise InputError(sentence)


def files_of(root: Path, listing: FolderList, *, limits: ImageLimits) -> FileSource:
    """Return the images below `root`, sorted by key. A folder that cannot be listed is an item
    `folder/` that cannot be read."""
    paths = sorted(
        [*listing.paths, *listing.failed], key=lambda path: path.encode("utf-8", "surrogateescape")
    )
    return FileSource(
        str(root), root, paths, limits=limits, skipped=listing.skipped, failed=listing.failed
    )


def nothing_found(name: str, listing: FolderList) -> str:
    """Return the error sentence for a folder without images."""
    if listing.failed:
        return next(iter(listing.failed.values()))
    passed_over = skipped_in_words(listing.skipped)
    return f"{name} holds no images" + (f". {passed_over}" if passed_over else ": it is empty.")
