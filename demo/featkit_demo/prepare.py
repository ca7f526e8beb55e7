"""The sample gallery, and the index that the page opens, in a cache folder.

    cache/gallery-<digest of the drawing code>/     the sample gallery
    cache/<digest of source, model and precision>/photos.index

The index is kept equal to the images by featkit.syncing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy
import PIL

from featkit.atomic import explain_os_errors, replace_folder
from featkit.backends import BF16
from featkit.duplicates.calibration import (
    TooFewThumbnails,
    calibrate,
    is_due,
    num_at_first,
)
from featkit.embedder import Embedder
from featkit.index import Index
from featkit.resources import cache_folder
from featkit.sources.selection import EVERYTHING, Selection
from featkit.syncing import Progress, SyncOptions, SyncReport, sync
from featkit_demo.gallery import NUM_VIEWS, OBJECTS, SCENES, TEXTURES, draw_gallery

INDEX = "photos.index"
NUM_INSTANCES = 2
VERSION = "synced"  # indexes of earlier versions do not know their files


@dataclass(frozen=True)
class Prepared:
    """An index ready to be opened, and what this run did to prepare it."""

    index: Path
    report: SyncReport


def default_cache() -> Path:
    """Return the cache folder: $FEATKIT_CACHE, $XDG_CACHE_HOME/featkit, or ~/.cache/featkit."""
    return cache_folder()


def prepare_gallery(cache: Path, *, progress: Progress) -> Path:
    """Return the folder of the sample gallery, drawing it if this version of the code has not."""
    folder = cache / f"gallery-{_drawing_digest()}"
    if not folder.is_dir():
        total = (len(OBJECTS) + len(SCENES) + len(TEXTURES)) * NUM_INSTANCES * NUM_VIEWS
        with (
            replace_folder(folder) as temporary,
            progress("drawing the sample gallery", total) as report,
        ):
            draw_gallery(
                temporary, num_instances=NUM_INSTANCES, on_progress=lambda done, _: report(done, 0)
            )
    return folder


def prepare_index(
    images: Path,
    model: Path,
    cache: Path,
    *,
    progress: Progress,
    selection: Selection = EVERYTHING,
    retry: bool = False,
    rehash: bool = False,
) -> Prepared:
    """Make the index over `images` (any source of open_source) in the cache equal to them.

    selection: the images to include; the cache folder itself is always excluded. retry and rehash
    are those of SyncOptions, and errors those of `sync`. A new index is calibrated.
    """
    embedder = Embedder(model, threads=1)
    chosen = [] if selection.column is None else [f"column {selection.column}"]
    folder = cache / _digest(
        VERSION, str(images.resolve()), embedder.fingerprint, *_precision_of(embedder), *chosen
    )
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    options = SyncOptions(
        selection=dataclasses.replace(selection, own=[*selection.own, cache]),
        remove_many=True,
        new_source=True,  # the folder's name identifies it, however it was written
        retry=retry,
        rehash=rehash,
    )
    report = sync(images, folder / INDEX, model=model, options=options, progress=progress)
    with Index.open(folder / INDEX) as index:
        if is_due(index):
            count = num_at_first(len(index))
            with suppress(TooFewThumbnails), progress("calibrating", count) as on_progress:
                calibrate(index, num_images=count, on_progress=on_progress)
    return Prepared(folder / INDEX, report)


def _precision_of(embedder: Embedder) -> tuple[str, ...]:
    """Return the part of the cache key for the precision: bf16 vectors need their own index."""
    return (BF16,) if embedder.run.precision == BF16 else ()


def _drawing_digest() -> str:
    """Return a digest of the drawing code and the versions of the libraries it uses."""
    here = Path(__file__).parent
    files = [here / "gallery.py", *sorted((here / "drawing").glob("*.py"))]
    return _digest(
        numpy.__version__, PIL.__version__, *(file.read_text(encoding="utf-8") for file in files)
    )


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]
