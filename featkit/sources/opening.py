"""From what a user typed to a source."""

from __future__ import annotations

import glob
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featkit.errors import InputError
from featkit.filetypes import NUM_BYTES, PARQUET, TAR, Kind, what_is
from featkit.images import DEFAULT_LIMITS, ImageLimits, printable
from featkit.sources.base import (
    CONTAINER_SUFFIXES,
    NOTHING_SKIPPED,
    PARQUET_SUFFIXES,
    TAR_SUFFIXES,
    Metadata,
    Skip,
    Source,
    is_image,
    merge_skipped,
    suffix_of,
)
from featkit.sources.failures import FailedItems, NoImages
from featkit.sources.folder import FileSource, files_of, nothing_found
from featkit.sources.hub import HUB_PREFIX, open_hub
from featkit.sources.listing import LIST_SUFFIXES, TABLE_SUFFIXES, open_list
from featkit.sources.locality import Locality, joined, locality_of
from featkit.sources.parquet import ParquetSource
from featkit.sources.rows import Columns, columns_of
from featkit.sources.saved import is_saved, open_saved
from featkit.sources.selection import (
    EVERYTHING,
    EXCLUDED_FOLDER,
    Selection,
    Tally,
    skipped_in_words,
)
from featkit.sources.tar import TarSource
from featkit.sources.walk import list_folder
from featkit.wording import counted

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar")
NO_IMAGES = "container without images"
MATCHED_FOLDER = "matched folder"
TORCHVISION_PREFIX = "torchvision:"


class Shards:
    """Several containers as one source, in the order given."""

    def __init__(
        self, name: str, parts: Sequence[Source], *, skipped: Mapping[str, int] = NOTHING_SKIPPED
    ) -> None:
        """skipped: what was passed over when the parts were chosen."""
        self.name, self._parts = name, [part for part in parts if len(part)]
        self._skipped = merge_skipped([skipped, *(part.skipped for part in parts)])
        self._ends = list(accumulate(len(part) for part in self._parts))

    @property
    def skipped(self) -> Mapping[str, int]:
        """Return what was passed over in all parts together."""
        return self._skipped

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, number: int) -> str:
        """The part's own key, which begins with its file's name."""
        part, place = self._locate(number)
        return part.key(place)

    def older_key(self, number: int) -> str:
        """The key by which an earlier version knew the item."""
        part, place = self._locate(number)
        return str(getattr(part, "older_key", part.key)(place))

    def read(self, number: int) -> bytes:
        """The part's bytes."""
        part, place = self._locate(number)
        return part.read(place)

    def metadata(self, number: int) -> Metadata:
        """The part's metadata."""
        part, place = self._locate(number)
        return part.metadata(place)

    def file(self, number: int, /) -> Path:
        """The part's file."""
        part, place = self._locate(number)
        return part.file(place)

    @property
    def columns(self) -> Sequence[Columns]:
        """Return the choice of columns for each table among the parts."""
        return [columns for part in self._parts for columns in columns_of(part)]

    def locality(self) -> Locality:
        """Return where the items of all parts lie."""
        return joined(self._parts)

    def _locate(self, number: int) -> tuple[Source, int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        part = bisect_right(self._ends, number)
        return self._parts[part], number - (self._ends[part - 1] if part else 0)


def open_source(
    spec: str | Path,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    selection: Selection = EVERYTHING,
    column: str | None = None,
    check_column: bool = True,
) -> Source:
    """Open a folder of images, archives and Parquet files, one of these, a glob of them, or a
    .txt list of paths.

    Also a folder by the datasets library's save_to_disk, and `hf:NAME[/CONFIG][:SPLIT]`, which may
    use the network; what exists by that name comes first.

    Among several archives and Parquet files, one that cannot be read is an item with an error.
    selection: which of the images are wanted; one that names none of them is refused. column:
    short for the selection's. check_column: refuse a column where the source has none; False for
    one source of several.

    InputError when the source is missing, empty, holds no images, or is none of these.
    """
    path = Path(spec)
    selection = selection if column is None else replace(selection, column=column)
    try:
        source = _open(spec, path, _Wanted(limits, selection))
    except NoImages as error:
        raise InputError(str(error)) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(
            f"{printable(str(spec))} cannot be opened: {reason}. Make it readable, or name another."
        ) from error
    if check_column:
        refuse_unused_column(selection, source)
    return source


def refuse_unused_column(selection: Selection, *sources: Source) -> None:
    """InputError when a column is chosen and none of the sources has columns."""
    if selection.column is None or any(columns_of(source) for source in sources):
        return
    names = ", ".join(source.name for source in sources)
    raise InputError(
        f"--column {selection.column} chooses a column of Parquet files and data sets, and {names}"
        " has none that can be read; leave it out."
    )


def select(source: Source, selection: Selection) -> Source:
    """Return the items of a source whose keys pass `include` and `exclude`. InputError where none
    does."""
    selected = _select(source, selection)
    if not len(selected):
        raise InputError(_left_none(source.name, len(source)))
    return selected


class _Wanted(NamedTuple):
    """What the user asked for of a source."""

    limits: ImageLimits
    selection: Selection


def _open(spec: str | Path, path: Path, wanted: _Wanted) -> Source:
    limits, selection = wanted
    if path.is_dir():
        if is_saved(path):
            return select(
                open_saved(path, name=str(spec), limits=limits, column=selection.column), selection
            )
        return _open_directory(str(spec), path, wanted)
    if path.is_file():
        return _open_file(path, wanted)
    if str(spec).startswith(HUB_PREFIX):
        return select(open_hub(str(spec), limits=limits, column=selection.column), selection)
    if str(spec).startswith(TORCHVISION_PREFIX):
        raise InputError(
            f"{spec} is read where torch is, by featkit train alone; name a folder of its images"
            " here."
        )
    if glob.has_magic(str(spec)):
        return _open_pattern(str(spec), wanted)
    raise _not_a_file(spec, path)


def _not_a_file(spec: str | Path, path: Path) -> InputError:
    """The error that says why there is neither a file nor a folder."""
    if path.exists():
        return InputError(
            f"{spec} is a pipe or a device, which is read only once; write what it gives to a file,"
            " and name that."
        )
    if path.is_symlink():
        return InputError(
            f"{spec} is a link to {printable(str(path.readlink()))}, where there is no file; name"
            " what exists."
        )
    # of which a Path keeps one slash
    if address := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=.)", str(spec)):
        rest = str(spec)[address.end() :]
        if address[1].lower() == "file":
            return InputError(f"file:///{rest} is an address; name the path itself: /{rest}.")
        name = f"{address[1]}://{rest}"
        return InputError(f"{name} is an address, not a file; download it, and name the file.")
    if re.search(r"\{[^{}]*(,|\.\.)[^{}]*\}", str(spec)):
        return InputError(
            f"{spec} does not exist: braces are not expanded here; name a pattern such as"
            " 'shard-*.tar', or a folder."
        )
    return InputError(
        f"{spec} does not exist; name a folder of images, a .tar, a .parquet, or a .txt list of"
        " paths."
    )


def _open_directory(name: str, root: Path, wanted: _Wanted) -> Source:
    """Images by their paths, then the items of archives and Parquet files, whose keys begin with
    the file's path."""
    listing = list_folder(root, wanted.selection)
    if not listing.containers and not listing.paths:
        raise InputError(nothing_found(str(root), listing))
    files = files_of(root, listing, limits=wanted.limits)
    if not listing.containers:
        return files
    containers = {path: root / path for path in sorted(listing.containers, key=os.fsencode)}
    return _open_containers(name, [files], containers, wanted)


def _open_pattern(spec: str, wanted: _Wanted) -> Source:
    """The files that match a pattern; the key of each is its path, those of a container's items
    begin with its name.

    Links to nothing are items with an error. Folders are counted, unless files below them match,
    and so are files in hidden and system folders that the pattern does not name.
    """
    matches = [Path(match) for match in sorted(glob.glob(_escape_existing(spec), recursive=True))]
    named = set(Path(spec).parts)
    tally = Tally()
    found: list[Path] = []
    for path in matches:
        if path.is_dir():
            continue
        skip = _skip_matched(path, named, wanted.selection)
        if skip is None:
            found.append(path)
        else:
            tally.add(skip)
    if not found:
        words = skipped_in_words(tally.counts)
        raise InputError(
            f"No file matches {spec}; put it in quotes and check the"
            f" pattern.{f' {words}' if words else ''}"
        )
    above_files = {folder for path in matches if not path.is_dir() for folder in path.parents}
    for path in matches:
        if path.is_dir() and path not in above_files:
            tally.add(Skip(MATCHED_FOLDER, str(path)))
    shards = [file for file in found if suffix_of(file.name) in CONTAINER_SUFFIXES]
    files = [file for file in found if suffix_of(file.name) not in CONTAINER_SUFFIXES]
    plain_files = FileSource(
        spec, Path(), [str(file) for file in files], limits=wanted.limits, skipped=tally.counts
    )
    if not shards:
        return select(plain_files, wanted.selection)
    prefixes = [file.name for file in shards]
    if len(set(prefixes)) < len(prefixes):  # so that no two items have one key
        above = os.path.commonpath([file.absolute().parent for file in shards])
        prefixes = [file.absolute().relative_to(above).as_posix() for file in shards]
    parts = [_select(plain_files, wanted.selection)]
    return _open_containers(spec, parts, dict(zip(prefixes, shards, strict=True)), wanted)


def _skip_matched(path: Path, named: set[str], selection: Selection) -> Skip | None:
    """Why a file that a pattern matches is passed over: it is in a hidden or system folder that the
    pattern does not name."""
    for folder in reversed(path.parents):
        reason = None if folder.name in named else selection.skip_folder(folder.name)
        if reason not in (None, EXCLUDED_FOLDER):  # `exclude` is asked about whole keys later
            return Skip(str(reason), str(folder))
    return None


def _open_containers(
    name: str, parts: Sequence[Source], containers: Mapping[str, Path], wanted: _Wanted
) -> Source:
    """Several containers, by the prefix of their keys, after the images in `parts`.

    One that cannot be read is an item with an error, and one without images is counted.
    InputError when nothing is left.
    """
    opened: list[Source] = []
    errors: list[InputError] = []
    skipped: Counter[str] = Counter()
    for prefix, path in containers.items():
        try:
            opened.append(_open_container(path, prefix, wanted))
        except NoImages as error:
            errors.append(error)
            skipped[NO_IMAGES] += 1
        except InputError as error:
            errors.append(error)
            opened.append(FailedItems(str(path), {prefix: str(error)}, path=path))
    readable = [
        part for part in (*parts, *opened) if len(part) and not isinstance(part, FailedItems)
    ]
    if not readable and len(errors) == len(containers):
        if len(errors) == 1:
            raise errors[0]
        raise InputError(
            f"None of the {counted(len(errors), 'container')} of {name} can be read. The first:"
            f" {errors[0]}"
        )
    if not readable:
        raise InputError(
            _left_none(name, sum(sum(part.skipped.values()) for part in (*parts, *opened)))
        )
    return Shards(name, [*parts, *opened], skipped=skipped)


def _open_container(path: Path, prefix: str, wanted: _Wanted) -> Source:
    """An archive or a Parquet file. InputError when it cannot be read."""
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise InputError(f"{printable(str(path))} is a device, not a file.")
    if suffix_of(path.name) in TAR_SUFFIXES or (
        suffix_of(path.name) not in PARQUET_SUFFIXES and _kind(path) == TAR
    ):
        return TarSource(path, limits=wanted.limits, selection=wanted.selection, prefix=prefix)
    return _select(
        ParquetSource(path, limits=wanted.limits, prefix=prefix, column=wanted.selection.column),
        wanted.selection,
    )


def _open_file(path: Path, wanted: _Wanted) -> Source:
    suffix = suffix_of(path.name)
    if suffix in CONTAINER_SUFFIXES or (not is_image(path.name) and _kind(path) in (TAR, PARQUET)):
        # patterns may leave out the archive's own name
        of_members = replace(wanted.selection, root=f"{path.name}/")
        container = _open_container(path, path.name, wanted._replace(selection=of_members))
        if not len(container):
            raise InputError(_left_none(container.name, sum(container.skipped.values())))
        return container
    if path.suffix.lower() in (*LIST_SUFFIXES, *TABLE_SUFFIXES):
        return select(open_list(path, limits=wanted.limits), wanted.selection)
    if path.name.lower().endswith(COMPRESSED_SUFFIXES):
        raise InputError(
            f"{path} is compressed and cannot be read at random; unpack it, or make it a .tar."
        )
    return select(
        FileSource(str(path), path.parent, [path.name], limits=wanted.limits), wanted.selection
    )


def _kind(path: Path) -> Kind | None:
    """What a file is by its first bytes."""
    with path.open("rb") as file:
        return what_is(file.read(NUM_BYTES))


def _select(source: Source, selection: Selection) -> Source:
    """Return the items whose keys pass, even if there are none."""
    if not selection.include and not selection.exclude:
        return source
    reasons = [selection.skip_key(source.key(number)) for number in range(len(source))]
    kept = [number for number, reason in enumerate(reasons) if reason is None]
    return Subset(source, kept, skipped=Counter(reason for reason in reasons if reason is not None))


def _left_none(name: str, count: int) -> str:
    return f"{name} has {counted(count, 'image')}, and --include and --exclude leave none of them."


def _escape_existing(pattern: str) -> str:
    """The pattern with an existing folder it begins with taken literally: `[2024] trip` in `[2024]
    trip/*.tar`."""
    path = Path(pattern)
    existing = next((above for above in path.parents if above.exists()), Path())
    return str(Path(glob.escape(str(existing)), path.relative_to(existing)))


def concatenate(sources: Sequence[Source]) -> Source:
    """Several sources as one, numbered through in their order."""
    return (
        sources[0]
        if len(sources) == 1
        else Shards(", ".join(source.name for source in sources), sources)
    )


class Subset:
    """Some items of a source, in the order of their numbers."""

    def __init__(
        self,
        source: Source,
        numbers: Sequence[int],
        *,
        skipped: Mapping[str, int] = NOTHING_SKIPPED,
    ) -> None:
        """skipped: what else was passed over when these items were chosen."""
        self.name, self._source, self._numbers = source.name, source, numbers
        self._skipped = dict(skipped)

    @property
    def skipped(self) -> Mapping[str, int]:
        """Return what was passed over in the whole source, and when these items were chosen."""
        return merge_skipped([self._source.skipped, self._skipped])

    def __len__(self) -> int:
        return len(self._numbers)

    def key(self, number: int) -> str:
        """The item's key in the whole source."""
        return self._source.key(self._numbers[number])

    def older_key(self, number: int) -> str:
        """The key by which an earlier version knew the item."""
        return str(getattr(self._source, "older_key", self._source.key)(self._numbers[number]))

    def read(self, number: int) -> bytes:
        """The item's bytes."""
        return self._source.read(self._numbers[number])

    def metadata(self, number: int) -> Metadata:
        """The item's metadata."""
        return self._source.metadata(self._numbers[number])

    def file(self, number: int, /) -> Path:
        """The item's file."""
        return self._source.file(self._numbers[number])

    @property
    def columns(self) -> Sequence[Columns]:
        """Return the choice of columns in the whole source."""
        return columns_of(self._source)

    def locality(self) -> Locality:
        """Return where these items lie."""
        whole = locality_of(self._source)
        return whole._replace(group_of=whole.group_of[np.asarray(self._numbers, np.int64)])


def subset(source: Source, numbers: Sequence[int]) -> Source:
    """Only the items of these numbers."""
    return Subset(source, numbers)
