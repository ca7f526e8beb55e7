"""Data sets of the Hugging Face Hub, and folders in its layouts, through the `datasets` library:
`hf:NAME[/CONFIG][:SPLIT]`.

The library fetches, converts and keeps them in its own cache (HF_HOME); only a name that the user
typed is asked for.
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
    """A split that the `datasets` library opened; keys are `name/split/row`."""

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
        self._folders = [_absolute(folder) for folder in folders]  # where files of its rows may lie
        self._prefix = printable(prefix)
        self._columns = find_columns(dataset.features.arrow_schema, name, column=column)
        # As Arrow, undecoded: the library itself would open every image.
        self._dataset = dataset.select_columns(
            [self._columns.image, *self._columns.plain]
        ).with_format("arrow")
        if not len(self):
            raise InputError(f"{name} has no rows.")

    @property
    def skipped(self) -> Mapping[str, int]:
        """Return an empty mapping: every row is an item."""
        return NOTHING_SKIPPED

    @property
    def columns(self) -> Sequence[Columns]:
        """Return the choice of columns."""
        return [self._columns]

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, number: int) -> str:
        """`name/split/row`."""
        return f"{self._prefix}/{number}"

    def read(self, number: int) -> bytes:
        """The image's bytes, or those of the local file that the row names; InputError where
        there is neither."""
        row = self._row(number)
        if (own := self._own_file(row)) is not None:
            return read_file(own, limits=self.limits)
        return read_image(row, 0, self._columns, key=self.key(number), limits=self.limits)

    def metadata(self, number: int) -> Metadata:
        """All columns of text and numbers, names of class labels, and the image's `path`."""
        return read_metadata(self._row(number), 0, self._columns, key=self.key(number))

    def file(self, number: int, /) -> Path:
        """The image's own file where the row names one; else the first of the files in the cache."""
        own = self._own_file(self._row(number))
        return own or Path(*(file["filename"] for file in self._dataset.cache_files[:1]))

    def _row(self, number: int) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        row = self._dataset[number : number + 1]
        try:
            row.validate(full=True)
        except DAMAGED as error:
            raise InputError(f"{self.key(number)} is damaged: {one_line(error)}.") from error
        return row

    def _own_file(self, row: Any) -> Path | None:
        """Folders of images are not copied into the cache: their rows are paths without bytes.

        Rows come from anywhere, so only paths in the data set's own folder or the library's cache
        are opened.
        """
        path = image_path(row, 0, self._columns)
        if path is None or row[self._columns.image][0]["bytes"].is_valid:
            return None
        own = _absolute(path)
        return own if any(own.is_relative_to(folder) for folder in self._folders) else None


def open_hub(spec: str, *, limits: ImageLimits, column: str | None = None) -> Source:
    """The data set that `hf:NAME[/CONFIG][:SPLIT]` names: on the Hub, or in a folder whose name is
    given for NAME.

    InputError for a name, configuration or split that is not there; EnvironmentProblem without the
    library or the network.
    """
    match = SPEC.fullmatch(spec)
    if match is None:
        raise InputError(
            f"{spec} names no data set; write hf:NAME, hf:NAME:SPLIT or hf:NAME/CONFIG:SPLIT."
        )
    split = match["split"] or None
    name, config, prefix = _name_and_config(match["name"])
    if is_saved(Path(name)):
        return open_saved(Path(name), name=spec, split=split, limits=limits, column=column)
    example = f"{HUB_PREFIX}{match['name']}:{{}}"
    found = _load(spec, name, config)
    if split is None or re.fullmatch(r"\w+", split):
        split = choose_split(list(found), split, of=spec, example=example)
        dataset = found[split]
    else:  # train[:1000], train+test
        for part in re.split(r"\s*\+\s*", split):
            choose_split(list(found), part.split("[", 1)[0], of=spec, example=example)
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
    """What to load, its configuration, and what keys begin with."""
    path = Path(typed).expanduser()
    if path.is_dir():
        return str(path), None, path.resolve().name
    if typed.startswith(("/", ".", "~")) and path.parent.is_dir():
        return str(path.parent), path.name, f"{path.parent.resolve().name}/{path.name}"
    parts = typed.split("/")
    if len(parts) == 3:  # names are owner/name, and name for a few old ones
        return "/".join(parts[:2]), parts[2], typed
    return typed, None, typed


def _load(spec: str, name: str, config: str | None, *, split: str | None = None) -> Any:
    """load_dataset: all splits by their names, or the one asked for."""
    try:
        library = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"{error.name} is not installed; run: pip install 'featkit[datasets]'."
        ) from error
    # the library would tell another server of each load
    library.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        with _bars_on_terminals(library):
            return library.load_dataset(name, config, split=split)
    # whatever an HTTP library raises, of which the data set's library lets some through
    except Exception as error:
        failure = None if Path(name).exists() else why_failed(error)
        if failure is not None:
            raise EnvironmentProblem(
                f"{spec} cannot be fetched, since the hub {failure.what}; {failure.advice}. Or name"
                " a folder: hf:FOLDER."
            ) from error
        if isinstance(error, ConnectionError):
            raise EnvironmentProblem(
                f"{spec} cannot be fetched ({one_line(error)}); check the network, or name a folder:"
                " hf:FOLDER."
            ) from error
        if isinstance(error, ValueError | OSError | library.exceptions.DatasetsError):
            raise InputError(f"{spec} cannot be opened: {one_line(error)}.") from error
        raise


def _absolute(path: str | Path) -> Path:
    """Without `..`; with links as they stand, of which caches and users' folders are made."""
    return Path(os.path.normpath(Path(path).absolute()))


def _cache_folders() -> list[Path]:
    """Where the library and the Hub's client keep what they fetched and unpacked."""
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
    """No progress bars of the library's in logs and pipes."""
    hide = not sys.stderr.isatty() and not library.are_progress_bars_disabled()
    if hide:
        library.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            library.enable_progress_bars()
