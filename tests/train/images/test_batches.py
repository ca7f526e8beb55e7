"""Promises of the training data: keyed randomness, exact order, nothing lost to one bad image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit import resources
from featkit.errors import InputError
from featkit.sources import open_source, subset
from featkit.sources.locality import Locality, locality_of
from featkit_train.config import ColorConfig, CropConfig, IbotConfig, Resolution
from featkit_train.images import batches as batches_module
from featkit_train.images.batches import (
    CropDataset,
    Crops,
    EpochOrder,
    ExtraViews,
    Place,
    crop_loader,
    draw_order,
    split_held_out,
    stack,
    workers_within_memory,
)
from featkit_train.random_streams import rng_for
from tests.images import draw_folder

EXTRA = ExtraViews(patch=8, masks=IbotConfig(mask_probability=0.7), gram_size=48)


def make_dataset(
    folder: Path,
    *,
    num_local: int = 2,
    cache_bytes: int = 1 << 20,
    extra: ExtraViews | None = EXTRA,
    seed: int = 3,
) -> CropDataset:
    """Crops of 32 and 16 pixels from drawn images, with masks and a Gram teacher's crops."""
    crops = CropConfig(global_size=32, local_size=16, num_local=num_local, rotation_degrees=10.0)
    return CropDataset(
        open_source(folder),
        crops=crops,
        color=ColorConfig(),
        seed=seed,
        cache_bytes=cache_bytes,
        extra=extra,
    )


def batches(
    dataset: CropDataset, *, first_step: int = 0, last_step: int = 5, workers: int = 0
) -> list[Crops]:
    """All batches of four from a loader."""
    order = EpochOrder(
        np.arange(len(dataset.source)),
        batch_size=4,
        seed=3,
        first_step=first_step,
        last_step=last_step,
    )
    return list(crop_loader(dataset, order, workers=workers))


def assert_same(left: list[Crops], right: list[Crops]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one[:6], other[:6], strict=True):
            assert torch.equal(a, b)


def test_a_batch_has_the_shapes_it_promises(tmp_path: Path) -> None:
    (crops,) = batches(make_dataset(draw_folder(tmp_path / "p", 9)), last_step=1)
    assert crops.global_images.shape == (2, 4, 3, 32, 32)
    assert crops.local_images.shape == (2, 4, 3, 16, 16)
    assert crops.global_appearance.shape == crops.local_appearance.shape == (2, 4, 7)
    assert crops.masks.shape == (2, 4, 4, 4)
    assert crops.masks.dtype == torch.bool
    assert crops.gram_images.shape == (2, 4, 3, 48, 48)
    assert crops.global_images.dtype == crops.gram_images.dtype == torch.uint8
    assert not torch.equal(crops.global_images[0], crops.global_images[1])


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 9)
    expected = batches(make_dataset(folder))
    assert_same(batches(make_dataset(folder), workers=1), expected)
    assert_same(batches(make_dataset(folder), workers=2), expected)


def test_batches_from_the_middle_are_those_of_the_whole(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 9))
    assert_same(batches(dataset, first_step=3), batches(dataset)[3:])


def test_batches_do_not_depend_on_what_the_cache_held(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 9)
    assert_same(batches(make_dataset(folder, cache_bytes=0)), batches(make_dataset(folder)))


def test_an_epoch_shows_every_image_at_most_once_and_the_next_in_another_order() -> None:
    order = EpochOrder(np.arange(10, 23), batch_size=4, seed=0, first_step=0, last_step=6)
    places = [place for batch in order for place in batch]
    first, second = [n for e, n, _ in places if e == 0], [n for e, n, _ in places if e == 1]
    assert len(first) == len(set(first)) == len(second) == len(set(second)) == 12
    assert set(first) <= set(range(10, 23))
    assert first != second


def test_a_image_gives_other_crops_in_another_epoch(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 3))
    assert not np.array_equal(dataset[(0, 1, 0)].global_images, dataset[(1, 1, 0)].global_images)
    assert np.array_equal(dataset[(0, 1, 0)].global_images, dataset[(0, 1, 0)].global_images)


def test_no_local_crops_are_an_empty_stack(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 4), num_local=0)
    crops = stack([dataset[(0, n, 0)] for n in range(4)])
    assert crops.local_images.shape[0] == crops.local_appearance.shape[0] == 0


def test_a_image_that_cannot_be_read_is_replaced_and_counted(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 4)
    (folder / "001.jpg").write_bytes(b"not an image")
    crops = stack([make_dataset(folder)[(0, n, 0)] for n in range(4)])
    assert crops.num_unreadable == 1
    assert torch.isfinite(crops.global_appearance).all()


def test_places_say_which_image_each_is_and_in_which_view(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 9))
    order = EpochOrder(np.arange(9), batch_size=4, seed=3, first_step=0, last_step=5, num_views=2)
    for crops, places in zip(crop_loader(dataset, order, workers=0), order, strict=True):
        assert crops.places.tolist() == [[number, view] for view, number, _ in places]
        assert crops.places.dtype == torch.int64
        for b, place in enumerate(places):
            assert np.array_equal(
                crops.global_images[:, b].permute(0, 2, 3, 1), dataset[place].global_images
            )


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3, 4], [0, 1, 2, 4], [0, 1, 1, 1, 4, 4]])
def test_a_image_in_place_of_one_that_cannot_be_read_is_the_next_to_learn_from_and_has_its_own_place(
    tmp_path: Path, numbers: list[int]
) -> None:
    folder = draw_folder(tmp_path / "p", 5)
    (folder / "001.jpg").write_bytes(b"not an image")
    crops = CropConfig(global_size=32, local_size=16, num_local=0)
    dataset = CropDataset(
        open_source(folder),
        crops=crops,
        color=ColorConfig(),
        seed=3,
        cache_bytes=0,
        numbers=np.array(numbers),
    )
    following = next(number for number in numbers if number > 1)
    replaced, own, other = dataset[(6, 1, 0)], dataset[(6, following, 0)], dataset[(6, 0, 0)]
    assert replaced.place.tolist() == own.place.tolist() == [following, 6]
    assert np.array_equal(replaced.global_images, own.global_images)
    assert replaced.num_unreadable > own.num_unreadable == 0
    assert other.place.tolist() == [0, 6]


def test_the_last_image_that_cannot_be_read_is_replaced_by_the_first(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 3)
    (folder / "002.jpg").write_bytes(b"not an image")
    assert make_dataset(folder)[(4, 2, 0)].place.tolist() == [0, 4]


def test_no_readable_image_at_all_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="None of the 1 image"):
        make_dataset(tmp_path)[(0, 0, 0)]


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="fewer than a batch of 8"):
        EpochOrder(np.arange(5), batch_size=8, seed=0, first_step=0, last_step=1)


def test_held_out_images_are_a_tenth_at_most_and_never_trained_on() -> None:
    train, held_out = split_held_out(55, wanted=100, seed=1)
    assert len(held_out) == 5
    assert sorted([*train, *held_out]) == list(range(55))
    again = split_held_out(55, wanted=100, seed=1)[1]
    assert np.array_equal(held_out, again)
    assert not np.array_equal(held_out, split_held_out(55, wanted=100, seed=2)[1])


def test_without_masks_or_a_gram_teacher_both_are_empty_and_the_crops_are_the_same(
    tmp_path: Path,
) -> None:
    folder = draw_folder(tmp_path / "p", 4)
    plain, whole = (
        stack([make_dataset(folder, extra=extra)[(0, n, 0)] for n in range(4)])
        for extra in (None, EXTRA)
    )
    assert plain.masks.shape == (2, 4, 2, 2)
    assert not plain.masks.any()
    assert plain.gram_images.shape[0] == 0
    for a, b in zip(plain[:4], whole[:4], strict=True):
        assert torch.equal(a, b)


def test_a_gram_teacher_sees_the_box_of_each_global_crop_at_its_own_size(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 4, height=300, width=400)
    crops = stack([make_dataset(folder)[(0, n, 0)] for n in range(4)])
    for view in range(2):
        small = torch.nn.functional.interpolate(
            crops.gram_images[view].float(), size=(32, 32), mode="area"
        )
        difference = (small - crops.global_images[view].float()).abs().mean(dim=(1, 2, 3))
        others = (small - crops.global_images[1 - view].float()).abs().mean(dim=(1, 2, 3))
        assert (difference < 8).all()
        assert (others > 2 * difference).all()


def test_masks_are_other_ones_for_each_view_image_and_epoch(tmp_path: Path) -> None:
    extra = ExtraViews(patch=2, masks=IbotConfig(mask_probability=1.0))
    dataset = make_dataset(draw_folder(tmp_path / "p", 3), extra=extra)
    masks = [
        mask.tobytes()
        for place in ((0, 0, 0), (0, 1, 0), (1, 0, 0))
        for mask in dataset[place].masks
    ]
    assert len(set(masks)) == 6
    assert np.array_equal(dataset[(1, 0, 0)].masks, dataset[(1, 0, 0)].masks)


def test_another_seed_gives_other_crops_colors_and_masks(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 3)
    one, other = (
        stack([make_dataset(folder, seed=seed)[(0, n, 0)] for n in range(3)]) for seed in (0, 1)
    )
    for a, b in zip(one[:6], other[:6], strict=True):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_parts_of_a_batch_are_its_images_in_order_and_count_the_unreadable_once(
    tmp_path: Path, num_parts: int
) -> None:
    folder = draw_folder(tmp_path / "p", 4)
    (folder / "001.jpg").write_bytes(b"not an image")
    crops = stack([make_dataset(folder)[(0, n, 0)] for n in range(4)])
    parts = [crops.part(number, 4 // num_parts) for number in range(num_parts)]
    for field in range(6):
        assert torch.equal(torch.cat([part[field] for part in parts], dim=1), crops[field])  # type: ignore[arg-type,misc]
    assert torch.equal(torch.cat([part.places for part in parts]), crops.places)
    assert sum(part.num_unreadable for part in parts) == 1


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(4, 40),
    batch=st.integers(1, 4),
    size=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    first=st.integers(0, 30),
    steps=st.integers(1, 10),
)
def test_an_order_is_keyed_by_its_seed_and_shared_by_processes_in_slices(
    count: int, batch: int, size: int, seed: int, first: int, steps: int
) -> None:
    numbers = np.arange(count) * 3

    def order(
        *, seed: int = seed, first_step: int = 0, rank: int = 0, size: int = 1
    ) -> list[list[Place]]:
        last = first + steps
        batch_size = batch * size_of_batch
        found = EpochOrder(
            numbers,
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
    assert [
        [place for part in parts for place in part] for parts in zip(*slices, strict=True)
    ] == whole
    per_epoch = count // (batch * size)
    for step, places in enumerate(whole):
        assert {epoch for epoch, _, _ in places} == {step // per_epoch}
    for epoch in range(len(whole) // per_epoch):
        shown = [
            number
            for places in whole[epoch * per_epoch : (epoch + 1) * per_epoch]
            for _, number, _ in places
        ]
        assert len(shown) == len(set(shown)) == per_epoch * batch * size
        assert set(shown) <= set(numbers.tolist())


MIB = 2**20


@pytest.mark.parametrize("group_mib", [1, 8, 200])
def test_an_order_reads_from_a_few_row_groups_at_a_time(group_mib: int) -> None:
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
    for place, group in enumerate(groups.tolist()):
        opened.setdefault(group, place)
        closed[group] = place
    at_once = [
        sum(opened[group] <= place <= closed[group] for group in range(num_groups))
        for place in range(0, len(groups), 7)
    ]
    assert max(at_once) <= active + 1
    assert np.median(at_once) >= active * 0.7, "rows of several groups are mixed"
    assert list(opened) != sorted(opened), "groups are shuffled"
    free = np.flatnonzero(groups < 0) / len(groups)
    assert abs(free.mean() - 0.5) < 0.05, "items that lie in no group come anywhere"


def test_an_order_over_few_bytes_is_any_order() -> None:
    locality = Locality(np.repeat(np.arange(4), 10), np.full(4, 16 * MIB))
    for small in (locality, Locality(np.full(40, -1), np.zeros(0, np.int64)), None):
        assert np.array_equal(draw_order(rng_for(0, 0), 40, small), rng_for(0, 0).permutation(40))


def test_an_order_by_row_groups_is_shared_by_processes_and_resumed() -> None:
    locality = Locality(np.repeat(np.arange(30), 8), np.full(30, 20 * MIB))
    numbers = np.arange(240)[np.arange(240) % 3 > 0]  # the rest is held out

    def order(first_step: int = 0, rank: int = 0, size: int = 1) -> list[list[Place]]:
        return list(
            EpochOrder(
                numbers,
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
    shown = [number for places in whole[:20] for _, number, _ in places]
    assert sorted(shown) == numbers.tolist()


def test_a_parquet_file_says_which_rows_are_read_together(tmp_path: Path) -> None:
    rows = [{"bytes": bytes([number]) * 1_000_000, "path": "x"} for number in range(10)]
    table = pa.table(
        {"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4, compression="none")
    draw_folder(tmp_path / "images", 2)
    whole = open_source(tmp_path)
    found = locality_of(subset(whole, [0, 1, 2, 6, 11]))
    assert found.group_of.tolist() == [-1, -1, 0, 1, 2]
    assert found.num_bytes.tolist() == pytest.approx([4e6, 4e6, 2e6], rel=0.6)  # with statistics


REPEATED = np.array([7, 3, 3, 8, 1, 3, 8, 5])  # 3 comes three times, 8 twice


def places_of(
    numbers: np.ndarray, *, epochs: int, num_views: int = 0, seed: int = 0
) -> list[list[Place]]:
    """Those of each epoch, all of which are whole: batches of 4."""
    last_step = epochs * len(numbers) // 4
    order = EpochOrder(
        numbers, batch_size=4, seed=seed, first_step=0, last_step=last_step, num_views=num_views
    )
    places = [place for batch in order for place in batch]
    return [places[epoch * len(numbers) : (epoch + 1) * len(numbers)] for epoch in range(epochs)]


def test_a_repeated_image_is_another_crop_each_time_and_no_place_comes_again_in_later_epochs() -> (
    None
):
    by_epoch = places_of(REPEATED, epochs=4)
    for places in by_epoch:
        assert sorted(number for _, number, _ in places) == sorted(REPEATED.tolist())
    everything = [place for places in by_epoch for place in places]
    assert len(everything) == len(set(everything)) == 32
    assert by_epoch[0] != by_epoch[1]


def test_a_repeated_image_is_cut_in_another_way_each_time(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 9))
    first, second = places_of(REPEATED, epochs=2)
    cut = {dataset[place].global_images.tobytes() for place in [*first, *second] if place[1] == 3}
    assert len(cut) == 6


@settings(max_examples=50, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 9), min_size=4, max_size=20).map(
        lambda drawn: drawn[: len(drawn) // 4 * 4]
    ),
    epochs=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_whatever_is_repeated_no_place_comes_twice(
    numbers: list[int], epochs: int, seed: int
) -> None:
    by_epoch = places_of(np.array(numbers), epochs=epochs, seed=seed)
    assert len({place for places in by_epoch for place in places}) == epochs * len(numbers)


@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_the_views_of_a_image_are_taken_in_turn(num_views: int) -> None:
    by_epoch = places_of(np.arange(8), epochs=5, num_views=num_views)
    assert [{view for view, _, _ in places} for places in by_epoch] == [
        {epoch % num_views} for epoch in range(5)
    ]
    assert by_epoch != places_of(np.arange(8), epochs=5)


def test_a_repeated_image_goes_round_its_views_within_an_epoch() -> None:
    by_epoch = places_of(REPEATED, epochs=4, num_views=4)
    for number, times in ((3, 3), (8, 2), (7, 1)):
        views = [sorted(view for view, each, _ in places if each == number) for places in by_epoch]
        assert views == [
            sorted((epoch * 3 + time) % 4 for time in range(times)) for epoch in range(4)
        ]
        assert all(len(set(seen)) == times for seen in views)


def test_a_batch_that_processes_cannot_share_alike_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"run\.batch_size 4 cannot be shared by 3 processes alike"
    ):
        EpochOrder(np.arange(9), batch_size=4, seed=0, first_step=0, last_step=1, size=3)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    purpose=st.integers(0, 6),
    keys=st.lists(st.integers(0, 2**31), max_size=3),
)
def test_a_stream_is_of_its_purpose_and_place(seed: int, purpose: int, keys: list[int]) -> None:
    first, again = (rng_for(seed, purpose, *keys).integers(2**63, size=4) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, rng_for(seed, purpose + 1, *keys).integers(2**63, size=4))
    assert not np.array_equal(first, rng_for(seed + 1, purpose, *keys).integers(2**63, size=4))
    assert not np.array_equal(first, rng_for(seed, purpose, *keys, 5).integers(2**63, size=4))


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 300), wanted=st.integers(0, 50), seed=st.integers(0, 2**32))
def test_held_out_and_learned_from_are_all_images_once(count: int, wanted: int, seed: int) -> None:
    learned, held_out = split_held_out(count, wanted=wanted, seed=seed)
    assert sorted([*learned, *held_out]) == list(range(count))
    assert len(held_out) == min(wanted, count // 10)
    assert learned.tolist() == sorted(learned)
    assert held_out.tolist() == sorted(held_out)


SIZES = (
    Resolution(share=3.0, global_size=32, local_size=16),
    Resolution(share=1.0, global_size=64, local_size=32, gram_size=96),
)


def test_steps_are_made_at_resolutions_by_their_shares_and_a_step_at_one() -> None:
    def order(*, first_step: int = 0, seed: int = 0) -> list[list[Place]]:
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

    drawn = [{resolution for _, _, resolution in places} for places in order()]
    assert all(len(step) == 1 for step in drawn)
    assert sum(step == {1} for step in drawn) == pytest.approx(100, abs=30)
    assert order(first_step=300) == order()[300:]
    assert order(seed=1) != order()


def test_a_resolution_is_the_size_of_crops_masks_and_the_gram_teachers_crops(
    tmp_path: Path,
) -> None:
    folder = draw_folder(tmp_path / "p", 2)
    crops = CropConfig(global_size=8, local_size=8, num_local=2, resolutions=SIZES)
    dataset = CropDataset(
        open_source(folder), crops=crops, color=ColorConfig(), seed=3, cache_bytes=0, extra=EXTRA
    )
    sample = dataset[(0, 1, 1)]
    assert sample.global_images.shape == (2, 64, 64, 3)
    assert sample.local_images.shape == (2, 32, 32, 3)
    assert sample.masks.shape == (2, 8, 8)
    assert sample.gram_images.shape == (2, 96, 96, 3)


@pytest.mark.parametrize(
    ("spare", "processes", "expected"),
    [(64 << 30, 1, 8), (4 << 30, 1, 4), (4 << 30, 2, 2), (0, 1, 1)],
)
def test_workers_are_as_many_as_fit_in_memory(
    monkeypatch: pytest.MonkeyPatch, spare: int, processes: int, expected: int
) -> None:
    monkeypatch.setattr(resources, "spare_memory", lambda: spare)
    monkeypatch.setattr(batches_module, "spare_memory", lambda: spare)
    assert workers_within_memory(8, processes=processes) == expected
    assert workers_within_memory(0, processes=processes) == 0


def test_the_cache_is_a_share_of_the_memory_and_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw_folder(tmp_path / "images", 12)
    roomy = make_dataset(folder, cache_bytes=1 << 20)
    expected = batches(roomy)
    assert roomy.cache_bytes == 1 << 20
    monkeypatch.setattr(batches_module, "spare_memory", lambda: 40_000)
    tight = make_dataset(folder, cache_bytes=1 << 30)
    assert_same(batches(tight), expected)
    assert tight.cache_bytes == 10_000
