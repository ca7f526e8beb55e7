"""Data sets of the Hugging Face Hub, and folders in its layouts, through the `datasets` library:
`hf:NAME[/CONFIG][:SPLIT]`.

The library fetches and converts data sets and keeps them in its own cache (HF_HOME). featkit
fetches only what the user named.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featkit.downloading import why_failed
from featkit.errors import EnvironmentProblem, InputError
from featkit.images import ImageLimits, printable, read_file
from featkit.sources.base import NOTHING_SKIPPED, Metadata, Source
from featkit.sources.rows import (
    DAMAGED,
    Columns,
    find_columns,
    image_path,
    read_image,
    read_metadata,
)
from featkit.sources.saved import choose_split, is_saved, open_saved
from featkit.wording import one_line

HUB_PREFIX = "hf:"
SPEC = re.compile(r"hf:(?P<name>.+?)(?::(?P<split>[^/]*))?", re.DOTALL)


class HubDataset:
    """A split opened by the `datasets` library; keys are `name/split/row`."""

    def __init__(
        self,
        dataset: Any,
        *,
        name: str,
        prefix: str,
        folders: Sequence[Path],
        limits: ImageLimits,
        column: str | None = None,
    ) -> None:
        self.name, self.limits = name, limits
        self._folders = [_absolute(folder) for folder in folders]  # where its rows may name files
        self._prefix = printable(prefix)
        self._columns = find_columns(dataset.features.arrow_schema, name, column=column)
        # As Arrow, since the library would otherwise decode every image.
        self._dataset = dataset.select_columns(
            [self._columns.image, *self._columns.plain]
        ).with_format("arrow")
        if not len(self):
            raise InputError(f"{name} has no rows.")

    @property
    def skipped(self) -> Mapping[str, int]:
        """Always empty: every row is an item."""
        return NOTHING_SKIPPED

    @property
    def columns(self) -> Sequence[Columns]:
        """The columns of the split."""
        return [self._columns]

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, item: int, /) -> str:
        """Return `name/split/row`."""
        return f"{self._prefix}/{item}"

    def read(self, item: int, /) -> bytes:
        """Return the image's bytes, or those of the local file that the row names. InputError if
        there is neither."""
        row = self._row(item)
        if (own := self._own_file(row)) is not None:
            return read_file(own, limits=self.limits)
        return read_image(row, 0, self._columns, key=self.key(item), limits=self.limits)

    def metadata(self, item: int, /) -> Metadata:
        """Return all columns of text and numbers, names of class labels, and the image's `path`."""
        return read_metadata(self._row(item), 0, self._columns, key=self.key(item))

    def file(self, item: int, /) -> Path:
        """Return the image's own file if the row names one, else the first file in the cache."""
        own = self._own_file(self._row(item))
        return own or Path(*(file["filename"] for file in self._dataset.cache_files[:1]))

    def _row(self, item: int) -> Any:
        if not 0 <= item < len(self):
            raise IndexError(item)
        row = self._dataset[item : item + 1]
        try:
            row.validate(full=True)
        except DAMAGED as error:
            raise InputError(f"{self.key(item)} is damaged: {one_line(error)}.") from error
        return row

    def _own_file(self, row: Any) -> Path | None:
        """Return the local file that a row names instead of holding the image, if any.

        The library does not copy folders of images into its cache. Rows come from anywhere, so only
        paths in the data set's own folder or in the library's cache are opened.
        """
        path = image_path(row, 0, self._columns)
        if path is None or row[self._columns.image][0]["bytes"].is_valid:
            return None
        own = _absolute(path)
        return own if any(own.is_relative_to(folder) for folder in self._folders) else None


def open_hub(spec: str, *, limits: ImageLimits, column: str | None = None) -> Source:
    """Open the data set `hf:NAME[/CONFIG][:SPLIT]`. NAME is on the Hub, or a local folder.

    InputError if the name, configuration or split does not exist. EnvironmentProblem without the
    library or the network.
    """
    match = SPEC.fullmatch(spec)
    if match is None:
        raise InputError(
            f"{spec} does not name a data set; write hf:NAME, hf:NAME:SPLIT or"
            " hf:NAME/CONFIG:SPLIT."
        )
    split = match["split"] or None
    name, config, prefix = _name_and_config(match["name"])
    if is_saved(Path(name)):
        return open_saved(Path(name), name=spec, split=split, limits=limits, column=column)
    example = f"{HUB_PREFIX}{match['name']}:{{}}"
    splits = _load(spec, name, config)
    if split is None or re.fullmatch(r"\w+", split):
        split = choose_split(list(splits), split, of=spec, example=example)
        dataset = splits[split]
    else:  # train[:1000], train+test
        for summand in re.split(r"\s*\+\s*", split):
            choose_split(list(splits), summand.split("[", 1)[0], of=spec, example=example)
        dataset = _load(spec, name, config, split=split)
    folders = [Path(name)] if Path(name).is_dir() else _cache_folders()
    return HubDataset(
        dataset,
        name=spec,
        prefix=f"{prefix}/{split}",
        folders=folders,
        limits=limits,
        column=column,
    )


def _name_and_config(typed: str) -> tuple[str, str | None, str]:
    """Return the name to load, its configuration, and the prefix of keys."""
    path = Path(typed).expanduser()
    if path.is_dir():
        return str(path), None, path.resolve().name
    if typed.startswith(("/", ".", "~")) and path.parent.is_dir():
        return str(path.parent), path.name, f"{path.parent.resolve().name}/{path.name}"
    parts = typed.split("/")
    if len(parts) == 3:  # names are owner/name, except for a few old ones
        return "/".join(parts[:2]), parts[2], typed
    return typed, None, typed


def _load(spec: str, name: str, config: str | None, *, split: str | None = None) -> Any:
    """Call load_dataset; return all splits by name, or only `split`."""
    try:
        library = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"{error.name} is not installed; run: pip install 'featkit[datasets]'."
        ) from error
    # The library would report each load to another server.
    library.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        with _bars_on_terminals(library):
            return library.load_dataset(name, config, split=split)
    # The library lets some exceptions of HTTP libraries through, and they share no base class.
    except Exception as error:
        failure = None if Path(name).exists() else why_failed(error)
        if failure is not None:
            raise EnvironmentProblem(
                f"{spec} cannot be fetched, since the hub {failure.what}; {failure.advice}. Or name"
                " a folder: hf:FOLDER."
            ) from error
        if isinstance(error, ConnectionError):
            raise EnvironmentProblem(
                f"{spec} cannot be fetched ({one_line(error)}); check the network, or name a"
                " folder: hf:FOLDER."
            ) from error
        if isinstance(error, ValueError | OSError | library.exceptions.DatasetsError):
            raise InputError(f"{spec} cannot be opened: {one_line(error)}.") from error
        raise


def _absolute(path: str | Path) -> Path:
    """Return the path without `..` but with its symbolic links: caches and home folders are often
    such links."""
    return Path(os.path.normpath(Path(path).absolute()))


def _cache_folders() -> list[Path]:
    """Return the folders in which the library and the Hub's client keep downloads."""
    library, client = (
        importlib.import_module("datasets.config"),
        importlib.import_module("huggingface_hub.constants"),
    )
    return [
        Path(library.HF_DATASETS_CACHE),
        Path(library.DOWNLOADED_DATASETS_PATH),
        Path(client.HF_HUB_CACHE),
    ]


@contextmanager
def _bars_on_terminals(library: Any) -> Iterator[None]:
    """Keep the library's progress bars out of logs and pipes."""
    hide = not sys.stderr.isatty() and not library.are_progress_bars_disabled()
    if hide:
        library.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            library.enable_progress_bars()
