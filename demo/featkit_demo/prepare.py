"""From a folder of images, or from nothing, to an index that the page can open; kept in a cache
folder and kept up to date.

cache/gallery-<digest of the drawing code>/       the sample gallery
cache/<digest of the source's path, the model and its precision>/
    photos.index                                  the index
    listing.json                                  size and time of change of every image that is in it, null while it is not;
                                                  digests of their bytes, and which of them failed
    embeddings-<digest>                           only while new images are embedded; a stop there goes on

A second run embeds what is new or changed and removes what is gone. The listing names an image
before the index has it and gives its stamp only afterwards, so that a stop at any moment costs work
and no correctness.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy
import PIL

from featkit.atomic import explain_os_errors, replace_folder, write_text
from featkit.backends import BF16
from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.errors import InputError
from featkit.index import Index
from featkit.pipeline import EmbedOptions, EmbedReport, embed_source
from featkit.resources import cache_folder, usable_cpus
from featkit.sources import Source, open_source, subset
from featkit.sources.rows import column_notes
from featkit.sources.selection import EVERYTHING, Selection
from featkit.stamps import digest_of, stamp_of
from featkit_demo.gallery import NUM_VIEWS, OBJECTS, SCENES, TEXTURES, draw_gallery

INDEX, LISTING = "photos.index", "listing.json"
NUM_INSTANCES = 2
COMPARED_AT_ONCE = 64  # files that are read between two reports of progress
REMEMBERED = "featkit-demo-listing-2"  # the format of listing.json
EARLIER = "featkit-demo-listing-1"  # had stamps alone

Size: TypeAlias = list[int]  # size in bytes and time of change in ns, as JSON gives them back
# What reports progress: called with a label and a total, entered, then called with done and failed.
Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]


@dataclass
class Listing:
    """What is known of the images in an index, by key."""

    images: dict[str, Size | None]  # None while an image is embedded
    digests: dict[str, str]  # of those that could be read
    failed: list[str]  # those that have no embedding


@dataclass(frozen=True)
class Prepared:
    """An index ready to be opened, and what it took: images embedded now and removed, and the
    first failures: key and why."""

    index: Path
    num_embedded: int
    num_removed: int
    failures: tuple[tuple[str, str], ...]
    skipped: Mapping[str, int]  # files of the images' folder that were passed over, by reason
    notes: tuple[str, ...] = ()  # which column was read, where there are several


def default_cache() -> Path:
    """featkit's cache folder: $FEATKIT_CACHE, $XDG_CACHE_HOME/featkit, or ~/.cache/featkit."""
    return cache_folder()


def prepare_gallery(cache: Path, *, progress: Progress) -> Path:
    """The folder of the sample gallery, drawn at the first call for this version of the drawing
    code."""
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
    """The index over `images` (whatever open_source takes) by a model file, made or brought up to
    date in the cache.

    selection: which of the images are wanted; the cache itself is never read. Images whose size
    or time of change is another are embedded again, and those that could not be read. retry: also
    all that failed. rehash: also those of other bytes, for which all files are read. InputError
    where there are no images or none can be embedded; EnvironmentProblem where the cache cannot
    be written or another process is at it; Interrupted on Ctrl-C, with what was embedded kept.
    """
    source = open_source(
        images, selection=dataclasses.replace(selection, own=[*selection.own, cache])
    )
    stamps = _stamps(source)
    embedder = Embedder(model, threads=1)
    chosen = [] if selection.column is None else [f"column {selection.column}"]
    place = cache / _digest(
        str(images.resolve()), embedder.fingerprint, *_precision_of(embedder), *chosen
    )
    notes = tuple(column_notes(source))
    with explain_os_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    known = _read_listing(place / LISTING) if (place / INDEX).is_dir() else Listing({}, {}, [])
    again = {key for key in known.failed if retry or key not in known.digests}
    keys = [source.key(number) for number in range(len(source))]
    changed = [
        number
        for number, key in enumerate(keys)
        if stamps[key] is None or stamps[key] != known.images.get(key) or key in again
    ]
    if rehash:
        changed = sorted(
            {*changed, *_exchanged(source, set(range(len(source))) - set(changed), known, progress)}
        )
    gone = sorted(known.images.keys() - stamps.keys())
    if not changed and not gone and (place / INDEX).is_dir():
        return Prepared(place / INDEX, 0, 0, (), source.skipped, notes)
    with _open_or_create(place / INDEX, embedder) as index:
        report = EmbedReport(num_items=len(changed))
        if changed:
            # First, so that whatever a stop leaves of these images in the index is done anew, or
            # removed with them.
            redone = dict.fromkeys(keys[number] for number in changed)
            _write_listing(
                place / LISTING, dataclasses.replace(known, images=known.images | redone)
            )
            # A changed image that can no longer be read must not be found by what it was.
            index.remove(redone)
            digest = _digest(
                json.dumps([[keys[number], stamps[keys[number]]] for number in changed])
            )
            with _embedded(
                subset(source, changed),
                place / f"embeddings-{digest}",
                embedder,
                progress,
                retry,
                rehash,
            ) as made:
                report, embeddings = made
                index.add_embeddings(embeddings, apart=stamps)
                _note(known, redone, embeddings)
        num_removed = index.remove(gone)
        if len(index) == 0:
            reason = report.failures[0][1] if report.failures else "there are none"
            raise InputError(f"No image of {images} could be embedded: {reason}")
    digests = {key: digest for key, digest in known.digests.items() if key in stamps}
    _write_listing(
        place / LISTING, Listing(stamps, digests, [key for key in known.failed if key in stamps])
    )
    num_embedded = len(changed) - report.num_failed
    return Prepared(
        place / INDEX, num_embedded, num_removed, tuple(report.failures), source.skipped, notes
    )


@contextmanager
def _embedded(
    part: Source, folder: Path, embedder: Embedder, progress: Progress, retry: bool, rehash: bool
) -> Iterator[tuple[EmbedReport, Embeddings]]:
    """The embeddings of a part of a source, in a folder that is removed after the block."""
    for other in folder.parent.glob("embeddings-*"):
        if other != folder:  # of a listing that is no longer true
            shutil.rmtree(other)
    with progress("embedding", len(part)) as on_progress:
        options = EmbedOptions(retry=retry, rehash=rehash)
        report = embed_source(part, embedder, folder, options, on_progress=on_progress)
    yield report, Embeddings.open(folder)
    shutil.rmtree(folder)


def _note(known: Listing, redone: Collection[str], embeddings: Embeddings) -> None:
    """Bring digests and failures of the images that were embedded now up to date."""
    known.digests = {key: digest for key, digest in known.digests.items() if key not in redone}
    known.failed = [key for key in known.failed if key not in redone]
    for shard in range(embeddings.plan.num_shards):
        table = embeddings.shard_table(shard, ["key", "error"])
        rows = zip(
            table["key"].to_pylist(),
            table["error"].to_pylist(),
            embeddings.read_stamps(shard) or [],
            strict=False,
        )
        for key, error, stamp in rows:
            if stamp.digest is not None:
                known.digests[key] = stamp.digest.hex()
            if error is not None:
                known.failed.append(key)


def _exchanged(
    source: Source, numbers: Collection[int], known: Listing, progress: Progress
) -> list[int]:
    """Those of the items whose bytes are other ones than when they were embedded, or are not known."""

    def differs(number: int) -> bool:
        try:
            digest = digest_of(source.read(number)).hex()
        except InputError:
            return True
        return digest != known.digests.get(source.key(number))

    found = []
    with (
        progress("comparing", len(numbers)) as on_progress,
        ThreadPoolExecutor(usable_cpus()) as pool,
    ):
        ordered = sorted(numbers)
        for start in range(0, len(ordered), COMPARED_AT_ONCE):
            some = ordered[start : start + COMPARED_AT_ONCE]
            found += [
                number for number, other in zip(some, pool.map(differs, some), strict=True) if other
            ]
            on_progress(start + len(some), 0)
    return found


def _open_or_create(path: Path, embedder: Embedder) -> Index:
    if path.is_dir():
        return Index.open(path, writable=True)
    return Index.create(path, model=embedder.model_path, run=embedder.run)


def _precision_of(embedder: Embedder) -> tuple[str, ...]:
    """What tells the cached indexes of one model apart: vectors in bf16 do not go into an index of
    others."""
    return (BF16,) if embedder.run.precision == BF16 else ()


def _stamps(source: Source) -> dict[str, Size | None]:
    """The stamp of every key: of its file, or of the container it lies in; None where there is none
    to be had."""

    @cache
    def stamp(file: Path) -> Size | None:
        size, mtime_ns, _ = stamp_of(file)
        return None if size is None or mtime_ns is None else [size, mtime_ns]

    return {source.key(number): stamp(source.file(number)) for number in range(len(source))}


def _read_listing(file: Path) -> Listing:
    """What is in the index already; nothing where the file is missing or of another format, so that
    all is done anew."""
    try:
        listing = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return Listing({}, {}, [])
    if not isinstance(listing, dict) or listing.get("format") not in (REMEMBERED, EARLIER):
        return Listing({}, {}, [])
    images = listing["images" if "images" in listing else "pictures"]  # the older name
    return Listing(images, listing.get("digests", {}), listing.get("failed", []))


def _write_listing(file: Path, listing: Listing) -> None:
    write_text(
        file, json.dumps({"format": REMEMBERED, **dataclasses.asdict(listing)}, ensure_ascii=True)
    )


def _drawing_digest() -> str:
    """Changes with the drawing code and with what it draws with."""
    here = Path(__file__).parent
    files = [here / "gallery.py", *sorted((here / "drawing").glob("*.py"))]
    return _digest(
        numpy.__version__, PIL.__version__, *(file.read_text(encoding="utf-8") for file in files)
    )


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]
