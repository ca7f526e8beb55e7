"""The files that a glob pattern matches."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from featkit.errors import InputError
from featkit.sources.base import CONTAINER_SUFFIXES, Skip, Source, suffix_of
from featkit.sources.combined import select, select_any
from featkit.sources.containers import open_containers
from featkit.sources.folder import FileSource
from featkit.sources.request import Request
from featkit.sources.selection import EXCLUDED_FOLDER, Selection, Tally, skipped_in_words

MATCHED_FOLDER = "matched folder"


def is_pattern(request: Request) -> bool:
    """Return whether the request has a pattern's characters and is not an existing path."""
    return glob.has_magic(request.spec)


def open_pattern(request: Request) -> Source:
    """Open the files that a pattern matches. The key of each is its path; keys of a container's
    items begin with the container's name.

    Broken links are items with an error. Files in hidden and system folders that the pattern
    does not name are counted, and so are folders, unless files below them match.
    """
    spec = request.spec
    matches = [Path(match) for match in sorted(glob.glob(_escape_existing(spec), recursive=True))]
    folders = {path for path in matches if path.is_dir()}
    tally = Tally()
    files = _files(matches, folders, spec, request.selection, tally)
    if not files:
        skipped = skipped_in_words(tally.counts)
        raise InputError(
            f"No file matches {spec}; put it in quotes and check the"
            f" pattern.{f' {skipped}' if skipped else ''}"
        )
    _count_folders(matches, folders, tally)
    containers = [file for file in files if suffix_of(file.name) in CONTAINER_SUFFIXES]
    paths = [str(file) for file in files if suffix_of(file.name) not in CONTAINER_SUFFIXES]
    images = FileSource(spec, Path(), paths, limits=request.limits, skipped=tally.counts)
    if not containers:
        return select(images, request.selection)
    return open_containers(request, [select_any(images, request.selection)], _by_prefix(containers))


def _files(
    matches: Sequence[Path], folders: set[Path], spec: str, selection: Selection, tally: Tally
) -> list[Path]:
    """Return the matched files to read; count the others."""
    named = set(Path(spec).parts)
    files: list[Path] = []
    for path in matches:
        if path in folders:
            continue
        skip = _skip(path, named, selection)
        if skip is None:
            files.append(path)
        else:
            tally.add(skip)
    return files


def _skip(path: Path, named: set[str], selection: Selection) -> Skip | None:
    """Return why a matched file is skipped: it is in a hidden or system folder that the
    pattern does not name."""
    for folder in reversed(path.parents):
        reason = None if folder.name in named else selection.skip_folder(folder.name)
        if reason not in (None, EXCLUDED_FOLDER):  # `exclude` applies to whole keys later
            return Skip(str(reason), str(folder))
    return None


def _count_folders(matches: Sequence[Path], folders: Iterable[Path], tally: Tally) -> None:
    above_files = {folder for path in matches if path not in folders for folder in path.parents}
    for path in matches:
        if path in folders and path not in above_files:
            tally.add(Skip(MATCHED_FOLDER, str(path)))


def _by_prefix(containers: Sequence[Path]) -> Mapping[str, Path]:
    """Return the containers by the prefix of their keys: the name, or, if two have the same name,
    the path below their common folder."""
    prefixes = [file.name for file in containers]
    if len(set(prefixes)) < len(prefixes):
        above = os.path.commonpath([file.absolute().parent for file in containers])
        prefixes = [file.absolute().relative_to(above).as_posix() for file in containers]
    return dict(zip(prefixes, containers, strict=True))


def _escape_existing(pattern: str) -> str:
    """Return the pattern with its leading existing folder escaped: `[2024] trip` in
    `[2024] trip/*.tar`."""
    path = Path(pattern)
    existing = next((above for above in path.parents if above.exists()), Path())
    return str(Path(glob.escape(str(existing)), path.relative_to(existing)))
