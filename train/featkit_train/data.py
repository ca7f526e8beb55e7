"""Pictures for training: which ones, in which order, cut into crops by workers, stacked into batches.

Every random choice is keyed by (seed, purpose, epoch, item), so that a batch is the same whichever worker made it, and
a resumed run goes on with the very crops that it would have seen.

Letters: B pictures, G global crops, L local crops, (S, S) and (s, s) their pixels.
"""

from __future__ import annotations

import signal
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from featkit.errors import InputError
from featkit.images import decode
from featkit.sources import Source
from featkit_train.augment import cut_crop, draw_appearance
from featkit_train.config import ColourConfig, CropConfig

NUM_GLOBAL = 2
# What a random stream is for; part of its key.
ORDER, CROPS, HELD_OUT, WEIGHTS = range(4)
# Pictures are kept at a little over the size that crops need, so that a small crop of one still has its detail.
DECODE_MARGIN = 2


class Crops(NamedTuple):
    """A batch: uint8 pictures (G, B, 3, S, S) and (L, B, 3, s, s), appearance rows (G, B, 7) and (L, B, 7)."""

    global_images: Tensor
    global_appearance: Tensor
    local_images: Tensor
    local_appearance: Tensor
    num_unreadable: int


class Sample(NamedTuple):
    """One picture's crops as arrays, channels last, before stacking."""

    global_images: np.ndarray
    global_appearance: np.ndarray
    local_images: np.ndarray
    local_appearance: np.ndarray
    num_unreadable: int


def rng_for(seed: int, purpose: int, *keys: int) -> np.random.Generator:
    """The random stream of one purpose and place; equal keys give equal streams on every machine."""
    return np.random.default_rng([seed, purpose, *keys])


def split_held_out(count: int, *, wanted: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers to train on and numbers held out (at most a tenth), both sorted, chosen by the seed."""
    num_held_out = min(wanted, count // 10)
    shuffled = rng_for(seed, HELD_OUT).permutation(count)
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])


class CropDataset(Dataset[Sample]):
    """Indexed by (epoch, picture number): the crops that picture gives in that epoch."""

    def __init__(
        self,
        source: Source,
        *,
        crops: CropConfig,
        colour: ColourConfig,
        seed: int,
        cache_bytes: int,
        numbers: np.ndarray | None = None,  # sorted numbers of the pictures to learn from; all by default
    ) -> None:
        self.source, self.crops, self.colour, self.seed = source, crops, colour, seed
        self.numbers = np.arange(len(source)) if numbers is None else numbers
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[int, Image.Image] = OrderedDict()
        self._cached_bytes = 0

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, number = place
        picture, num_unreadable = self._readable_picture(number)
        rng = rng_for(self.seed, CROPS, epoch, number)
        config = self.crops
        global_crops = [
            cut_crop(picture, rng, size=config.global_size, scale=config.global_scale, config=config) for _ in range(NUM_GLOBAL)
        ]
        local_crops = [
            cut_crop(picture, rng, size=config.local_size, scale=config.local_scale, config=config)
            for _ in range(config.num_local)
        ]
        global_rows = [
            draw_appearance(rng, view=view, size=config.global_size, config=self.colour) for view in range(NUM_GLOBAL)
        ]
        local_rows = [draw_appearance(rng, view=2, size=config.local_size, config=self.colour) for _ in local_crops]
        return Sample(
            np.stack(global_crops),
            np.stack(global_rows),
            np.stack(local_crops) if local_crops else np.zeros((0, 1, 1, 3), np.uint8),
            np.stack(local_rows) if local_rows else np.zeros((0, global_rows[0].size), np.float32),
            num_unreadable,
        )

    def _readable_picture(self, number: int) -> tuple[Image.Image, int]:
        """Picture `number`, or the next to learn from that can be read, and how many could not."""
        place = int(np.searchsorted(self.numbers, number))
        for skipped in range(len(self.numbers)):
            try:
                return self._picture(int(self.numbers[(place + skipped) % len(self.numbers)])), skipped
            except InputError:
                continue  # counted by the caller and shown in the log
        raise InputError(f"None of the {len(self.numbers):,} pictures of {self.source.name} can be read.")

    def _picture(self, number: int) -> Image.Image:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        side = DECODE_MARGIN * self.crops.global_size
        decoded = decode(self.source.read(number), name=self.source.key(number), shorter_side=side)
        picture = Image.fromarray(decoded.pixels)
        if min(picture.size) > side:
            picture.thumbnail((side * picture.width // min(picture.size), side * picture.height // min(picture.size)))
        worker = get_worker_info()
        self._cache[number] = picture
        self._cached_bytes += picture.width * picture.height * 3
        while self._cached_bytes > self.cache_bytes // (worker.num_workers if worker is not None else 1):
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.width * oldest.height * 3
        return picture


class EpochOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, number) from `first_step` to `last_step`; each epoch is a new order, without a partial batch."""

    def __init__(self, numbers: np.ndarray, *, batch_size: int, seed: int, first_step: int, last_step: int) -> None:
        if len(numbers) < batch_size:
            raise InputError(
                f"There are {len(numbers):,} pictures to train on, fewer than a batch of {batch_size}; "
                "add pictures or lower --batch-size."
            )
        self.numbers, self.batch_size, self.seed = numbers, batch_size, seed
        self.first_step, self.last_step = first_step, last_step

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = len(self.numbers) // self.batch_size
        epoch_of_order, order = -1, self.numbers
        for step in range(self.first_step, self.last_step):
            epoch, batch = divmod(step, per_epoch)
            if epoch != epoch_of_order:
                order = self.numbers[rng_for(self.seed, ORDER, epoch).permutation(len(self.numbers))]
                epoch_of_order = epoch
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, int(number)) for number in chosen]


def stack(samples: Sequence[Sample]) -> Crops:
    """Samples of one batch as Crops, channels first, crops ahead of pictures."""

    def images(field: int) -> Tensor:
        arrays = np.stack([sample[field] for sample in samples], axis=1)
        return torch.from_numpy(np.ascontiguousarray(arrays.transpose(0, 1, 4, 2, 3)))

    def rows(field: int) -> Tensor:
        return torch.from_numpy(np.stack([sample[field] for sample in samples], axis=1))

    return Crops(images(0), rows(1), images(2), rows(3), sum(sample.num_unreadable for sample in samples))


def crop_loader(dataset: CropDataset, order: EpochOrder, *, workers: int) -> DataLoader[Crops]:
    """Batches of `order`; with workers == 0 they are made in this process. Worker count changes no byte of them."""
    loader: DataLoader[Crops] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the loader yields what `stack` makes of samples
        batch_sampler=order,
        collate_fn=stack,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_ctrl_c_to_the_loop,
    )
    return loader


def _leave_ctrl_c_to_the_loop(_worker: int) -> None:
    """A terminal sends Ctrl-C to workers too, who would be gone before the step that needs them is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
