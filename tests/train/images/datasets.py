"""Small datasets of drawn images for the tests of crops, order and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from featkit.sources import open_source
from featkit_train.config import ColorConfig, CropConfig, IbotConfig
from featkit_train.images.batches import crop_loader
from featkit_train.images.crops import CropDataset, CropKey, Crops, CropSpec
from featkit_train.images.order import EpochOrder

SPEC = CropSpec(patch=8, masks=IbotConfig(mask_probability=0.7), gram_size=48)
REPEATED = np.array([7, 3, 3, 8, 1, 3, 8, 5])  # 3 comes three times, 8 twice


def make_dataset(
    folder: Path,
    *,
    num_local: int = 2,
    cache_bytes: int = 1 << 20,
    spec: CropSpec | None = SPEC,
    seed: int = 3,
) -> CropDataset:
    """Return crops of 32 and 16 pixels from drawn images, by default with masks and Gram images."""
    crops = CropConfig(global_size=32, local_size=16, num_local=num_local, rotation_degrees=10.0)
    return CropDataset(
        open_source(folder),
        crops=crops,
        color=ColorConfig(),
        seed=seed,
        cache_bytes=cache_bytes,
        spec=spec,
    )


def batches(
    dataset: CropDataset, *, first_step: int = 0, last_step: int = 5, workers: int = 0
) -> list[Crops]:
    """Return batches of four from a loader."""
    order = EpochOrder(
        np.arange(len(dataset.source)),
        batch_size=4,
        seed=3,
        first_step=first_step,
        last_step=last_step,
    )
    return list(crop_loader(dataset, order, workers=workers))


def keys_by_epoch(
    indices: np.ndarray, *, epochs: int, num_views: int = 0, seed: int = 0
) -> list[list[CropKey]]:
    """Return the keys of each epoch in batches of 4; the number of images must be a multiple of
    4."""
    last_step = epochs * len(indices) // 4
    order = EpochOrder(
        indices, batch_size=4, seed=seed, first_step=0, last_step=last_step, num_views=num_views
    )
    keys = [key for batch in order for key in batch]
    return [keys[epoch * len(indices) : (epoch + 1) * len(indices)] for epoch in range(epochs)]


def tensors_of(crops: Crops) -> list[Tensor]:
    """Return the tensors of all fields except the indices and the count of unreadable images."""
    return [*crops.global_crops, *crops.local_crops, crops.masks, crops.gram_images]
