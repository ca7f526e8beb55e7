"""Make an index equal to a source."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from featkit.embeddings.columns import Metadata, metadata_of
from featkit.errors import InputError, Interrupted
from featkit.index import Index, IndexState
from featkit.index.records import KnownFile, Value, same_metadata
from featkit.modelfile import read_manifest
from featkit.sources import Source, open_source, subset
from featkit.sources.rows import column_notes
from featkit.sources.selection import EVERYTHING, Selection
from featkit.syncing.applying import Applier, source_metadata, source_name
from featkit.syncing.changes import Changes, Progress, find_changes
from featkit.syncing.listing import Listing
from featkit.wording import counted

FOLDER = "folder"  # metadata that follows from the key
SOURCE_SETTING = "synced_source"
# More than this share of an index is not removed without being asked to.
LARGE_SHARE, FEW = 0.5, 10


@dataclass(frozen=True, kw_only=True)
class SyncOptions:
    """How to keep an index equal to a source.

    selection: the images to include. dry_run: change nothing. keep_missing: do not remove images
    that are gone. remove_many: remove them even if they are more than half of the index.
    new_source: the index was made of another source, which this one replaces. rehash: read all
    files, to find changes that kept size and time. retry: embed again all that failed. gps: record
    where photographs were taken. workers: threads; by default as for `featkit embed`. background:
    as for `Index.open`.
    """

    selection: Selection = EVERYTHING
    dry_run: bool = False
    keep_missing: bool = False
    remove_many: bool = False
    new_source: bool = False
    rehash: bool = False
    retry: bool = False
    gps: bool = False
    workers: int | None = None
    background: bool = True

    def __post_init__(self) -> None:
        """Raise InputError for a number of threads that cannot work."""
        if self.workers is not None and self.workers < 1:
            raise InputError(f"The number of threads is {self.workers}; use 1 or more.")


@dataclass(kw_only=True)
class SyncReport:
    """Counts of images: what a run did with them, or would do.

    num_items: in the source. num_embedded: by this run. num_failed: those without an embedding;
    `failures` has the first of them that failed in this run, with key and reason. num_indexed:
    items of the index afterwards.
    """

    num_items: int
    num_indexed: int = 0
    num_embedded: int = 0
    num_new: int = 0
    num_changed: int = 0
    num_moved: int = 0
    num_copied: int = 0
    num_described: int = 0
    num_removed: int = 0
    num_missing: int = 0  # gone, but kept
    num_failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    changes: Changes = field(default_factory=Changes)
    seconds: float = 0.0


# Called with images, the index if it exists, and the number of images that it will have.
BeforeEmbedding: TypeAlias = Callable[[Source, Index | None, int], None]


def do_nothing(_source: Source, _index: Index | None, _num_after: int) -> None:
    """Let the run start."""


def no_progress(_label: str, _total: int) -> AbstractContextManager[Callable[[int, int], None]]:
    """Show no progress."""
    return nullcontext(lambda _done, _failed: None)


def sync(
    source: str | Path | Source,
    index: str | Path,
    *,
    model: str | Path | None = None,
    options: SyncOptions = SyncOptions(),
    progress: Progress = no_progress,
    before: BeforeEmbedding = do_nothing,
) -> SyncReport:
    """Make an index equal to a source: embed new and changed images, and remove gone ones.

    The index is created if it does not exist. An image that was moved or renamed keeps its vector,
    and so does one with the same bytes as another. Each commit leaves a state from which the next
    run continues. Items that were added by other means stay, unless the source has their key.

    source: what `open_source` takes, or a source. model: a model file, featkit-tiny by default; an
    existing index has its own. progress: called with a label and a total for each stage. before:
    called before anything is changed, if images will be embedded, with these images, the index or
    None for a new one, and how many images it will have; what it raises ends the run.

    InputError if the source has no images, if none could be embedded, if the index was made by
    another model or from another source, or if most of it would be removed. EnvironmentProblem if
    the index cannot be written or another process is writing it. Interrupted on Ctrl-C.
    """
    started, path = time.perf_counter(), Path(index)
    if isinstance(source, str | Path):
        own = [*options.selection.own, path]
        selection = dataclasses.replace(options.selection, own=own)
        source = open_source(source, selection=selection)
    listing = Listing(source)
    if options.dry_run and not path.exists():
        report = _planned(
            source, find_changes(listing, {}, progress=progress, rehash=False, retry=False)
        )
    else:
        if not path.exists() and len(source):
            before(source, None, len(source))
            before = do_nothing
        with _opened(path, model, options) as opened:
            try:
                report = _sync(listing, opened, options, progress, before)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"Stopped by Ctrl-C; {path} holds {counted(len(opened), 'image')}, and the same"
                    " command continues."
                ) from None
    report.seconds = time.perf_counter() - started
    return report


def _sync(
    listing: Listing,
    index: Index,
    options: SyncOptions,
    progress: Progress,
    before: BeforeEmbedding,
) -> SyncReport:
    name = source_name(listing.source)
    recorded = index.read(lambda state: state.catalogue.settings().get(SOURCE_SETTING))
    if not options.new_source:
        _refuse_other_source(index.path, recorded, name)
    known, num_items = index.read(lambda state: (state.catalogue.known_files(), len(state)))
    changes = find_changes(
        listing, known, rehash=options.rehash, retry=options.retry, progress=progress
    )
    metadata = _metadata_of(listing, known, changes)
    changes.described = index.read(lambda state: _redescribed(state, metadata))
    if options.keep_missing:
        changes.kept = sorted([*changes.kept, *changes.gone])
        changes.gone = []
    if not options.remove_many:
        _refuse_to_remove_most(index.path, known, changes, num_items)
    report = _planned(listing.source, changes)
    report.num_removed = _num_items_gone(known, changes)
    if not options.dry_run:
        if to_embed := [listing.items[key] for key in (*changes.new, *changes.changed)]:
            num_added = len(changes.new) + len(changes.copies) - report.num_removed
            before(subset(listing.source, to_embed), index, num_items + num_added)
        if recorded != name:
            index.writer().set_setting(SOURCE_SETTING, name)
        applier = Applier(listing, index, known, options, progress)
        applier.apply(changes)
        report.num_embedded, report.num_copied = applier.num_embedded, applier.num_copied
        report.failures = applier.failures
    failed, num_indexed = index.read(lambda state: (state.catalogue.failed_files(), len(state)))
    report.num_indexed, report.num_failed = num_indexed, len(failed)
    if num_indexed == 0 and not options.dry_run:
        reason = failed[0][1] if failed else "there are no images."
        raise InputError(f"No image of {listing.source.name} could be embedded: {reason}")
    return report


def _opened(path: Path, model: str | Path | None, options: SyncOptions) -> Index:
    """Open an index, or create it. InputError if `model` is given and not its own."""
    if not path.exists():
        from featkit.embedder import Embedder

        embedder = Embedder(model, threads=1)
        return Index.create(
            path, model=embedder.model_path, run=embedder.run, background=options.background
        )
    index = Index.open(path, writable=not options.dry_run, background=options.background)
    if model is not None and not index.accepts_model(read_manifest(Path(model))):
        index.close()
        raise InputError(
            f"{path} was made by {index.model_name}, not by {model}; leave --model out, or make"
            " another index."
        )
    return index


def _planned(source: Source, changes: Changes) -> SyncReport:
    """Return the report of changes before they are made."""
    return SyncReport(
        num_items=len(source),
        num_new=len(changes.new),
        num_changed=len(changes.changed),
        num_moved=len(changes.moved),
        num_copied=len(changes.copies),
        num_described=len(changes.described),
        num_removed=len(changes.gone),
        num_missing=len(changes.kept),
        skipped=source.skipped,
        notes=tuple(column_notes(source)),
        changes=changes,
    )


def _metadata_of(
    listing: Listing, known: Mapping[str, KnownFile], changes: Changes
) -> dict[str, Metadata]:
    """Return what the source knows of items that stay, besides their own bytes, by key.

    Of images that share their file, only those whose file has changed. Empty if all that is known
    is the folder, which the key tells.
    """
    busy = {*changes.new, *changes.changed, *changes.moved, *changes.copies, *changes.gone}
    touched = {*changes.touched}
    found: dict[str, Metadata] = {}
    for key, item in listing.items.items():
        has_item = key in known and known[key].item is not None
        if has_item and key not in busy and (key in touched or not listing.is_contained(item)):
            try:
                found[key] = metadata_of(listing.source, item)
            except InputError:  # an image that cannot be read
                continue
    return found if any(metadata.keys() - {FOLDER} for metadata in found.values()) else {}


def _redescribed(state: IndexState, metadata: Mapping[str, Metadata]) -> list[str]:
    """Return the keys of items whose metadata differs from the source's."""
    items = state.catalogue.items_by_key([*metadata])
    return [
        key
        for key, item in items.items()
        if not same_metadata(source_metadata(item.metadata, metadata[key]), metadata[key])
    ]


def _refuse_to_remove_most(
    index: Path, known: Mapping[str, KnownFile], changes: Changes, num_items: int
) -> None:
    num_gone = _num_items_gone(known, changes)
    nothing_else = not (changes.new or changes.changed or changes.moved or changes.touched)
    all_are_gone = num_gone == num_items and nothing_else
    if num_gone > max(FEW, LARGE_SHARE * num_items) or (num_gone and all_are_gone):
        raise InputError(
            f"{num_gone:,} of {counted(num_items, 'image')} of {index} are missing; if a disk is"
            " not mounted, mount it, and if they are really gone, add --remove-many."
        )


def _num_items_gone(known: Mapping[str, KnownFile], changes: Changes) -> int:
    """Return how many items would be removed; gone images that had failed have none."""
    return sum(known[key].item is not None for key in changes.gone)


def _refuse_other_source(index: Path, recorded: Value | None, name: str) -> None:
    if recorded is not None and recorded != name:
        raise InputError(
            f"{index} is kept equal to {recorded}, not to {name}; name that, make another index, or"
            " add --new-source if the images have moved there."
        )
