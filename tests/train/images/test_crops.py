"""Promises of crops: keyed randomness, one record, nothing lost to one bad image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from featkit.errors import InputError
from featkit.sources import open_source
from featkit_train.config import ColorConfig, CropConfig, IbotConfig, Resolution
from featkit_train.images.batches import crop_loader
from featkit_train.images.crops import CropDataset, CropSpec, join_fields, stack
from featkit_train.images.order import EpochOrder
from tests.images import draw_folder
from tests.train.images.datasets import (
    REPEATED,
    SPEC,
    batches,
    keys_by_epoch,
    make_dataset,
    tensors_of,
)


def test_crops_have_the_documented_shapes(tmp_path: Path) -> None:
    (crops,) = batches(make_dataset(draw_folder(tmp_path / "p", 9)), last_step=1)
    assert crops.global_crops.images.shape == (2, 4, 3, 32, 32)
    assert crops.local_crops.images.shape == (2, 4, 3, 16, 16)
    assert crops.global_crops.appearance.shape == crops.local_crops.appearance.shape == (2, 4, 7)
    assert crops.masks.shape == (2, 4, 4, 4)
    assert crops.masks.dtype == torch.bool
    assert crops.gram_images.shape == (2, 4, 3, 48, 48)
    assert crops.global_crops.images.dtype == crops.gram_images.dtype == torch.uint8
    assert not torch.equal(crops.global_crops.images[0], crops.global_crops.images[1])


def test_image_gets_new_crops_in_each_epoch(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 3))
    assert not np.array_equal(
        dataset[(0, 1, 0)].global_crops.images, dataset[(1, 1, 0)].global_crops.images
    )
    assert np.array_equal(
        dataset[(0, 1, 0)].global_crops.images, dataset[(0, 1, 0)].global_crops.images
    )


def test_no_local_crops_make_an_empty_tensor(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 4), num_local=0)
    crops = stack([dataset[(0, n, 0)] for n in range(4)])
    assert crops.local_crops.images.shape[0] == crops.local_crops.appearance.shape[0] == 0


def test_unreadable_image_is_replaced_and_counted(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 4)
    (folder / "001.jpg").write_bytes(b"not an image")
    crops = stack([make_dataset(folder)[(0, n, 0)] for n in range(4)])
    assert crops.num_unreadable.tolist() == [[0, 1, 0, 0]]
    assert torch.isfinite(crops.global_crops.appearance).all()


def test_indices_name_each_image_and_its_view(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 9))
    order = EpochOrder(np.arange(9), batch_size=4, seed=3, first_step=0, last_step=5, num_views=2)
    for crops, keys in zip(crop_loader(dataset, order, workers=0), order, strict=True):
        assert crops.indices.T.tolist() == [[index, view] for view, index, _ in keys]
        assert crops.indices.dtype == torch.int64
        for b, key in enumerate(keys):
            assert torch.equal(crops.global_crops.images[:, b], dataset[key].global_crops.images)


@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4], [0, 1, 2, 4], [0, 1, 1, 1, 4, 4]])
def test_unreadable_image_is_replaced_by_the_next_one(tmp_path: Path, indices: list[int]) -> None:
    folder = draw_folder(tmp_path / "p", 5)
    (folder / "001.jpg").write_bytes(b"not an image")
    crops = CropConfig(global_size=32, local_size=16, num_local=0)
    dataset = CropDataset(
        open_source(folder),
        crops=crops,
        color=ColorConfig(),
        seed=3,
        cache_bytes=0,
        indices=np.array(indices),
    )
    following = next(index for index in indices if index > 1)
    replaced, own, other = dataset[(6, 1, 0)], dataset[(6, following, 0)], dataset[(6, 0, 0)]
    assert replaced.indices.tolist() == own.indices.tolist() == [following, 6]
    assert np.array_equal(replaced.global_crops.images, own.global_crops.images)
    assert replaced.num_unreadable > own.num_unreadable == 0
    assert other.indices.tolist() == [0, 6]


def test_unreadable_last_image_is_replaced_by_the_first(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 3)
    (folder / "002.jpg").write_bytes(b"not an image")
    assert make_dataset(folder)[(4, 2, 0)].indices.tolist() == [0, 4]


def test_no_readable_image_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="None of the 1 image"):
        make_dataset(tmp_path)[(0, 0, 0)]


def test_masks_and_gram_images_leave_the_crops_unchanged(
    tmp_path: Path,
) -> None:
    folder = draw_folder(tmp_path / "p", 4)
    plain, whole = (
        stack([make_dataset(folder, spec=spec)[(0, n, 0)] for n in range(4)])
        for spec in (None, SPEC)
    )
    assert plain.masks.shape == (2, 4, 2, 2)
    assert not plain.masks.any()
    assert plain.gram_images.shape[0] == 0
    for a, b in zip(tensors_of(plain)[:4], tensors_of(whole)[:4], strict=True):
        assert torch.equal(a, b)


def test_gram_images_show_the_boxes_of_the_global_crops(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 4, height=300, width=400)
    crops = stack([make_dataset(folder)[(0, n, 0)] for n in range(4)])
    for view in range(2):
        small = torch.nn.functional.interpolate(
            crops.gram_images[view].float(), size=(32, 32), mode="area"
        )
        difference = (small - crops.global_crops.images[view].float()).abs().mean(dim=(1, 2, 3))
        others = (small - crops.global_crops.images[1 - view].float()).abs().mean(dim=(1, 2, 3))
        assert (difference < 8).all()
        assert (others > 2 * difference).all()


def test_masks_differ_by_crop_image_and_epoch(tmp_path: Path) -> None:
    spec = CropSpec(patch=2, masks=IbotConfig(mask_probability=1.0))
    dataset = make_dataset(draw_folder(tmp_path / "p", 3), spec=spec)
    masks = [
        mask.numpy().tobytes()
        for key in ((0, 0, 0), (0, 1, 0), (1, 0, 0))
        for mask in dataset[key].masks
    ]
    assert len(set(masks)) == 6
    assert np.array_equal(dataset[(1, 0, 0)].masks, dataset[(1, 0, 0)].masks)


def test_another_seed_changes_crops_colors_and_masks(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 3)
    one, other = (
        stack([make_dataset(folder, seed=seed)[(0, n, 0)] for n in range(3)]) for seed in (0, 1)
    )
    for a, b in zip(tensors_of(one), tensors_of(other), strict=True):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("num_micro_batches", [1, 2, 4])
def test_micro_batches_are_consecutive_images_of_the_batch(
    tmp_path: Path, num_micro_batches: int
) -> None:
    folder = draw_folder(tmp_path / "p", 4)
    (folder / "001.jpg").write_bytes(b"not an image")
    crops = stack([make_dataset(folder)[(0, n, 0)] for n in range(4)])
    size = 4 // num_micro_batches
    micro_batches = [crops.micro_batch(n, size=size) for n in range(num_micro_batches)]
    assert {micro_batch.num_images for micro_batch in micro_batches} == {size}
    joined = join_fields(lambda tensors: torch.cat(tensors, dim=1), micro_batches)
    for a, b in zip(tensors_of(joined), tensors_of(crops), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(joined.indices, crops.indices)
    assert torch.equal(joined.num_unreadable, crops.num_unreadable)


def test_repeated_image_is_cropped_differently_each_time(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 9))
    first, second = keys_by_epoch(REPEATED, epochs=2)
    cut = {
        dataset[key].global_crops.images.numpy().tobytes()
        for key in [*first, *second]
        if key[1] == 3
    }
    assert len(cut) == 6


SIZES = (
    Resolution(share=3.0, global_size=32, local_size=16),
    Resolution(share=1.0, global_size=64, local_size=32, gram_size=96),
)


def test_resolution_sizes_crops_masks_and_gram_images(
    tmp_path: Path,
) -> None:
    folder = draw_folder(tmp_path / "p", 2)
    crops = CropConfig(global_size=8, local_size=8, num_local=2, resolutions=SIZES)
    dataset = CropDataset(
        open_source(folder), crops=crops, color=ColorConfig(), seed=3, cache_bytes=0, spec=SPEC
    )
    sample = dataset[(0, 1, 1)]
    assert sample.global_crops.images.shape == (2, 3, 64, 64)
    assert sample.local_crops.images.shape == (2, 3, 32, 32)
    assert sample.masks.shape == (2, 8, 8)
    assert sample.gram_images.shape == (2, 3, 96, 96)
