"""The order in which a run sees its images: some are held out, each epoch is shuffled by the seed,
and each process takes its slice of every batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from featkit.errors import InputError
from featkit.sources.locality import Locality
from featkit.wording import counted
from featkit_train.config import LEAST_BATCH
from featkit_train.images.crops import CropKey
from featkit_train.random_streams import HELD_OUT, ORDER, RESOLUTION, rng_for

# An epoch's order mixes this many bytes of Parquet row groups at a time, uncompressed, within
# bounds on the number of groups. These must not depend on the machine, because the order must not.
ACTIVE_BYTES, MIN_ACTIVE, MAX_ACTIVE = 64 * 2**20, 3, 32
LEAST_TO_HOLD_OUT = 10  # images per held-out image


def split_held_out(count: int, *, wanted: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted indices to train on and to hold out, at most a tenth of all."""
    num_held_out = min(wanted, count // LEAST_TO_HOLD_OUT)
    shuffled = rng_for(seed, HELD_OUT).permutation(count)
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])


class EpochOrder(Sampler[list[CropKey]]):
    """The batches of steps `first_step` to `last_step` - 1. Each epoch is shuffled again and drops
    its last, incomplete batch.

    A batch is cut into micro-batches, and each of these into slices, one for each of `size`
    processes. So a micro-batch holds the same images however many processes share it.

    indices: the images to learn from; an image may occur several times.
    shares: the share of steps for each resolution.
    num_views: views of an image, taken in turn; 0 draws a new view in each epoch.
    locality: row groups of all items of the source.

    InputError if a batch has no equal slices, or if there are fewer images than a batch takes.
    """

    def __init__(
        self,
        indices: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        first_step: int,
        last_step: int,
        rank: int = 0,
        size: int = 1,
        micro_batches: int = 1,
        shares: Sequence[float] = (1.0,),
        num_views: int = 0,
        locality: Locality | None = None,
    ) -> None:
        if batch_size % (size * micro_batches):
            sharers = f"{counted(size, 'process', 'processes')} alike" + (
                f", each in engine.accumulate {micro_batches} parts" if micro_batches > 1 else ""
            )
            raise InputError(
                f"run.batch_size {batch_size} cannot be shared by {sharers}; change one."
            )
        if len(indices) < batch_size:
            there_are = (
                f"There {'is' if len(indices) == 1 else 'are'} {counted(len(indices), 'image')}"
                " to train on"
            )
            lower = " or lower --batch-size" if len(indices) >= LEAST_BATCH else ""
            raise InputError(f"{there_are}, fewer than a batch of {batch_size}; add images{lower}.")
        self.batch_size, self.seed, self.num_views = batch_size, seed, num_views
        self.indices = np.sort(indices)
        self.locality = (
            None
            if locality is None
            else locality._replace(group_of=locality.group_of[self.indices])
        )
        # Occurrence count of each repeated index, so that duplicates get different crops.
        self.occurrence = np.arange(len(indices)) - np.searchsorted(self.indices, self.indices)
        self.most_occurrences = 1 + int(self.occurrence.max(initial=0))
        self.first_step, self.last_step = first_step, last_step
        self.cumulative_shares = np.cumsum(shares) / np.sum(shares)
        # Positions in every batch that belong to this process.
        self.slice = np.arange(batch_size).reshape(micro_batches, size, -1)[:, rank].ravel()

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[CropKey]]:
        batches_per_epoch = len(self.indices) // self.batch_size
        epoch_of_order, order = -1, np.arange(len(self.indices))
        for step in range(self.first_step, self.last_step):
            epoch, batch = divmod(step, batches_per_epoch)
            if epoch != epoch_of_order:
                order = draw_order(
                    rng_for(self.seed, ORDER, epoch), len(self.indices), self.locality
                )
                epoch_of_order = epoch
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size][self.slice]
            views = epoch * self.most_occurrences + self.occurrence[chosen]
            if self.num_views:
                views = views % self.num_views
            resolution = self._resolution(step)
            yield [
                (int(view), int(index), resolution)
                for view, index in zip(views, self.indices[chosen], strict=True)
            ]

    def _resolution(self, step: int) -> int:
        if len(self.cumulative_shares) == 1:
            return 0
        uniform = rng_for(self.seed, RESOLUTION, step).random()
        return int(np.searchsorted(self.cumulative_shares, uniform, side="right"))


def draw_order(rng: np.random.Generator, count: int, locality: Locality | None) -> np.ndarray:
    """Draw the order of an epoch: uniform, or one that reads from a few row groups at a time.

    Groups are shuffled, and the rows of `active` consecutive groups are mixed: an item of the group
    of rank r is sorted by r + active * u with u uniform in [0, 1). An item outside all groups may
    come anywhere.
    """
    if locality is None or locality.num_bytes.sum() <= ACTIVE_BYTES:
        return rng.permutation(count)
    num_groups = len(locality.num_bytes)
    active = int(np.clip(ACTIVE_BYTES // max(1, locality.num_bytes.mean()), MIN_ACTIVE, MAX_ACTIVE))
    rank, uniform = rng.permutation(num_groups), rng.random(count)
    in_group = locality.group_of >= 0
    sort_keys = np.where(
        in_group, rank[locality.group_of] + active * uniform, (num_groups + active - 1) * uniform
    )
    return np.argsort(sort_keys, kind="stable")
