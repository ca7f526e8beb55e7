"""The work that remains in an embeddings folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from featkit.embeddings import SHOWN_FAILURES, Embeddings, ShardRow
from featkit.embeddings.changes import ShardCheck
from featkit.embeddings.remaining import FirstFailures, RemainingWork
from featkit.stamps import NO_STAMP
from tests.featkit.embeddings.plans import PLAN


@pytest.fixture
def folder(tmp_path: Path) -> Embeddings:
    """A folder for PLAN, 7 items in shards of 3, whose items all failed."""
    made = Embeddings.create(tmp_path / "emb", PLAN)
    for shard in range(PLAN.num_shards):
        made.write_shard(shard, [failed(item) for item in made.shard_range(shard)])
    return made


def failed(item: int) -> ShardRow:
    """Return the row of an item that failed."""
    return ShardRow(key=f"{item}.jpg", error=f"{item}.jpg is broken.")


def check(folder: Embeddings, shard: int, *, changed: set[int]) -> ShardCheck:
    """Return the check of a shard whose items all failed."""
    items = folder.shard_range(shard)
    return ShardCheck(
        shard=shard,
        num_rows=len(items),
        stamps=[NO_STAMP] * len(items),
        written=True,
        failed=set(items),
        changed=changed,
        retried=set(),
    )


def test_shards_without_a_check_are_written_whole(folder: Embeddings) -> None:
    work = RemainingWork(folder, [], batch_size=2)
    assert work.turns == [range(2), range(2, 3), range(3, 5), range(5, 6), range(6, 7)]
    assert [shard.num_wanted for shard in work.shards] == [3, 3, 1]
    assert (work.num_kept, work.num_kept_failed, work.failures.shown()) == (0, 0, [])


def test_changed_items_are_embedded_with_their_whole_batch(folder: Embeddings) -> None:
    checks = [check(folder, 0, changed=set()), check(folder, 1, changed={4})]
    work = RemainingWork(folder, checks, batch_size=2)
    assert work.turns == [range(3, 5), range(6, 7)]
    assert [shard.num_wanted for shard in work.shards] == [1, 1]
    assert (work.num_kept, work.num_kept_failed, work.num_changed) == (4, 4, 1)
    assert [key for key, _ in work.failures.shown()] == ["0.jpg", "1.jpg", "2.jpg", "5.jpg"]


def test_first_failures_are_shown_in_the_order_of_items() -> None:
    failures = FirstFailures({30: ("30.jpg", "broken")})
    for item in range(3 * SHOWN_FAILURES):
        failures.add(item, failed(item))
        failures.add(item, ShardRow(key="sound.jpg"))
    assert [key for key, _ in failures.shown()] == [f"{item}.jpg" for item in range(SHOWN_FAILURES)]
