"""List the files below a folder: images, containers, folders that cannot be read, and a count of
what is skipped.

Folders written by featkit are skipped, so that a run whose `--out` lies among its images reads
only images.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from featkit.atomic import TEMPORARY_MARK
from featkit.errors import InputError
from featkit.folders import CATALOGUE_FILE, VECTORS_FILE
from featkit.images import printable
from featkit.sources.base import CONTAINER_SUFFIXES, Skip, suffix_of
from featkit.sources.selection import Selection, Tally, drop_raw_twins

# A folder was written by featkit if it holds all names of one of these sets.
OWN_FOLDERS = (
    {"plan.json", "shards"},  # embeddings
    {"plan.json", ".lock"},  # embeddings just begun
    {CATALOGUE_FILE, VECTORS_FILE},  # an index
    {CATALOGUE_FILE, "model.onnx"},
    {CATALOGUE_FILE, "writer.lock"},
    {"config.yaml", "writer.lock"},  # a training run, with snapshots
    {"config.yaml", "metrics.jsonl"},
    {"photos.index", "listing.json"},  # the cache of the demo
)
GALLERY = re.compile(r"gallery-[0-9a-f]{16}")  # the demo's sample images in its cache
OWN_FOLDER, LINKED_FOLDER, LINKED_FILE = (
    "featkit folder",
    "link to a folder",
    "link to a file already taken",
)
LINKED_ABOVE, READ_ALREADY, DISAPPEARED = (
    "link to a folder above",
    "link to a folder already read",
    "folder that disappeared",
)
UNREADABLE = "unreadable folder"  # also an item, whose row has the error
SHOWN_PATH, SHOWN_FOLDER = 200, 80  # characters of a path in a sentence


@dataclass
class FolderList:
    """The contents of a folder. Paths are relative to it, with `/`.

    containers: archives and Parquet files, by their suffixes. failed: the error sentence of each
    folder that cannot be listed, by its path with `/` at the end.
    """

    paths: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    @property
    def skipped(self) -> Mapping[str, int]:
        """The number of files and folders skipped, by reason."""
        return self.tally.counts


def list_folder(root: Path, selection: Selection) -> FolderList:
    """List the items below `root`, in any order. InputError if `root` itself cannot be listed.

    A link to a file is an item unless the file is one already, under another name. Links to folders
    are followed only with `selection.follow_links`, after all real folders, and each folder is read
    once.
    """
    walk = _Walk(root, selection)
    walk.folder("", walk.real_root)
    walk.links_to_folders()
    walk.links_to_files()
    listing = walk.listing
    listing.paths = drop_raw_twins(listing.paths, listing.tally)
    return listing


class _Walk:
    """A walk through a folder: its listing so far, and the links it has not followed yet."""

    def __init__(self, root: Path, selection: Selection) -> None:
        self.root, self.selection = root, selection
        self.real_root = os.path.realpath(root)
        self.listing = FolderList()
        self._own = set(self._below_root(selection.own))
        self._seen: set[str] = set()  # real paths of the folders that were listed
        self._file_links: list[str] = []
        self._folder_links: list[str] = []
        self._container_links: list[str] = []

    def folder(self, start: str, real_start: str) -> None:
        """List a folder and everything below it. start: its path below the root; real_start: its
        real path."""
        # A list instead of recursion: folders may be nested more deeply than Python's stack.
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            below = folder[len(start) :].strip("/")
            real = f"{real_start.rstrip(os.sep)}{os.sep}{below}" if below else real_start
            if real in self._seen:
                self._skip(READ_ALREADY, folder)
                continue
            self._seen.add(real)
            entries = self._scan(folder)
            if folder and is_own_folder(folder, {entry.name for entry in entries}):
                self._skip(OWN_FOLDER, folder)
            else:
                waiting += self._sort(folder, entries)

    def _sort(self, folder: str, entries: list[os.DirEntry[str]]) -> list[str]:
        """Sort the entries of a folder into files and links; return the folders to list next."""
        folders: list[str] = []
        # In reverse, since the last of the waiting folders is listed first.
        for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name), reverse=True):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if not _is_folder(entry):
                self._file(path, is_link=entry.is_symlink())
            elif self._takes_folder(path):
                (self._folder_links if entry.is_symlink() else folders).append(path)
        return folders

    def links_to_folders(self) -> None:
        """Follow the links to folders, and the links found there, except to folders above the root;
        or count them."""
        while self._folder_links:
            links, self._folder_links = sorted(self._folder_links), []
            for link in links:
                if not self.selection.follow_links:
                    self._skip(LINKED_FOLDER, link)
                    continue
                real = os.path.realpath(self.root / link)
                if self.real_root.startswith(real.rstrip(os.sep) + os.sep):
                    self._skip(LINKED_ABOVE, link)
                else:
                    self.folder(link, real)

    def links_to_files(self) -> None:
        """Add the links to files, except those whose file is an item already, under its own name or
        another link."""
        self._links_to(self._file_links, self.listing.paths)
        self._links_to(self._container_links, self.listing.containers)

    def _links_to(self, links: list[str], paths: list[str]) -> None:
        taken = {self._real_path(path) for path in paths} if links else set()
        for link in sorted(links):
            real = os.path.realpath(self.root / link)
            if real in taken:
                self._skip(LINKED_FILE, link)
            else:
                taken.add(real)
                paths.append(link)

    def _real_path(self, path: str) -> str:
        """Return the real path of an item that is not a link itself."""
        if self.selection.follow_links:
            return os.path.realpath(self.root / path)
        return f"{self.real_root.rstrip(os.sep)}{os.sep}{path}"

    def _file(self, path: str, *, is_link: bool) -> None:
        container = suffix_of(path) in CONTAINER_SUFFIXES
        reason = (
            self.selection.skip_container(path) if container else self.selection.skip_file(path)
        )
        if reason is None and container:
            (self._container_links if is_link else self.listing.containers).append(path)
        elif reason is not None:
            self._skip(reason, path)
        else:
            (self._file_links if is_link else self.listing.paths).append(path)

    def _takes_folder(self, path: str) -> bool:
        reason = OWN_FOLDER if path in self._own else self.selection.skip_folder(path)
        if reason is not None:
            self._skip(reason, path)
        return reason is None

    def _scan(self, folder: str) -> list[os.DirEntry[str]]:
        """Return the entries of a folder up to the first error, which is noted in the listing."""
        scanned: list[os.DirEntry[str]] = []
        try:
            with os.scandir(self.root / folder) as entries:
                scanned.extend(entries)
        except OSError as error:
            if not folder:
                raise InputError(
                    f"{self.root} cannot be opened: {_reason(error)}. Make it readable, or name"
                    " another folder."
                ) from error
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                self._skip(DISAPPEARED, folder)
            else:
                shown = folder if len(folder) <= SHOWN_FOLDER else f"{folder[:SHOWN_FOLDER]}..."
                self._skip(f"{UNREADABLE} ({printable(shown)})", folder)
                self.listing.failed[folder + "/"] = _cannot_open(self.root / folder, error)
        return scanned

    def _below_root(self, folders: Sequence[Path]) -> Iterator[str]:
        """Yield the paths, below the root, of those folders that lie there."""
        for folder in folders:
            real = os.path.realpath(folder)
            if real.startswith(self.real_root.rstrip(os.sep) + os.sep):
                yield os.path.relpath(real, self.real_root).replace(os.sep, "/")

    def _skip(self, reason: str, path: str) -> None:
        self.listing.tally.add(Skip(reason, path))


def is_own_folder(path: str, names: Set[str]) -> bool:
    """Return whether featkit wrote the folder. names: of the files and folders in it."""
    name = path.rpartition("/")[2]
    return (
        any(own <= names for own in OWN_FOLDERS)
        or TEMPORARY_MARK in name
        or GALLERY.fullmatch(name) is not None
    )


def _cannot_open(folder: Path, error: OSError) -> str:
    path = printable(str(folder))
    shown = path if len(path) <= SHOWN_PATH else f"{path[:SHOWN_PATH]}..."
    if error.errno == errno.ENAMETOOLONG:
        return (
            f"{shown} cannot be opened: its path of {len(os.fsencode(folder)):,} bytes is longer"
            " than the system allows. Shorten the names of the folders above it."
        )
    return (
        f"{shown} cannot be opened: {_reason(error)}. Make it readable, or leave it out with"
        " --exclude."
    )


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one. An entry that cannot be examined counts
    as a file: reading it reports the error."""
    try:
        return entry.is_dir()
    except OSError:
        return False
