"""Build the index that the page opens, and keep it up to date in a cache folder.

    cache/gallery-<digest of the drawing code>/     the sample gallery
    cache/<digest of source, model and precision>/
        photos.index                                the index
        listing.json                                a stamp (size and modification time) per image,
                                                    null until the image is indexed; digests of the
                                                    images' bytes; the images that failed
        embeddings-<digest>                         exists while images are embedded; an interrupted
                                                    run resumes from it

A second run embeds new and changed images and removes deleted ones. The listing names an image
before the index holds it, and records its stamp only afterwards. An interrupted run therefore
repeats some work but never leaves a wrong result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
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
COMPARED_AT_ONCE = 64  # files read between two progress reports
FORMAT = "featkit-demo-listing-2"  # of listing.json
OLD_FORMAT = "featkit-demo-listing-1"  # stamps only

Stamp: TypeAlias = list[int]  # size in bytes and modification time in ns; a list, as in JSON
# Called with a label and a total; its context yields a function of the counts (done, failed).
Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]


@dataclass
class Listing:
    """The record of the images in an index, by key."""

    images: dict[str, Stamp | None]  # None until the image is indexed
    digests: dict[str, str]  # of the bytes of every readable image
    failed: list[str]  # images without an embedding


@dataclass(frozen=True)
class Prepared:
    """An index ready to be opened, and the work this run did to prepare it."""

    index: Path
    num_embedded: int
    num_removed: int
    failures: tuple[tuple[str, str], ...]  # key and reason of the first ones
    skipped: Mapping[str, int]  # files that are not images, by reason
    notes: tuple[str, ...] = ()  # for example, which of several columns was read


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
    """Create or update the index over `images` (any source of open_source) in the cache.

    Images whose size or modification time changed are embedded again, and so are images that could
    not be read.

    selection: the images to include; the cache folder itself is always excluded.
    retry: embed every image again that failed.
    rehash: compare the bytes of all files, and embed again the images whose bytes changed.

    InputError if there are no images or none can be embedded. EnvironmentProblem if the cache
    cannot be written or another process is using it. Interrupted on Ctrl-C; finished embeddings
    are kept.
    """
    source = open_source(
        images, selection=dataclasses.replace(selection, own=[*selection.own, cache])
    )
    stamps = _stamps(source)
    embedder = Embedder(model, threads=1)
    chosen = [] if selection.column is None else [f"column {selection.column}"]
    folder = cache / _digest(
        str(images.resolve()), embedder.fingerprint, *_precision_of(embedder), *chosen
    )
    notes = tuple(column_notes(source))
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = _read_listing(folder / LISTING) if (folder / INDEX).is_dir() else Listing({}, {}, [])
    keys = [source.key(item) for item in range(len(source))]
    outdated = _outdated(stamps, known, retry=retry)
    changed = {item for item, key in enumerate(keys) if key in outdated}
    if rehash:
        changed |= {*_exchanged(source, {*range(len(source))} - changed, known, progress)}
    gone = sorted(known.images.keys() - stamps.keys())
    if not changed and not gone and (folder / INDEX).is_dir():
        return Prepared(folder / INDEX, 0, 0, (), source.skipped, notes)
    with _open_or_create(folder / INDEX, embedder) as index:
        report = EmbedReport(num_items=len(changed))
        if changed:
            # Recorded first: whatever an interrupted run leaves of these images in the index is
            # then embedded again or removed.
            items = sorted(changed)
            redone = dict.fromkeys(keys[item] for item in items)
            _write_listing(
                folder / LISTING, dataclasses.replace(known, images=known.images | redone)
            )
            # An image that is no longer readable must not be found by its old content.
            index.remove(redone)
            digest = _digest(json.dumps([[key, stamps[key]] for key in redone]))
            with _embedded(
                subset(source, items),
                folder / f"embeddings-{digest}",
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
            reason = report.failures[0][1] if report.failures else "there are no images."
            raise InputError(f"No image of {images} could be embedded: {reason}")
    digests = {key: digest for key, digest in known.digests.items() if key in stamps}
    _write_listing(
        folder / LISTING, Listing(stamps, digests, [key for key in known.failed if key in stamps])
    )
    num_embedded = len(changed) - report.num_failed
    return Prepared(
        folder / INDEX, num_embedded, num_removed, tuple(report.failures), source.skipped, notes
    )


def _outdated(stamps: Mapping[str, Stamp | None], known: Listing, *, retry: bool) -> set[str]:
    """Return the keys of new and changed images, unreadable ones, and with `retry` failed ones."""
    failed = {key for key in known.failed if retry or key not in known.digests}
    return {
        key
        for key, stamp in stamps.items()
        if stamp is None or stamp != known.images.get(key) or key in failed
    }


@contextmanager
def _embedded(
    source: Source, folder: Path, embedder: Embedder, progress: Progress, retry: bool, rehash: bool
) -> Iterator[tuple[EmbedReport, Embeddings]]:
    """Embed a source, and yield the report and the embeddings; their folder lasts for the block."""
    for other in folder.parent.glob("embeddings-*"):
        if other != folder:  # of an outdated listing
            shutil.rmtree(other)
    with progress("embedding", len(source)) as on_progress:
        options = EmbedOptions(retry=retry, rehash=rehash)
        report = embed_source(source, embedder, folder, options, on_progress=on_progress)
    yield report, Embeddings.open(folder)
    shutil.rmtree(folder)


def _note(known: Listing, redone: Collection[str], embeddings: Embeddings) -> None:
    """Update the digests and failures of the images embedded by this run."""
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
    source: Source, items: Collection[int], known: Listing, progress: Progress
) -> list[int]:
    """Return the items whose bytes differ from those embedded, or have no recorded digest."""

    def differs(item: int) -> bool:
        try:
            digest = digest_of(source.read(item)).hex()
        except InputError:
            return True
        return digest != known.digests.get(source.key(item))

    changed: list[int] = []
    with (
        progress("comparing", len(items)) as on_progress,
        ThreadPoolExecutor(usable_cpus()) as pool,
    ):
        ordered = sorted(items)
        for start in range(0, len(ordered), COMPARED_AT_ONCE):
            batch = ordered[start : start + COMPARED_AT_ONCE]
            changed += itertools.compress(batch, pool.map(differs, batch))
            on_progress(start + len(batch), 0)
    return changed


def _open_or_create(path: Path, embedder: Embedder) -> Index:
    if path.is_dir():
        return Index.open(path, writable=True)
    return Index.create(path, model=embedder.model_path, run=embedder.run)


def _precision_of(embedder: Embedder) -> tuple[str, ...]:
    """Return the part of the cache key for the precision: bf16 vectors need their own index."""
    return (BF16,) if embedder.run.precision == BF16 else ()


def _stamps(source: Source) -> dict[str, Stamp | None]:
    """Return the stamp of each key's file, or of its container; None if the file has no stamp."""

    @cache
    def stamp(file: Path) -> Stamp | None:
        size, mtime_ns, _ = stamp_of(file)
        return None if size is None or mtime_ns is None else [size, mtime_ns]

    return {source.key(item): stamp(source.file(item)) for item in range(len(source))}


def _read_listing(file: Path) -> Listing:
    """Read the listing; an empty one if the file is missing or in another format.

    With an empty listing, every image is embedded again.
    """
    try:
        listing = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return Listing({}, {}, [])
    if not isinstance(listing, dict) or listing.get("format") not in (FORMAT, OLD_FORMAT):
        return Listing({}, {}, [])
    images = listing["images" if "images" in listing else "pictures"]  # its former name
    return Listing(images, listing.get("digests", {}), listing.get("failed", []))


def _write_listing(file: Path, listing: Listing) -> None:
    write_text(
        file, json.dumps({"format": FORMAT, **dataclasses.asdict(listing)}, ensure_ascii=True)
    )


def _drawing_digest() -> str:
    """Return a digest of the drawing code and the versions of the libraries it uses."""
    here = Path(__file__).parent
    files = [here / "gallery.py", *sorted((here / "drawing").glob("*.py"))]
    return _digest(
        numpy.__version__, PIL.__version__, *(file.read_text(encoding="utf-8") for file in files)
    )


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]
