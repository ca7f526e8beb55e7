"""The differences between a folder and an index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeAlias

from featkit.index.records import KnownFile
from featkit.resources import usable_cpus
from featkit.syncing.listing import FileState, Listing

READ_AT_ONCE = 64  # files between two progress reports

# Called with a label and a total; its context yields a function of the counts (done, failed).
Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]


@dataclass
class Changes:
    """The differences between a source and an index, by key.

    new and changed: to embed. moved: the former key of an image that has another key now, whose
    vector stays. copies: the key of an image with the same bytes, whose vector is used. touched:
    only the file's time changed. described: only the metadata changed. gone: to remove. kept:
    missing, but below a folder or archive that cannot be read now, or unreadable themselves.
    digests: of the images that were read to find this out.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)
    described: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    digests: dict[str, bytes] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return any(
            (self.new, self.changed, self.moved, self.copies, self.touched, self.described)
        ) or bool(self.gone)


def find_changes(
    listing: Listing,
    known: Mapping[str, KnownFile],
    *,
    rehash: bool = False,
    retry: bool = False,
    progress: Progress,
) -> Changes:
    """Compare a source with what an index recorded of it.

    Only images whose file has another size or time are read, and new ones if another image has the
    same size. rehash: read all. retry: embed again what failed. Metadata is not compared here.
    """
    changes = Changes()
    missing = known.keys() - listing.items.keys()
    kept = listing.hidden_by_failures(missing)
    gone = missing - kept
    suspects = [
        key
        for key, item in listing.items.items()
        if rehash or _is_suspect(listing.states[item], known.get(key), retry=retry)
    ]
    unread = _to_read(listing, suspects, known)
    changes.digests = dict(_read(listing, unread, progress))
    by_digest = {file.digest: key for key, file in known.items() if _has_item(file)}
    gone_of: dict[bytes | None, list[str]] = {}  # the gone keys of a digest, the last one first
    for key in sorted(gone, reverse=True):
        if _has_item(known[key]):
            gone_of.setdefault(known[key].digest, []).append(key)
    first: dict[bytes, str] = {}  # the first of several new images with the same bytes
    for key in suspects:
        file, digest = known.get(key), changes.digests.get(key)
        if (
            file is not None
            and digest is not None
            and digest == file.digest
            and (_has_item(file) or (file.error is not None and not retry))
        ):
            changes.touched.append(key)
            continue
        if file is not None and _has_item(file) and digest is None:
            # The file cannot be read: it is gone if it does not exist, and else nobody knows.
            (gone if listing.is_missing(listing.items[key]) else kept).add(key)
        elif digest is not None and gone_of.get(digest):
            changes.moved[key] = gone_of[digest].pop()
        elif digest is not None and digest in by_digest:
            changes.copies[key] = by_digest[digest]
        elif digest is not None and digest in first:
            changes.copies[key] = first[digest]
        else:
            if digest is not None:
                first[digest] = key
            (changes.new if file is None else changes.changed).append(key)
    changes.kept, changes.gone = sorted(kept), sorted(gone - {*changes.moved.values()})
    return changes


def _has_item(file: KnownFile) -> bool:
    return file.item is not None and file.error is None


def _is_suspect(state: FileState, file: KnownFile | None, *, retry: bool) -> bool:
    """Return whether an image is new, may have changed, or is to be embedded again."""
    return (
        file is None
        or (file.item is None and file.error is None)  # removed from the index by hand
        or (retry and file.error is not None)
        or state.mtime_ns is None
        or (state.size, state.mtime_ns) != (file.size, file.mtime_ns)
    )


def _to_read(
    listing: Listing, suspects: Iterable[str], known: Mapping[str, KnownFile]
) -> list[str]:
    """Return the suspects whose bytes decide what happened: those that were known, and new ones
    that may be another image under a new key.
    """
    states = {key: listing.states[listing.items[key]] for key in suspects}
    contained = {key for key in states if listing.is_contained(listing.items[key])}
    sizes = Counter(file.size for file in known.values())
    sizes.update(
        state.size for key, state in states.items() if key not in known and key not in contained
    )
    return [
        key
        for key, state in states.items()
        # The size of an image in an archive is not known; at the first time, all are new.
        if key in known or (bool(known) if key in contained else sizes[state.size] > 1)
    ]


def _read(listing: Listing, keys: list[str], progress: Progress) -> Iterator[tuple[str, bytes]]:
    """Yield the digests of images, without those that cannot be read."""
    if not keys:
        return
    with (
        progress("comparing", len(keys)) as on_progress,
        ThreadPoolExecutor(usable_cpus(), thread_name_prefix="featkit-compare") as pool,
    ):
        for start in range(0, len(keys), READ_AT_ONCE):
            batch = keys[start : start + READ_AT_ONCE]
            digests = pool.map(listing.digest, [listing.items[key] for key in batch])
            for key, digest in zip(batch, digests, strict=True):
                if digest is not None:
                    yield key, digest
            on_progress(start + len(batch), 0)
