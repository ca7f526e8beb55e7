"""Which files of a folder or an archive are items, and a count of the others by reason.

A file is an item when its suffix is one of IMAGE_SUFFIXES, it is neither hidden nor in a system's
own folder, and it passes `--include` and `--exclude`. A camera's raw file next to a JPEG of the
same name is the same image, and passed over.
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

# what a camera writes beside a raw file
DEVELOPED_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .heic .heif .hif".split())
EXCLUDED_FILE, EXCLUDED_FOLDER = "excluded file", "excluded folder"
NOT_INCLUDED = "file that is not included"
NO_SUFFIX, OTHER_SUFFIX = "file without a suffix", "file with an unknown suffix"
RAW_TWIN = "raw file beside its JPEG"
SHOWN_REASONS, SHOWN_DETAILS = 10, 5
PLURALS = {
    NOT_INCLUDED: "files that are not included",
    NO_SUFFIX: "files without a suffix",
    OTHER_SUFFIX: "files with unknown suffixes",
    RAW_TWIN: "raw files beside their JPEGs",
    "link to a folder": "links to folders",
    "link to a folder above": "links to folders above",
    "link to a folder already read": "links to folders already read",
    "link to a file already taken": "links to files already taken",
    "container without images": "containers without images",
    "folder that disappeared": "folders that disappeared",
}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the user wants of a source.

    include, exclude: patterns of keys, as in .gitignore. `*` and `?` stay within a name and `**`
    spans folders. A pattern without `/` matches a file or a folder at any depth, one with `/`
    begins at the root, and a folder stands for all below it. An item passes when no `exclude`
    matches it and, if there are any, one `include` does. A hidden or system folder and a file of
    another suffix are read only if an `include` names them: `@eaDir/**`, `.private/*.jpg`,
    `*.jpg_backup`.
    follow_links: also walk into links to folders.
    own: folders that the command itself writes; they are never read.
    column: the column of a Parquet file or a data set that holds the images; chosen by its type
    and name by default.
    root: what keys begin with, such as `shard.tar/`, if patterns may leave that out.
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
        """Return why a folder is passed over with all below it; None if it is not. path: relative,
        with `/`."""
        name = path.rpartition("/")[2]
        reason = folder_skip_reason(name)
        if reason is not None and not any(pattern.names_folder(name) for pattern in self._included):
            return reason
        return EXCLUDED_FOLDER if self._any_matches(self._excluded, path) else None

    def skip_file(self, path: str) -> str | None:
        """Return why a file is passed over, whatever the folder it lies in; None if it is not."""
        name = path.rpartition("/")[2]
        named = any(pattern.names_file(name) for pattern in self._included)
        if not named and (reason := file_skip_reason(name)) is not None:
            return reason
        if not named and not is_image(name):
            return suffix_reason(name)
        return self.skip_key(path)

    def skip_container(self, path: str) -> str | None:
        """Return why an archive or a Parquet file is passed over with all its items; None if it is
        not.

        `include` is asked about its items, whose keys begin with this path.
        """
        if (reason := file_skip_reason(path.rpartition("/")[2])) is not None:
            return reason
        return EXCLUDED_FILE if self._any_matches(self._excluded, path) else None

    def skip_key(self, key: str) -> str | None:
        """Return why `include` and `exclude` alone pass over an item; None if they do not."""
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
        """Return the items among the files of an archive, in their order, and the count of the
        rest.

        paths: relative, with `/`; the folders above each are looked at too. below: what keys begin
        with, such as `shard.tar/`, for patterns.
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
        ends = [place for place, character in enumerate(path) if character == "/"]
        for end in ends:
            if (reason := self.skip_folder(below + path[:end])) is not None:
                return Skip(reason, path[:end])
        reason = self.skip_file(below + path)
        return None if reason is None else Skip(reason, path)


@dataclass(frozen=True)
class Picked:
    """Items by their paths, and what was passed over, by reason."""

    paths: list[str]
    skipped: Mapping[str, int]


class Tally:
    """Counts what is passed over by reason, a folder once however many files are in it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._folders: set[Skip] = set()

    def add(self, skip: Skip) -> None:
        """Count a file, or a folder that is not counted yet."""
        if "folder" in skip.reason.partition(" (")[0]:
            if skip in self._folders:
                return
            self._folders.add(skip)
        self.counts[skip.reason] += 1


EVERYTHING = Selection()


def drop_raw_twins(paths: list[str], tally: Tally) -> list[str]:
    """Return the paths without raw files that have a JPEG or HEIF of the same folder and stem
    beside them."""
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
    """Return under what a file that is no image by its suffix is counted: the suffix itself, if
    it looks like one."""
    suffix = suffix_of(name)
    if suffix in ("", "."):
        return NO_SUFFIX
    return suffix if re.fullmatch(r"\.(?=.*[a-z])[a-z0-9_~+-]{1,12}", suffix) else OTHER_SUFFIX


def skipped_in_words(skipped: Mapping[str, int]) -> str | None:
    """Return "Passed over: 12 .cr2, 3 links to folders." with the most frequent first; None where
    nothing was."""
    if not skipped:
        return None
    groups: dict[str, Counter[str]] = {}  # by reason, what is said in brackets after it
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
    return f"Passed over: {', '.join(shown)}."


def _counted(noun: str, details: Counter[str]) -> str:
    """One reason with its count: "12 .cr2", "3 system folders (@eaDir, #recycle)"."""
    said = (
        f"{details.total():,} {noun}"
        if noun.startswith(".")
        else counted(details.total(), noun, PLURALS.get(noun))
    )
    names = [
        name for name, _ in sorted(details.items(), key=lambda item: (-item[1], item[0])) if name
    ]
    more = [f"{len(names) - SHOWN_DETAILS} more"] if len(names) > SHOWN_DETAILS else []
    return f"{said} ({', '.join(names[:SHOWN_DETAILS] + more)})" if names else said


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
        """Whether the path, or a folder above it, is what the pattern means."""
        return _matches(self._path, _parts(path))

    def names_folder(self, folder: str) -> bool:
        """Whether a part of the pattern means this very folder: not `*`, and with the dot of a
        hidden one."""
        return any(
            part.strip("*") and _same_dot(part, folder) and name.match(folder)
            for part, name in self._names
        )

    def names_file(self, file: str) -> bool:
        """Whether the last part of the pattern tells how this file's name ends, and its dot if it
        is hidden."""
        part, name = self._names[-1]
        return (
            not part.endswith(("*", "?")) and _same_dot(part, file) and name.match(file) is not None
        )


def _matches(pattern: Sequence[re.Pattern[str] | None], names: Sequence[str]) -> bool:
    """Whether a pattern, of which None is `**`, matches the names from the first on, or those of a
    folder above."""
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
