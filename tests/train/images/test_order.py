"""Promises of the order of images: exact, keyed by the seed, shared by processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.errors import InputError
from featkit.sources import open_source, subset
from featkit.sources.locality import Locality, locality_of
from featkit_train.config import Resolution
from featkit_train.images.crops import CropKey
from featkit_train.images.order import EpochOrder, draw_order, split_held_out
from featkit_train.random_streams import rng_for
from tests.images import draw_folder
from tests.train.images.datasets import (
    REPEATED,
    keys_by_epoch,
)


def test_epoch_shows_each_image_once_in_a_new_order() -> None:
    order = EpochOrder(np.arange(10, 23), batch_size=4, seed=0, first_step=0, last_step=6)
    keys = [key for batch in order for key in batch]
    first, second = [n for e, n, _ in keys if e == 0], [n for e, n, _ in keys if e == 1]
    assert len(first) == len(set(first)) == len(second) == len(set(second)) == 12
    assert set(first) <= set(range(10, 23))
    assert first != second


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="fewer than a batch of 8"):
        EpochOrder(np.arange(5), batch_size=8, seed=0, first_step=0, last_step=1)


def test_held_out_images_are_a_tenth_at_most() -> None:
    train, held_out = split_held_out(55, wanted=100, seed=1)
    assert len(held_out) == 5
    assert sorted([*train, *held_out]) == list(range(55))
    again = split_held_out(55, wanted=100, seed=1)[1]
    assert np.array_equal(held_out, again)
    assert not np.array_equal(held_out, split_held_out(55, wanted=100, seed=2)[1])


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(4, 40),
    batch=st.integers(1, 4),
    size=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    first=st.integers(0, 30),
    steps=st.integers(1, 10),
)
def test_order_is_keyed_by_seed_and_sliced_by_process(
    count: int, batch: int, size: int, seed: int, first: int, steps: int
) -> None:
    indices = np.arange(count) * 3

    def order(
        *, seed: int = seed, first_step: int = 0, rank: int = 0, size: int = 1
    ) -> list[list[CropKey]]:
        last = first + steps
        batch_size = batch * size_of_batch
        found = EpochOrder(
            indices,
            batch_size=batch_size,
            seed=seed,
            first_step=first_step,
            last_step=last,
            rank=rank,
            size=size,
        )
        return list(found)

    size_of_batch = size if batch * size <= count else 1
    size = size_of_batch
    whole = order()
    assert order() == whole
    assert order(first_step=first) == whole[first:]
    slices = [order(rank=rank, size=size) for rank in range(size)]
    assert [[key for part in parts for key in part] for parts in zip(*slices, strict=True)] == whole
    per_epoch = count // (batch * size)
    for step, keys in enumerate(whole):
        assert {epoch for epoch, _, _ in keys} == {step // per_epoch}
    for epoch in range(len(whole) // per_epoch):
        shown = [
            index
            for keys in whole[epoch * per_epoch : (epoch + 1) * per_epoch]
            for _, index, _ in keys
        ]
        assert len(shown) == len(set(shown)) == per_epoch * batch * size
        assert set(shown) <= set(indices.tolist())


MIB = 2**20


@pytest.mark.parametrize("group_mib", [1, 8, 200])
def test_order_reads_from_a_few_row_groups_at_a_time(group_mib: int) -> None:
    rows, num_groups, num_free = 50, 100, 1000
    group_of = np.concatenate([np.repeat(np.arange(num_groups), rows), np.full(num_free, -1)])
    locality = Locality(group_of, np.full(num_groups, group_mib * MIB))
    first, again, second = (
        draw_order(rng_for(seed, 0), len(group_of), locality) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert np.array_equal(np.sort(first), np.arange(len(group_of)))
    active = min(32, max(3, 64 // group_mib))
    groups = group_of[first]
    opened: dict[int, int] = {}
    closed: dict[int, int] = {}
    for key, group in enumerate(groups.tolist()):
        opened.setdefault(group, key)
        closed[group] = key
    at_once = [
        sum(opened[group] <= key <= closed[group] for group in range(num_groups))
        for key in range(0, len(groups), 7)
    ]
    assert max(at_once) <= active + 1
    assert np.median(at_once) >= active * 0.7, "rows of several groups are mixed"
    assert list(opened) != sorted(opened), "groups are shuffled"
    free = np.flatnonzero(groups < 0) / len(groups)
    assert abs(free.mean() - 0.5) < 0.05, "items that lie in no group come anywhere"


def test_order_over_few_bytes_is_uniform() -> None:
    locality = Locality(np.repeat(np.arange(4), 10), np.full(4, 16 * MIB))
    for small in (locality, Locality(np.full(40, -1), np.zeros(0, np.int64)), None):
        assert np.array_equal(draw_order(rng_for(0, 0), 40, small), rng_for(0, 0).permutation(40))


def test_order_by_row_groups_is_sliced_and_resumed() -> None:
    locality = Locality(np.repeat(np.arange(30), 8), np.full(30, 20 * MIB))
    indices = np.arange(240)[np.arange(240) % 3 > 0]  # the rest is held out

    def order(first_step: int = 0, rank: int = 0, size: int = 1) -> list[list[CropKey]]:
        return list(
            EpochOrder(
                indices,
                batch_size=8,
                seed=5,
                first_step=first_step,
                last_step=40,
                rank=rank,
                size=size,
                locality=locality,
            )
        )

    whole = order()
    assert order(first_step=25) == whole[25:]
    slices = [order(rank=rank, size=2) for rank in range(2)]
    assert [[*left, *right] for left, right in zip(*slices, strict=True)] == whole
    shown = [index for keys in whole[:20] for _, index, _ in keys]
    assert sorted(shown) == indices.tolist()


def test_locality_of_a_parquet_file_is_its_row_groups(tmp_path: Path) -> None:
    rows = [{"bytes": bytes([index]) * 1_000_000, "path": "x"} for index in range(10)]
    table = pa.table(
        {"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4, compression="none")
    draw_folder(tmp_path / "images", 2)
    whole = open_source(tmp_path)
    found = locality_of(subset(whole, [0, 1, 2, 6, 11]))
    assert found.group_of.tolist() == [-1, -1, 0, 1, 2]
    assert found.num_bytes.tolist() == pytest.approx([4e6, 4e6, 2e6], rel=0.6)  # with statistics


def test_repeated_image_has_a_new_key_each_time() -> None:
    by_epoch = keys_by_epoch(REPEATED, epochs=4)
    for keys in by_epoch:
        assert sorted(index for _, index, _ in keys) == sorted(REPEATED.tolist())
    everything = [key for keys in by_epoch for key in keys]
    assert len(everything) == len(set(everything)) == 32
    assert by_epoch[0] != by_epoch[1]


@settings(max_examples=50, deadline=None)
@given(
    indices=st.lists(st.integers(0, 9), min_size=4, max_size=20).map(
        lambda drawn: drawn[: len(drawn) // 4 * 4]
    ),
    epochs=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_no_key_occurs_twice_whatever_is_repeated(
    indices: list[int], epochs: int, seed: int
) -> None:
    by_epoch = keys_by_epoch(np.array(indices), epochs=epochs, seed=seed)
    assert len({key for keys in by_epoch for key in keys}) == epochs * len(indices)


@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_fixed_views_of_an_image_are_taken_in_turn(num_views: int) -> None:
    by_epoch = keys_by_epoch(np.arange(8), epochs=5, num_views=num_views)
    assert [{view for view, _, _ in keys} for keys in by_epoch] == [
        {epoch % num_views} for epoch in range(5)
    ]
    assert by_epoch != keys_by_epoch(np.arange(8), epochs=5)


def test_repeated_image_takes_its_views_in_turn() -> None:
    by_epoch = keys_by_epoch(REPEATED, epochs=4, num_views=4)
    for index, times in ((3, 3), (8, 2), (7, 1)):
        views = [sorted(view for view, each, _ in keys if each == index) for keys in by_epoch]
        assert views == [
            sorted((epoch * 3 + time) % 4 for time in range(times)) for epoch in range(4)
        ]
        assert all(len(set(seen)) == times for seen in views)


def test_batch_without_equal_slices_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"run\.batch_size 4 cannot be shared by 3 processes alike"
    ):
        EpochOrder(np.arange(9), batch_size=4, seed=0, first_step=0, last_step=1, size=3)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 300), wanted=st.integers(0, 50), seed=st.integers(0, 2**32))
def test_split_holds_every_image_once(count: int, wanted: int, seed: int) -> None:
    learned, held_out = split_held_out(count, wanted=wanted, seed=seed)
    assert sorted([*learned, *held_out]) == list(range(count))
    assert len(held_out) == min(wanted, count // 10)
    assert learned.tolist() == sorted(learned)
    assert held_out.tolist() == sorted(held_out)


SIZES = (
    Resolution(share=3.0, global_size=32, local_size=16),
    Resolution(share=1.0, global_size=64, local_size=32),
)


def test_steps_draw_one_resolution_by_its_share() -> None:
    def order(*, first_step: int = 0, seed: int = 0) -> list[list[CropKey]]:
        shares = [size.share for size in SIZES]
        return list(
            EpochOrder(
                np.arange(8),
                batch_size=4,
                seed=seed,
                first_step=first_step,
                last_step=400,
                shares=shares,
            )
        )

    drawn = [{resolution for _, _, resolution in keys} for keys in order()]
    assert all(len(step) == 1 for step in drawn)
    assert sum(step == {1} for step in drawn) == pytest.approx(100, abs=30)
    assert order(first_step=300) == order()[300:]
    assert order(seed=1) != order()
