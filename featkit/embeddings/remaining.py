"""The work that remains: missing and damaged shards, and rows to embed again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from featkit.embeddings.changes import ShardCheck
from featkit.embeddings.folder import SHOWN_FAILURES, Embeddings
from featkit.embeddings.shards import ShardRow


class RemainingWork:
    """The shards to write, in order, and counts of what is kept.

    num_kept: items whose row stays. num_kept_failed: kept items without an embedding.
    """

    def __init__(
        self, folder: Embeddings, checks: Sequence[ShardCheck], *, batch_size: int
    ) -> None:
        """Plan the work. checks: one for each shard that exists and is not damaged."""
        self.shards = _shards_to_write(folder, checks, batch_size)
        again = {
            item
            for shard in self.shards
            if shard.check is not None
            for turn in shard.turns
            for item in turn
        }
        self.num_items = len(folder)
        self.num_kept = sum(check.num_rows for check in checks) - len(again)
        self.num_kept_failed = sum(len(check.failed - again) for check in checks)
        self.num_changed = sum(len(check.changed) for check in checks)
        self.num_retried = sum(len(check.retried) for check in checks)
        self.failures = FirstFailures(_kept_failures(folder, checks, again))

    @property
    def turns(self) -> list[range]:
        """The items of each batch, in order."""
        return [turn for shard in self.shards for turn in shard.turns]


@dataclass(frozen=True)
class ShardWork:
    """A shard to write or to update. turns: its batches to embed. check: what it keeps; None if it
    is new or damaged."""

    folder: Embeddings
    shard: int
    turns: list[range]
    check: ShardCheck | None

    @property
    def num_wanted(self) -> int:
        """The number of items that need a new row; those that share a batch with them get one
        too."""
        return sum(map(len, self.turns)) if self.check is None else len(self.check.redo)

    def write(self, rows: dict[int, ShardRow]) -> None:
        """Write the shard and its stamps. rows: one for each item of the turns.

        The order never leaves the stamp of an image that the shard does not hold.
        """
        items = self.folder.shard_range(self.shard)
        if self.check is None:
            ordered = [rows[item] for item in items]
            # Remove a damaged shard first: if the process stops before the new shard is written,
            # the new stamps must not be taken for those of the old one.
            self.folder.shard_path(self.shard).unlink(missing_ok=True)
            self.folder.write_stamps(self.shard, [row.stamp for row in ordered])
            self.folder.write_shard(self.shard, ordered)
            return
        stored = zip(items, self.folder.read_rows(self.shard), self.check.stamps, strict=True)
        merged = [
            (
                dataclasses.replace(rows[item], key=old.key)
                if item in rows
                else dataclasses.replace(old, stamp=stamp)
            )
            for item, old, stamp in stored
        ]
        self.folder.write_shard(self.shard, merged)
        self.folder.write_stamps(self.shard, [row.stamp for row in merged])


class FirstFailures:
    """Key and error of the first items without an embedding."""

    def __init__(self, known: dict[int, tuple[str, str]]) -> None:
        self._by_item = known

    def add(self, item: int, row: ShardRow) -> None:
        """Add an item if it failed. Items must come in ascending order."""
        if row.error is not None and len(self._by_item) < 2 * SHOWN_FAILURES:
            self._by_item[item] = (row.key, row.error)

    def shown(self) -> list[tuple[str, str]]:
        """Return the first SHOWN_FAILURES, in the order of the items."""
        return [self._by_item[item] for item in sorted(self._by_item)[:SHOWN_FAILURES]]


def _shards_to_write(
    folder: Embeddings, checks: Sequence[ShardCheck], batch_size: int
) -> list[ShardWork]:
    """Return the shards to write, in order.

    Batches are cut by position in the shard, so they are the same whatever is missing.
    """
    check_of = {check.shard: check for check in checks}
    work = []
    for shard in range(folder.plan.num_shards):
        items = folder.shard_range(shard)
        turns = [
            range(start, min(start + batch_size, items.stop))
            for start in range(items.start, items.stop, batch_size)
        ]
        check = check_of.get(shard)
        if check is not None:
            turns = [turn for turn in turns if not check.redo.isdisjoint(turn)]
        if turns:
            work.append(ShardWork(folder, shard, turns, check))
    return work


def _kept_failures(
    folder: Embeddings, checks: Sequence[ShardCheck], again: set[int]
) -> dict[int, tuple[str, str]]:
    """Return key and error of the first failed items that are not embedded again, by item."""
    failures: dict[int, tuple[str, str]] = {}
    for check in checks:
        failed = sorted(check.failed - again)
        if failed and len(failures) < SHOWN_FAILURES:
            table = folder.shard_table(check.shard, ["key", "error"])
            start = folder.shard_range(check.shard).start
            for item in failed[: SHOWN_FAILURES - len(failures)]:
                failures[item] = (
                    table["key"][item - start].as_py(),
                    table["error"][item - start].as_py(),
                )
    return failures
