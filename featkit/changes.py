"""Which rows of an embeddings folder no longer say what their images are: changed files, and
failures to try again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from featkit.backends import Cancel, Cancelled
from featkit.embeddings import Embeddings, column_name
from featkit.errors import InputError
from featkit.sources import Source
from featkit.stamps import NO_STAMP, Stamp, digest_of, stamp_of

CHECKED_AHEAD = 2  # shards a worker


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """What was found of one shard. `changed` and `retried` are items to embed again, `failed` those
    without an embedding."""

    shard: int
    num_rows: int
    stamps: list[Stamp]  # of its items in order, as they are to be kept
    written: bool  # whether the folder has these stamps already
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
    """Compare the shards that are there with the source's files, several at once. A damaged shard
    has no check.

    A row is to be embedded again if its file has another size or time of change and other bytes or
    metadata, or if its file could not be read before and now can. retry: also every other row with
    an error. rehash: compare the bytes of all files. Where only size or time differ, the folder's
    stamps are brought up to date. A check keeps its stamps only if it has something to embed again:
    memory does not grow with the source.
    """
    missing = set(folder.missing_shards())
    present = [shard for shard in range(folder.plan.num_shards) if shard not in missing]
    if not present:
        return []
    checker = _Checker(source, folder, retry=retry, rehash=rehash)
    checks = []
    with _stopping_pool(num_workers, checker.cancel) as pool:
        for start in range(0, len(present), CHECKED_AHEAD * num_workers):
            for check in pool.map(
                checker.check, present[start : start + CHECKED_AHEAD * num_workers]
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
    """An executor whose work ends with the block, at the next image, also on Ctrl-C."""
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="featkit-check")
    try:
        yield pool
    finally:
        cancel.set()
        pool.shutdown(wait=False, cancel_futures=True)


class _Checker:
    """Compares shards with the source, from any thread."""

    def __init__(self, source: Source, folder: Embeddings, *, retry: bool, rehash: bool) -> None:
        self.source, self.folder, self.retry, self.rehash = source, folder, retry, rehash
        self.cancel = Cancel()
        self._stamp = lru_cache(maxsize=1024)(stamp_of)  # the items of a container share its file

    def check(self, shard: int) -> ShardCheck | None:
        """Compare one shard; None if it is damaged."""
        try:
            rows = self.folder.shard_table(shard, ["error", *self.folder.plan.columns])
        except InputError:
            return None
        errors = rows["error"].to_pylist()
        stamps = self.folder.read_stamps(shard)
        # A folder that was made before there were stamps: a file that is newer than its shard has
        # changed.
        made_ns = None if stamps is not None else self.folder.shard_path(shard).stat().st_mtime_ns
        items = self.folder.shard_range(shard)
        kept: list[Stamp] = []
        changed: set[int] = set()
        retried: set[int] = set()
        for place, item in enumerate(items):
            if self.cancel.is_set:
                raise Cancelled
            now = self._stamp_of(item)
            before = self._before(stamps, place, now, made_ns)
            error = errors[place]
            unread = error is not None and before.digest is None and made_ns is None
            if not before.same_file(now) or self.rehash or unread:
                now, same = self._look_closer(item, before, now, error, rows, place)
                if not same:
                    changed.add(item)
            else:
                now = before
            if self.retry and error is not None and item not in changed:
                retried.add(item)
            kept.append(now)
        return ShardCheck(
            shard=shard,
            num_rows=len(items),
            stamps=kept,
            written=stamps == kept,
            failed={item for item, error in zip(items, errors, strict=True) if error is not None},
            changed=changed,
            retried=retried,
        )

    def _stamp_of(self, item: int) -> Stamp:
        try:
            return self._stamp(self.source.file(item))
        except InputError:  # a damaged row does not tell its file
            return NO_STAMP

    @staticmethod
    def _before(stamps: list[Stamp] | None, place: int, now: Stamp, made_ns: int | None) -> Stamp:
        if stamps is not None:
            return stamps[place]
        newer = now.mtime_ns is not None and made_ns is not None and now.mtime_ns > made_ns
        return NO_STAMP if newer else now

    def _look_closer(
        self, item: int, before: Stamp, now: Stamp, error: str | None, rows: pa.Table, place: int
    ) -> tuple[Stamp, bool]:
        """The item's stamp with its digest, and whether its row still says what it is."""
        try:
            metadata = metadata_of(self.source, item)
            digest = digest_of(self.source.read(item))
        except InputError as problem:
            return now, before.digest is None and as_text(str(problem)) == error
        now = now._replace(digest=digest)
        columns = {column_name(name): value for name, value in metadata.items()}
        known = all(
            rows[name][place].as_py() == columns.get(name) for name in self.folder.plan.columns
        )
        return now, digest == before.digest and (known or error is not None)


def metadata_of(source: Source, number: int) -> dict[str, str | int | float]:
    """Return an item's metadata as a shard holds them: valid text. InputError where the source
    cannot tell them."""
    return {
        as_text(name): as_text(value) if isinstance(value, str) else value
        for name, value in source.metadata(number).items()
    }


def as_text(text: str) -> str:
    """Return valid UTF-8: a file name in a message may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
