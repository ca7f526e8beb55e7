"""From what a user typed to a source."""

from __future__ import annotations

import glob
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from featkit.errors import InputError
from featkit.images import DEFAULT_LIMITS, ImageLimits, printable
from featkit.sources.base import NOTHING_SKIPPED, Metadata, Source, merge_skipped
from featkit.sources.folder import FileSource, open_folder
from featkit.sources.hub import HUB_PREFIX, open_hub
from featkit.sources.listing import LIST_SUFFIXES, TABLE_SUFFIXES, open_list
from featkit.sources.parquet import ParquetSource
from featkit.sources.saved import is_saved, open_saved
from featkit.sources.selection import EVERYTHING, Selection
from featkit.sources.tar import TarSource
from featkit.sources.walk import list_folder
from featkit.wording import counted

SHARD_SUFFIXES = (".tar", ".parquet")
TORCHVISION_PREFIX = "torchvision:"


class Shards:
    """Several containers as one source, in the order given."""

    def __init__(self, name: str, parts: Sequence[Source]) -> None:
        self.name, self._parts = name, parts
        self._ends = list(accumulate(len(part) for part in parts))

    @property
    def skipped(self) -> Mapping[str, int]:
        """Return what was passed over in all parts together."""
        return merge_skipped(part.skipped for part in self._parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, number: int) -> str:
        """The part's own key, which begins with its file's name."""
        part, place = self._locate(number)
        return part.key(place)

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

    def _locate(self, number: int) -> tuple[Source, int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        part = bisect_right(self._ends, number)
        return self._parts[part], number - (self._ends[part - 1] if part else 0)


def open_source(spec: str | Path, *, limits: ImageLimits = DEFAULT_LIMITS, selection: Selection = EVERYTHING) -> Source:
    """Open a folder of pictures, a .tar, a .parquet, a folder or glob of either, a .txt list of paths, or one picture.

    Also a folder by the datasets library's save_to_disk, and `hf:NAME[/CONFIG][:SPLIT]`, which may use the network; what
    exists by that name comes first.

    selection: which of the pictures are wanted; one that names none of them is refused. InputError when the source is
    missing, empty, holds no pictures, or both pictures and containers, or is none of these.
    """
    path = Path(spec)
    try:
        if path.is_dir() and not is_saved(path) and not _shards_in(path):
            return open_folder(path, limits=limits, selection=selection)
        return select(_open(spec, path, limits=limits, selection=selection), selection)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"{printable(str(spec))} cannot be opened: {reason}. Make it readable, or name another.") from error


def select(source: Source, selection: Selection) -> Source:
    """Return the items of a source whose keys pass `include` and `exclude`. InputError where none does."""
    if not selection.include and not selection.exclude:
        return source
    reasons = [selection.skip_key(source.key(number)) for number in range(len(source))]
    kept = [number for number, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise InputError(
            f"{source.name} has {counted(len(source), 'picture')}, and --include and --exclude leave none of them."
        )
    return Subset(source, kept, skipped=Counter(reason for reason in reasons if reason is not None))


def _open(spec: str | Path, path: Path, *, limits: ImageLimits, selection: Selection) -> Source:
    if path.is_dir():
        if is_saved(path):
            return open_saved(path, name=str(spec), limits=limits)
        shards = _shards_in(path)
        if pictures := list_folder(path, selection).paths:
            raise InputError(
                f"{path} holds pictures ({printable(min(pictures))}) and {shards[0].name}; "
                f"name '{path}/*{shards[0].suffix}' for the one, or move it away."
            )
        return _open_shards(str(spec), shards, limits=limits)
    if path.is_file():
        return _open_file(path, limits=limits)
    if str(spec).startswith(HUB_PREFIX):
        return open_hub(str(spec), limits=limits)
    if str(spec).startswith(TORCHVISION_PREFIX):
        raise InputError(f"{spec} is read where torch is, by featkit train alone; name a folder of its pictures here.")
    if glob.has_magic(str(spec)):
        found = [file for file in map(Path, sorted(glob.glob(str(spec)))) if file.is_file()]
        if not found:
            raise InputError(f"No file matches {spec}; put it in quotes and check the pattern.")
        if all(file.suffix in SHARD_SUFFIXES for file in found):
            return _open_shards(str(spec), found, limits=limits)
        return FileSource(str(spec), Path(), [str(file) for file in found], limits=limits)
    raise InputError(f"{spec} does not exist; name a folder of pictures, a .tar, a .parquet, or a .txt list of paths.")


def concatenate(sources: Sequence[Source]) -> Source:
    """Several sources as one, numbered through in their order."""
    return sources[0] if len(sources) == 1 else Shards(", ".join(source.name for source in sources), sources)


class Subset:
    """Some items of a source, in the order of their numbers."""

    def __init__(self, source: Source, numbers: Sequence[int], *, skipped: Mapping[str, int] = NOTHING_SKIPPED) -> None:
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

    def read(self, number: int) -> bytes:
        """The item's bytes."""
        return self._source.read(self._numbers[number])

    def metadata(self, number: int) -> Metadata:
        """The item's metadata."""
        return self._source.metadata(self._numbers[number])

    def file(self, number: int, /) -> Path:
        """The item's file."""
        return self._source.file(self._numbers[number])


def subset(source: Source, numbers: Sequence[int]) -> Source:
    """Only the items of these numbers."""
    return Subset(source, numbers)


def _shards_in(folder: Path) -> list[Path]:
    """The containers directly in a folder."""
    return sorted(file for file in folder.iterdir() if file.suffix in SHARD_SUFFIXES and file.is_file())


def _open_shards(name: str, files: Sequence[Path], *, limits: ImageLimits) -> Source:
    """InputError for two files of one name: keys begin with it, so an item of the one would replace one of the other."""
    named: dict[str, Path] = {}
    for file in files:
        if named.setdefault(file.name, file) != file:
            raise InputError(f"{named[file.name]} and {file} have one name, with which keys begin; open each by itself.")
    return Shards(name, [_open_file(file, limits=limits) for file in files])


def _open_file(path: Path, *, limits: ImageLimits) -> Source:
    if path.suffix == ".tar":
        return TarSource(path, limits=limits)
    if path.suffix == ".parquet":
        return ParquetSource(path, limits=limits)
    if path.suffix.lower() in (*LIST_SUFFIXES, *TABLE_SUFFIXES):
        return open_list(path, limits=limits)
    if path.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".zip")):
        raise InputError(f"{path} is compressed and cannot be read at random; unpack it, or make it a .tar.")
    return FileSource(str(path), path.parent, [path.name], limits=limits)
