"""The loader of a run's batches: worker processes that cut crops, limited by memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Sampler

from featkit.resources import spare_memory, workers_that_fit
from featkit_train.images.crops import CropDataset, CropKey, Crops, stack
from featkit_train.processes.stopping import leave_signals_to_the_loop

# A worker needs 100 MB of its own, four prefetched batches, and an image of 24 megapixels decoded
# whole.
WORKER_BYTES = 512 * 2**20
MOST_CACHED = 0.25  # of the spare memory
PREFETCHED_BATCHES = 4  # by each worker


def workers_within_memory(wanted: int, *, processes: int = 1) -> int:
    """Return `wanted` loader workers, or fewer if memory is short.

    processes: number of this run's processes on this machine, each with that many workers. Half of
    the spare memory is left to the training itself.
    """
    if wanted == 0:
        return 0
    return workers_that_fit(
        wanted, worker_bytes=processes * WORKER_BYTES, reserved=spare_memory() // 2
    )


def crop_loader(
    dataset: CropDataset, order: Sampler[list[CropKey]] | Sequence[list[CropKey]], *, workers: int
) -> DataLoader[Crops]:
    """Return a loader of the batches of `order`; 0 workers load in this process.

    Lowers the dataset's cache to a share of the spare memory. Neither the cache nor the number of
    workers changes a byte of a batch.
    """
    dataset.cache_bytes = min(dataset.cache_bytes, int(MOST_CACHED * spare_memory()))
    return DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=stack,
        num_workers=workers,
        prefetch_factor=PREFETCHED_BATCHES if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_signals_to_the_loop,
    )
