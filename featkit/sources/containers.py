"""Archives and Parquet files: alone, or several of them as one source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from featkit.errors import InputError
from featkit.filetypes import NUM_BYTES, PARQUET, TAR, Kind, what_is
from featkit.images import printable
from featkit.sources.base import (
    CONTAINER_SUFFIXES,
    PARQUET_SUFFIXES,
    TAR_SUFFIXES,
    Source,
    is_image,
    suffix_of,
)
from featkit.sources.combined import Concatenation, none_left, select_any
from featkit.sources.failures import FailedItems, NoImages
from featkit.sources.parquet import ParquetSource
from featkit.sources.request import Request
from featkit.sources.tar import TarSource
from featkit.wording import counted

NO_IMAGES = "container without images"


def is_container(request: Request) -> bool:
    """Return whether the request names an archive or a Parquet file, by its suffix or its first
    bytes."""
    path = request.path
    if not path.is_file():
        return False
    return suffix_of(path.name) in CONTAINER_SUFFIXES or (
        not is_image(path.name) and _kind(path) in (TAR, PARQUET)
    )


def open_container(request: Request) -> Source:
    """Open one archive or Parquet file."""
    path = request.path
    # Keys begin with the archive's own name, which patterns may leave out.
    selection = replace(request.selection, root=f"{path.name}/")
    container = _open(path, path.name, request._replace(selection=selection))
    if not len(container):
        raise InputError(none_left(container.name, sum(container.skipped.values())))
    return container


def open_containers(
    request: Request, images: Sequence[Source], containers: Mapping[str, Path]
) -> Source:
    """Open several containers, by the prefix of their keys; their items follow those of `images`.

    A container that cannot be read is an item with an error; one without images is counted.
    InputError if nothing is left.
    """
    opened: list[Source] = []
    errors: list[InputError] = []
    skipped: Counter[str] = Counter()
    for prefix, path in containers.items():
        try:
            opened.append(_open(path, prefix, request))
        except NoImages as error:
            errors.append(error)
            skipped[NO_IMAGES] += 1
        except InputError as error:
            errors.append(error)
            opened.append(FailedItems(str(path), {prefix: str(error)}, path=path))
    parts = [*images, *opened]
    if not any(len(part) and not isinstance(part, FailedItems) for part in parts):
        raise _nothing_readable(request.spec, parts, errors, len(containers))
    return Concatenation(request.spec, parts, skipped=skipped)


def _open(path: Path, prefix: str, request: Request) -> Source:
    """Open an archive or a Parquet file. prefix: what its keys begin with."""
    if path.exists() and not path.is_file():  # a pipe would block for ever
        raise InputError(f"{printable(str(path))} is a device, not a file.")
    suffix, selection, limits = suffix_of(path.name), request.selection, request.limits
    if suffix in TAR_SUFFIXES or (suffix not in PARQUET_SUFFIXES and _kind(path) == TAR):
        return TarSource(path, limits=limits, selection=selection, prefix=prefix)
    parquet = ParquetSource(path, limits=limits, prefix=prefix, column=selection.column)
    return select_any(parquet, selection)


def _nothing_readable(
    name: str, parts: Sequence[Source], errors: Sequence[InputError], num_containers: int
) -> InputError:
    """Return the error for containers and images if no item is left."""
    if len(errors) < num_containers:
        return InputError(none_left(name, sum(sum(part.skipped.values()) for part in parts)))
    if len(errors) == 1:
        return errors[0]
    return InputError(
        f"None of the {counted(len(errors), 'container')} of {name} can be read. The first:"
        f" {errors[0]}"
    )


def _kind(path: Path) -> Kind | None:
    """Return the type of a file by its first bytes."""
    with path.open("rb") as file:
        return what_is(file.read(NUM_BYTES))
