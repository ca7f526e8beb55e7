"""Pictures as files: a folder with all below it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from featkit.errors import InputError
from featkit.images import ImageLimits, printable, read_file
from featkit.sources.base import PICTURE_SUFFIXES, Metadata, is_picture
from featkit.sources.keys import key_of

SYSTEM_FOLDERS = ("lost+found", "System Volume Information")  # closed to users, and no place for pictures


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
    ) -> None:
        self.name, self.root, self.limits = name, root, limits
        self.skipped: Mapping[str, int] = dict(skipped or {})
        self._paths = paths

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
        return read_file(self.file(number), limits=self.limits)

    def metadata(self, number: int) -> Metadata:
        """The folder it lies in as `folder`, where it lies in one below the root."""
        parent = self.key(number).rpartition("/")[0]
        return {"folder": parent} if parent else {}

    def file(self, number: int, /) -> Path:
        """The picture's own file."""
        return self.root / self._paths[number]


def open_folder(root: Path, *, limits: ImageLimits) -> FileSource:
    """All pictures below `root`, sorted by key; hidden files and folders are passed over, links to folders not followed.

    InputError when there are none, saying how many files were looked at, and for a folder below it that cannot be opened.
    """
    paths: list[str] = []
    looked_at = 0
    for folder, files in _walk(root):
        looked_at += len(files)
        paths += [str(folder / name) for name in files if is_picture(name)]
    if not paths:
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        raise InputError(f"{root} holds no pictures: none of its {looked_at:,} files ends in {suffixes}.")
    return FileSource(str(root), root, sorted(paths, key=lambda path: path.encode("utf-8", "surrogateescape")), limits=limits)


def first_picture(root: Path) -> str | None:
    """The path below `root` of a picture that `open_folder` would open; None where it would find none."""
    return next((str(folder / name) for folder, files in _walk(root) for name in sorted(files) if is_picture(name)), None)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder, by its path below `root`, with its files; hidden folders passed over, links to folders not followed.

    InputError for a folder that cannot be opened.
    """

    def refuse(error: OSError) -> None:
        if Path(error.filename).name not in SYSTEM_FOLDERS:
            reason = os.strerror(error.errno or 0)
            raise InputError(
                f"{error.filename} cannot be opened: {reason}; allow it, or name the folders beside it."
            ) from error

    for folder, subfolders, files in os.walk(root, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(folder).relative_to(root), files
