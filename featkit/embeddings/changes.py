"""Find the rows of an embeddings folder to embed again: changed files, and failures to retry."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa

from featkit.backends import Cancel, Cancelled
from featkit.embeddings.columns import as_text, metadata_of
from featkit.embeddings.folder import Embeddings
from featkit.errors import InputError
from featkit.sources import Source
from featkit.stamps import NO_STAMP, Stamp, digest_of, stamp_of

CHECKED_AHEAD = 2  # shards per worker


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """The items of one shard to embed again: `changed` and `retried`. failed: items that have no
    embedding yet."""

    shard: int
    num_rows: int
    stamps: list[Stamp]  # of its items, in order, to be stored
    written: bool  # whether the folder holds these stamps already
    failed: set[int]
    changed: set[int]
    retried: set[int]

    @property
    def redo(self) -> set[int]:
        """All items to embed again."""
        return self.changed | self.retried


def check_shards(
    source: Source,
    folder: Embeddings,
    *,
    retry: bool,
    rehash: bool,
    num_workers: int,
    on_checked: Callable[[ShardCheck], None] = lambda _check: None,
) -> list[ShardCheck]:
    """Compare the existing shards with the source's files, several at once. A damaged shard gets no
    check, like a missing one.

    An item is embedded again if its file has another size or modification time and other bytes or
    metadata, or if its file could not be read before and can be read now. retry: also every other
    row with an error. rehash: compare the bytes of all files.

    If only size or time differ, the folder's stamps are updated here. A check keeps its stamps only
    if it has items to embed again, so that memory does not grow with the source.
    """
    missing = set(folder.missing_shards())
    existing = [shard for shard in range(folder.plan.num_shards) if shard not in missing]
    if not existing:
        return []
    checker = _Checker(source, folder, retry=retry, rehash=rehash)
    checks = []
    with _stopping_pool(num_workers, checker.cancel) as pool:
        for start in range(0, len(existing), CHECKED_AHEAD * num_workers):
            for check in pool.map(
                checker.check, existing[start : start + CHECKED_AHEAD * num_workers]
            ):
                if check is None:
                    continue
                if not check.redo:
                    if not check.written:
                        folder.write_stamps(check.shard, check.stamps)
                    check = dataclasses.replace(check, stamps=[])
                on_checked(check)
                checks.append(check)
    return checks


@contextlib.contextmanager
def _stopping_pool(num_workers: int, cancel: Cancel) -> Iterator[ThreadPoolExecutor]:
    """Yield an executor whose work ends with the block, at the next image; also on Ctrl-C."""
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="featkit-check")
    try:
        yield pool
    finally:
        cancel.set()
        pool.shutdown(wait=False, cancel_futures=True)


class _StoredRow(NamedTuple):
    """The stored state of one item: its error, the stamp of its file, and its metadata by
    column."""

    error: str | None
    stamp: Stamp
    metadata: dict[str, object]


class _Checker:
    """Compare shards with the source. Safe from any thread."""

    def __init__(self, source: Source, folder: Embeddings, *, retry: bool, rehash: bool) -> None:
        self.source, self.folder, self.retry, self.rehash = source, folder, retry, rehash
        self.cancel = Cancel()
        # The items of a container share its file.
        self._stamp_of_file = lru_cache(maxsize=1024)(stamp_of)

    def check(self, shard: int) -> ShardCheck | None:
        """Compare one shard; None if it is damaged."""
        try:
            table = self.folder.shard_table(shard, ["error", *self.folder.plan.columns])
        except InputError:
            return None
        errors = table["error"].to_pylist()
        stored_stamps = self.folder.read_stamps(shard)
        shard_ns = self.folder.shard_path(shard).stat().st_mtime_ns
        items = self.folder.shard_range(shard)
        stamps: list[Stamp] = []
        changed: set[int] = set()
        for position, item in enumerate(items):
            if self.cancel.is_set:
                raise Cancelled
            now, error = self._stamp_of(item), errors[position]
            if stored_stamps is None:
                before, never_read = _stamp_by_age(now, shard_ns), False
            else:
                before = stored_stamps[position]
                never_read = error is not None and before.digest is None
            if before.same_file(now) and not self.rehash and not never_read:
                now = before  # with its digest
            else:
                row = _StoredRow(error, before, self._metadata(table, position))
                now, same = self._compare(item, now, row)
                if not same:
                    changed.add(item)
            stamps.append(now)
        failed = {item for item, error in zip(items, errors, strict=True) if error is not None}
        return ShardCheck(
            shard=shard,
            num_rows=len(items),
            stamps=stamps,
            written=stored_stamps == stamps,
            failed=failed,
            changed=changed,
            retried=failed - changed if self.retry else set(),
        )

    def _stamp_of(self, item: int) -> Stamp:
        try:
            return self._stamp_of_file(self.source.file(item))
        except InputError:  # a damaged row does not name its file
            return NO_STAMP

    def _metadata(self, table: pa.Table, position: int) -> dict[str, object]:
        return {name: table[name][position].as_py() for name in self.folder.plan.columns}

    def _compare(self, item: int, now: Stamp, row: _StoredRow) -> tuple[Stamp, bool]:
        """Read an item; return its stamp with a digest, and whether its stored row still holds."""
        try:
            metadata = metadata_of(self.source, item)
            digest = digest_of(self.source.read(item))
        except InputError as error:
            return now, row.stamp.digest is None and as_text(str(error)) == row.error
        same_metadata = all(row.metadata[name] == metadata.get(name) for name in row.metadata)
        same = digest == row.stamp.digest and (same_metadata or row.error is not None)
        return now._replace(digest=digest), same


def _stamp_by_age(now: Stamp, shard_ns: int) -> Stamp:
    """Return a substitute for a missing stamp, in folders of earlier versions: a file newer than
    its shard counts as changed."""
    return NO_STAMP if now.mtime_ns is not None and now.mtime_ns > shard_ns else now
