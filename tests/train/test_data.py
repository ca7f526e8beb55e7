"""Promises of the training data: keyed randomness, exact order, nothing lost to one bad picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from featkit.errors import InputError
from featkit.sources import open_source
from featkit_train.config import ColourConfig, CropConfig
from featkit_train.data import CropDataset, Crops, EpochOrder, crop_loader, split_held_out, stack
from tests.pictures import draw_folder


def make_dataset(folder: Path, *, num_local: int = 2, cache_bytes: int = 1 << 20) -> CropDataset:
    """Crops of 32 and 16 pixels from drawn pictures."""
    crops = CropConfig(global_size=32, local_size=16, num_local=num_local, rotation_degrees=10.0)
    return CropDataset(open_source(folder), crops=crops, colour=ColourConfig(), seed=3, cache_bytes=cache_bytes)


def batches(dataset: CropDataset, *, first_step: int = 0, last_step: int = 5, workers: int = 0) -> list[Crops]:
    """All batches of four from a loader."""
    order = EpochOrder(np.arange(len(dataset.source)), batch_size=4, seed=3, first_step=first_step, last_step=last_step)
    return list(crop_loader(dataset, order, workers=workers))


def assert_same(left: list[Crops], right: list[Crops]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one[:4], other[:4], strict=True):
            assert torch.equal(a, b)


def test_a_batch_has_the_shapes_it_promises(tmp_path: Path) -> None:
    (crops,) = batches(make_dataset(draw_folder(tmp_path / "p", 9)), last_step=1)
    assert crops.global_images.shape == (2, 4, 3, 32, 32)
    assert crops.local_images.shape == (2, 4, 3, 16, 16)
    assert crops.global_appearance.shape == crops.local_appearance.shape == (2, 4, 7)
    assert crops.global_images.dtype == torch.uint8
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


def test_an_epoch_shows_every_picture_at_most_once_and_the_next_in_another_order() -> None:
    order = EpochOrder(np.arange(10, 23), batch_size=4, seed=0, first_step=0, last_step=6)
    places = [place for batch in order for place in batch]
    first, second = [n for e, n in places if e == 0], [n for e, n in places if e == 1]
    assert len(first) == len(set(first)) == len(second) == len(set(second)) == 12
    assert set(first) <= set(range(10, 23))
    assert first != second


def test_a_picture_gives_other_crops_in_another_epoch(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 3))
    assert not np.array_equal(dataset[(0, 1)].global_images, dataset[(1, 1)].global_images)
    assert np.array_equal(dataset[(0, 1)].global_images, dataset[(0, 1)].global_images)


def test_no_local_crops_are_an_empty_stack(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 4), num_local=0)
    crops = stack([dataset[(0, n)] for n in range(4)])
    assert crops.local_images.shape[0] == crops.local_appearance.shape[0] == 0


def test_a_picture_that_cannot_be_read_is_replaced_and_counted(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 4)
    (folder / "001.jpg").write_bytes(b"not a picture")
    crops = stack([make_dataset(folder)[(0, n)] for n in range(4)])
    assert crops.num_unreadable == 1
    assert torch.isfinite(crops.global_appearance).all()


def test_no_readable_picture_at_all_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="None of the 1 pictures"):
        make_dataset(tmp_path)[(0, 0)]


def test_fewer_pictures_than_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="fewer than a batch of 8"):
        EpochOrder(np.arange(5), batch_size=8, seed=0, first_step=0, last_step=1)


def test_held_out_pictures_are_a_tenth_at_most_and_never_trained_on() -> None:
    train, held_out = split_held_out(55, wanted=100, seed=1)
    assert len(held_out) == 5
    assert sorted([*train, *held_out]) == list(range(55))
    again = split_held_out(55, wanted=100, seed=1)[1]
    assert np.array_equal(held_out, again)
    assert not np.array_equal(held_out, split_held_out(55, wanted=100, seed=2)[1])
