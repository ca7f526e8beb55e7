"""Turn what a user typed into a source."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from featkit.errors import InputError
from featkit.images import DEFAULT_LIMITS, ImageLimits, printable
from featkit.sources.base import Source
from featkit.sources.combined import select
from featkit.sources.containers import is_container, open_container, open_containers
from featkit.sources.failures import NoImages
from featkit.sources.folder import FileSource, files_of, nothing_found
from featkit.sources.hub import HUB_PREFIX, open_hub
from featkit.sources.listing import LIST_SUFFIXES, TABLE_SUFFIXES, open_list
from featkit.sources.pattern import is_pattern, open_pattern
from featkit.sources.request import Opener, Request
from featkit.sources.rows import columns_of
from featkit.sources.saved import is_saved, open_saved
from featkit.sources.selection import EVERYTHING, Selection
from featkit.sources.walk import list_folder

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar")
TORCHVISION_PREFIX = "torchvision:"


def open_source(
    spec: str | Path,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    selection: Selection = EVERYTHING,
    column: str | None = None,
    check_column: bool = True,
) -> Source:
    """Open a folder of images, archives and Parquet files, one of these, a glob pattern, or a .txt
    list of paths.

    Also opens a folder written by the datasets library's save_to_disk, and
    `hf:NAME[/CONFIG][:SPLIT]`, which may use the network. An existing path of that name comes
    first.

    Among several archives and Parquet files, one that cannot be read is an item with an error.

    selection: which images are wanted; at least one must remain. column: short for
    the selection's column. check_column: refuse a column if the source has none; False for one
    source of several.

    InputError if the source is missing, empty, has no images, or is of another kind.
    """
    selection = selection if column is None else replace(selection, column=column)
    try:
        source = _open(Request(str(spec), Path(spec), limits, selection))
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
    """InputError if a column is chosen and none of the sources has columns."""
    if selection.column is None or any(columns_of(source) for source in sources):
        return
    names = ", ".join(source.name for source in sources)
    raise InputError(
        f"--column {selection.column} applies to Parquet files and data sets only, and {names}"
        " has none that can be read; leave it out."
    )


# Openers ------------------------------------------------------------------------------------------


def _is_saved(request: Request) -> bool:
    return request.path.is_dir() and is_saved(request.path)


def _open_saved(request: Request) -> Source:
    selection = request.selection
    saved = open_saved(
        request.path, name=request.spec, limits=request.limits, column=selection.column
    )
    return select(saved, selection)


def _open_folder(request: Request) -> Source:
    """Open a folder: the images by their paths, then the items of archives and Parquet files."""
    root = request.path
    listing = list_folder(root, request.selection)
    if not listing.containers and not listing.paths:
        raise InputError(nothing_found(str(root), listing))
    images = files_of(root, listing, limits=request.limits)
    if not listing.containers:
        return images
    containers = {path: root / path for path in sorted(listing.containers, key=os.fsencode)}
    return open_containers(request, [images], containers)


def _is_list(request: Request) -> bool:
    path = request.path
    return path.suffix.lower() in (*LIST_SUFFIXES, *TABLE_SUFFIXES) and path.is_file()


def _open_list(request: Request) -> Source:
    return select(open_list(request.path, limits=request.limits), request.selection)


def _open_file(request: Request) -> Source:
    path = request.path
    if path.name.lower().endswith(COMPRESSED_SUFFIXES):
        raise InputError(
            f"{path} is compressed and does not allow random access; unpack it, or convert it to a"
            " .tar."
        )
    image = FileSource(str(path), path.parent, [path.name], limits=request.limits)
    return select(image, request.selection)


def _open_hub(request: Request) -> Source:
    dataset = open_hub(request.spec, limits=request.limits, column=request.selection.column)
    return select(dataset, request.selection)


def _refuse_torchvision(request: Request) -> Source:
    raise InputError(
        f"{request.spec} needs torch and can only be read by featkit train; name a folder of its"
        " images here."
    )


# The first opener that recognizes a request is used. Existing paths come before other names.
OPENERS = (
    Opener(_is_saved, _open_saved),
    Opener(lambda request: request.path.is_dir(), _open_folder),
    Opener(is_container, open_container),
    Opener(_is_list, _open_list),
    Opener(lambda request: request.path.is_file(), _open_file),
    Opener(lambda request: request.spec.startswith(HUB_PREFIX), _open_hub),
    Opener(lambda request: request.spec.startswith(TORCHVISION_PREFIX), _refuse_torchvision),
    Opener(is_pattern, open_pattern),
)


def _open(request: Request) -> Source:
    for opener in OPENERS:
        if opener.recognizes(request):
            return opener.open(request)
    raise InputError(_not_a_source(request.spec, request.path))


def _not_a_source(spec: str, path: Path) -> str:
    """Return the sentence for a path without a regular file or folder."""
    if path.exists():
        return (
            f"{spec} is a pipe or a device, which can be read only once; write its data to a file,"
            " and name that."
        )
    if path.is_symlink():
        return (
            f"{spec} is a link to {printable(str(path.readlink()))}, which does not exist; name an"
            " existing file."
        )
    # A Path keeps only one slash of an address.
    if address := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=.)", spec):
        rest = spec[address.end() :]
        if address[1].lower() == "file":
            return f"file:///{rest} is an address; name the path itself: /{rest}."
        return f"{address[1]}://{rest} is an address, not a file; download it, and name the file."
    if re.search(r"\{[^{}]*(,|\.\.)[^{}]*\}", spec):
        return (
            f"{spec} does not exist: braces are not expanded here; name a pattern such as"
            " 'shard-*.tar', or a folder."
        )
    return (
        f"{spec} does not exist; name a folder of images, a .tar, a .parquet, or a .txt list of"
        " paths."
    )
