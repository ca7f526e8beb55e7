"""Select the items among the files of a folder or an archive, and count the others by reason.

A file is an item if its suffix is one of IMAGE_SUFFIXES, it is neither hidden nor in a system
folder, and it passes `--include` and `--exclude`. A camera's raw file next to a JPEG of the same
name is the same image, and is skipped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from pathlib import Path

from featkit.errors import InputError
from featkit.sources.base import (
    RAW_SUFFIXES,
    Skip,
    file_skip_reason,
    folder_skip_reason,
    is_image,
    suffix_of,
)
from featkit.wording import counted

# Files that a camera writes next to a raw file.
DEVELOPED_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .heic .heif .hif".split())
EXCLUDED_FILE, EXCLUDED_FOLDER = "excluded file", "excluded folder"
NOT_INCLUDED = "file that is not included"
NO_SUFFIX, OTHER_SUFFIX = "file without a suffix", "file with an unknown suffix"
RAW_TWIN = "raw file next to its JPEG"
SHOWN_REASONS, SHOWN_DETAILS = 10, 5
PLURALS = {
    NOT_INCLUDED: "files that are not included",
    NO_SUFFIX: "files without a suffix",
    OTHER_SUFFIX: "files with unknown suffixes",
    RAW_TWIN: "raw files next to their JPEGs",
    "link to a folder": "links to folders",
    "link to a folder above": "links to folders above",
    "link to a folder already read": "links to folders already read",
    "link to a file already taken": "links to files already taken",
    "container without images": "containers without images",
    "folder that disappeared": "folders that disappeared",
}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The part of a source that the user wants.

    include, exclude: patterns of keys, as in .gitignore. `*` and `?` stay within a name; `**` spans
    folders. A pattern without `/` matches a file or folder at any depth, one with `/` begins at the
    root, and a folder stands for everything below it. An item passes if no `exclude` matches it and
    an `include` does, if there are any. A hidden or system folder, or a file with another suffix,
    is read only if an `include` names it: `@eaDir/**`, `.private/*.jpg`, `*.jpg_backup`.
    follow_links: also read folders behind symbolic links.
    own: folders that the command itself writes; they are never read.
    column: the column of a Parquet file or data set that holds the images; by default it is chosen
    by type and name.
    root: a prefix of keys that patterns may leave out, such as `shard.tar/`.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    follow_links: bool = False
    own: Sequence[Path] = ()
    column: str | None = None
    root: str = ""

    def __post_init__(self) -> None:
        for option, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                if not _parts(pattern):
                    raise InputError(
                        f"{option} {pattern!r} matches nothing; write a pattern such as '*.png' or"
                        " 'raw/**'."
                    )
                if pattern.startswith("!"):
                    other = "--exclude" if option == "--include" else "--include"
                    raise InputError(
                        f"{option} {pattern!r} negates a pattern, which is not supported; use"
                        f" {other}, or {'?' + pattern[1:]!r} if the name begins with an exclamation"
                        " mark."
                    )

    @cached_property
    def _included(self) -> list[_Pattern]:
        return [_Pattern(pattern) for pattern in self.include]

    @cached_property
    def _excluded(self) -> list[_Pattern]:
        return [_Pattern(pattern) for pattern in self.exclude]

    def skip_folder(self, path: str) -> str | None:
        """Return why a folder is skipped with everything below it; None if it is not. path:
        relative, with `/`."""
        name = path.rpartition("/")[2]
        reason = folder_skip_reason(name)
        if reason is not None and not any(pattern.names_folder(name) for pattern in self._included):
            return reason
        return EXCLUDED_FOLDER if self._any_matches(self._excluded, path) else None

    def skip_file(self, path: str) -> str | None:
        """Return why a file is skipped, whatever its folder; None if it is not."""
        name = path.rpartition("/")[2]
        named = any(pattern.names_file(name) for pattern in self._included)
        if not named and (reason := file_skip_reason(name)) is not None:
            return reason
        if not named and not is_image(name):
            return suffix_reason(name)
        return self.skip_key(path)

    def skip_container(self, path: str) -> str | None:
        """Return why an archive or a Parquet file is skipped with all its items; None if it is
        not.

        `include` applies to its items, whose keys begin with this path.
        """
        if (reason := file_skip_reason(path.rpartition("/")[2])) is not None:
            return reason
        return EXCLUDED_FILE if self._any_matches(self._excluded, path) else None

    def skip_key(self, key: str) -> str | None:
        """Return why `include` or `exclude` leaves out an item; None if neither does."""
        if self._any_matches(self._excluded, key):
            return EXCLUDED_FILE
        if self._included and not self._any_matches(self._included, key):
            return NOT_INCLUDED
        return None

    def _any_matches(self, patterns: Sequence[_Pattern], path: str) -> bool:
        paths = (
            [path, path.removeprefix(self.root)]
            if self.root and path.startswith(self.root)
            else [path]
        )
        return any(pattern.matches(each) for pattern in patterns for each in paths)

    def pick(self, paths: Iterable[str], *, below: str = "") -> Picked:
        """Return the items among the files of an archive, in order, and count the rest.

        paths: relative, with `/`; the folders above each file must pass too. below: a prefix
        that patterns expect before the paths, such as `shard.tar/`.
        """
        tally = Tally()
        kept: list[str] = []
        for path in paths:
            skip = self._skip(path, below)
            if skip is None:
                kept.append(path)
            else:
                tally.add(skip)
        return Picked(drop_raw_twins(kept, tally), tally.counts)

    def _skip(self, path: str, below: str) -> Skip | None:
        ends = [i for i, character in enumerate(path) if character == "/"]
        for end in ends:
            if (reason := self.skip_folder(below + path[:end])) is not None:
                return Skip(reason, path[:end])
        reason = self.skip_file(below + path)
        return None if reason is None else Skip(reason, path)


@dataclass(frozen=True)
class Picked:
    """The paths of items, and the number of files skipped, by reason."""

    paths: list[str]
    skipped: Mapping[str, int]


class Tally:
    """Counts of what is skipped, by reason. A folder counts once, however many files it has."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._folders: set[Skip] = set()

    def add(self, skip: Skip) -> None:
        """Count a file, or a folder that was not counted before."""
        if "folder" in skip.reason.partition(" (")[0]:
            if skip in self._folders:
                return
            self._folders.add(skip)
        self.counts[skip.reason] += 1


EVERYTHING = Selection()


def drop_raw_twins(paths: list[str], tally: Tally) -> list[str]:
    """Return the paths without raw files that have a JPEG or HEIF with the same stem next to
    them."""
    if not any(suffix_of(path) in RAW_SUFFIXES for path in paths):
        return paths
    developed = {
        path.rpartition(".")[0].lower() for path in paths if suffix_of(path) in DEVELOPED_SUFFIXES
    }
    kept: list[str] = []
    for path in paths:
        if suffix_of(path) in RAW_SUFFIXES and path.rpartition(".")[0].lower() in developed:
            tally.add(Skip(RAW_TWIN, path))
        else:
            kept.append(path)
    return kept


def suffix_reason(name: str) -> str:
    """Return the reason for skipping a file without an image suffix: the suffix itself, if it looks
    like one."""
    suffix = suffix_of(name)
    if suffix in ("", "."):
        return NO_SUFFIX
    return suffix if re.fullmatch(r"\.(?=.*[a-z])[a-z0-9_~+-]{1,12}", suffix) else OTHER_SUFFIX


def skipped_in_words(skipped: Mapping[str, int]) -> str | None:
    """Return a sentence such as "Skipped: 12 .cr2, 3 links to folders.", the most frequent
    first; None if nothing was skipped."""
    if not skipped:
        return None
    groups: dict[str, Counter[str]] = {}  # by reason, the details in parentheses after it
    for reason, count in skipped.items():
        noun, _, detail = reason.partition(" (")
        groups.setdefault(noun, Counter())[detail.removesuffix(")")] += count
    ordered = sorted(groups.items(), key=lambda item: (-item[1].total(), item[0]))
    shown = [_counted(noun, details) for noun, details in ordered[:SHOWN_REASONS]]
    if rest := ordered[SHOWN_REASONS:]:
        shown.append(
            f"{counted(sum(details.total() for _, details in rest), 'other')} of"
            f" {counted(len(rest), 'more kind')}"
        )
    return f"Skipped: {', '.join(shown)}."


def _counted(noun: str, details: Counter[str]) -> str:
    """Return a reason with its count: "12 .cr2", "3 system folders (@eaDir, #recycle)"."""
    reason = (
        f"{details.total():,} {noun}"
        if noun.startswith(".")
        else counted(details.total(), noun, PLURALS.get(noun))
    )
    names = [
        name for name, _ in sorted(details.items(), key=lambda item: (-item[1], item[0])) if name
    ]
    more = [f"{len(names) - SHOWN_DETAILS} more"] if len(names) > SHOWN_DETAILS else []
    return f"{reason} ({', '.join(names[:SHOWN_DETAILS] + more)})" if names else reason


class _Pattern:
    """One pattern of `--include` or `--exclude`."""

    def __init__(self, text: str) -> None:
        parts = _parts(text)
        self._names = [(part, re.compile(translate(part), re.DOTALL)) for part in parts]
        anchored = "/" in text.rstrip("/")
        self._path = [None if part == "**" else name for part, name in self._names]
        if not anchored and parts != ["**"]:
            self._path.insert(0, None)

    def matches(self, path: str) -> bool:
        """Return whether the pattern matches the path or a folder above it."""
        return _matches(self._path, _parts(path))

    def names_folder(self, folder: str) -> bool:
        """Return whether a part of the pattern names this folder: more than `*`, and with a dot if
        the folder is hidden."""
        return any(
            part.strip("*") and _same_dot(part, folder) and name.match(folder)
            for part, name in self._names
        )

    def names_file(self, file: str) -> bool:
        """Return whether the last part of the pattern gives the end of this file's name, and a dot
        if the file is hidden."""
        part, name = self._names[-1]
        return (
            not part.endswith(("*", "?")) and _same_dot(part, file) and name.match(file) is not None
        )


def _matches(pattern: Sequence[re.Pattern[str] | None], names: Sequence[str]) -> bool:
    """Return whether a pattern, in which None stands for `**`, matches the names of a path or of a
    folder above it."""
    if not pattern:
        return True
    first, rest = pattern[0], pattern[1:]
    if first is None:
        return (
            bool(names)
            if not rest
            else any(_matches(rest, names[start:]) for start in range(len(names)))
        )
    return bool(names) and first.match(names[0]) is not None and _matches(rest, names[1:])


def _parts(pattern: str) -> list[str]:
    return [part for part in pattern.split("/") if part not in ("", ".")]


def _same_dot(part: str, name: str) -> bool:
    return part.startswith(".") == name.startswith(".")
