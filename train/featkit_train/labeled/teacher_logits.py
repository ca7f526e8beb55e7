"""A teacher's logits for every view of every image, computed once and kept on disk, for runs whose
views repeat.

Letters: N images, V views of each, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from featkit.atomic import explain_os_errors, replace_file
from featkit.sources import Source
from featkit_train.config import TrainConfig
from featkit_train.images.augment import as_seen
from featkit_train.images.batches import crop_loader, workers_within_memory
from featkit_train.images.crops import CropDataset, CropKey, CropSpec
from featkit_train.images.loading import batches_of
from featkit_train.labeled.arrays import read_array
from featkit_train.methods.base import IMAGENET_MEAN, IMAGENET_STD
from featkit_train.networks.classifier import Classifier
from featkit_train.networks.inference import evaluating
from featkit_train.processes.device import pick_autocast

LOGITS_FILE = "teacher_logits.npy"
MAX_BYTES = 8 << 30  # of the file; larger logits are computed again in each step
BLOCK = 256  # images in a batch


def is_worth_keeping(config: TrainConfig, *, num_images: int, num_classes: int) -> bool:
    """Return whether views repeat and the logits of all of them fit in MAX_BYTES."""
    num_bytes = num_images * config.crops.fixed_views * num_classes * 4
    return (
        config.knowledge.cache == "auto"
        and not config.crops.resolutions
        and 0 < num_bytes <= MAX_BYTES
    )


def keep_logits(
    path: Path,
    teacher: Classifier,
    source: Source,
    config: TrainConfig,
    *,
    device: torch.device,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Write the teacher's logits (N, V, K) float32 of the crops that a run of `config` on `source`
    will see, as .npy, complete or not at all.

    Rows of unreadable images stay NaN; no run asks for them. on_progress: receives the views done
    and their total.
    """
    num_views = config.crops.fixed_views
    dataset = CropDataset(
        source,
        crops=config.crops,
        color=config.color,
        seed=config.run.seed,
        cache_bytes=config.run.cache_bytes,
        spec=CropSpec(num_global=1, local=False, patch=config.crops.global_size),
    )
    keys: list[CropKey] = [
        (view, index, 0) for view in range(num_views) for index in range(len(source))
    ]
    batches = [keys[start : start + BLOCK] for start in range(0, len(keys), BLOCK)]
    autocast_dtype = pick_autocast(config.run.precision, device)
    teacher.to(device)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary, evaluating(teacher), torch.no_grad():
        shape = (len(source), num_views, teacher.num_classes)
        rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        rows[:] = np.nan
        done = 0
        for crops in batches_of(
            crop_loader(dataset, batches, workers=workers_within_memory(config.run.workers))
        ):
            images = as_seen(
                crops.global_crops.images,
                crops.global_crops.appearance,
                device=device,
                mean=IMAGENET_MEAN,
                std=IMAGENET_STD,
            )
            with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
                logits = teacher(images[0]).logits[-1]
            image_ids, views = crops.indices.numpy()
            rows[image_ids, views] = logits.float().cpu().numpy()
            done += len(image_ids)
            on_progress(done, len(keys))
        rows.flush()
        del rows  # unmap the file before it is renamed


def open_logits(path: Path) -> np.ndarray:
    """Map the file into memory, so that only the rows that are used are read."""
    return read_array(path, mapped=True)
