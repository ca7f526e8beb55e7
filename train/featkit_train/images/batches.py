"""Images for training: which ones, in which order, cut into crops by workers, stacked into
batches.

Every random choice is keyed by (seed, purpose, epoch, item), so that a batch is the same whichever
worker made it, and a resumed run goes on with the very crops that it would have seen.

Letters: B images, G global crops, L local crops, (S, S), (s, s) and (Z, Z) pixels, (h, w) patches
of a global crop.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from featkit.errors import InputError
from featkit.images import decode
from featkit.resources import spare_memory, workers_that_fit
from featkit.sources import Source
from featkit.sources.locality import Locality
from featkit.wording import counted
from featkit_train.config import LEAST_BATCH, ColorConfig, CropConfig, IbotConfig, Resolution
from featkit_train.images.augment import cut_crop, draw_appearance
from featkit_train.images.masks import draw_mask
from featkit_train.processes.stopping import leave_signals_to_the_loop
from featkit_train.random_streams import CROPS, HELD_OUT, MASKS, ORDER, RESOLUTION, rng_for

# Memory of a loader's worker: 100 MB of its own, four batches ahead, and an image that is decoded
# whole.
WORKER_BYTES = 512 * 2**20
MOST_CACHED = 0.25  # of the spare memory

# Images are kept at a little over the size that crops need, so that a small crop of one still has
# its detail.
DECODE_MARGIN = 2
# Row groups of Parquet files that an epoch's order mixes at a time: as many as these bytes hold,
# uncompressed, within bounds. The order must not depend on the machine, so neither may these.
ACTIVE_BYTES, MIN_ACTIVE, MAX_ACTIVE = 64 * 2**20, 3, 32
LEAST_TO_HOLD_OUT = 10  # images, of which one is held out
NO_CROPS = np.zeros((0, 1, 1, 3), np.uint8)


# view or epoch, number of the image, number of the resolution
Place: TypeAlias = tuple[int, int, int]


class Crops(NamedTuple):
    """A batch: uint8 images (G, B, 3, S, S) and (L, B, 3, s, s), appearance rows (G, B, 7) and
    (L, B, 7).

    masks (G, B, h, w) bool, all False where none were asked for; gram_images (G, B, 3, Z, Z) uint8,
    the global crops' boxes for a Gram teacher, or (0, ...). places (B, 2) int64: each image's
    number in the source, and which view of it.
    """

    global_images: Tensor
    global_appearance: Tensor
    local_images: Tensor
    local_appearance: Tensor
    masks: Tensor
    gram_images: Tensor
    places: Tensor
    num_unreadable: int

    def part(self, number: int, size: int) -> Crops:
        """Images number * size up to (number + 1) * size."""
        cut = slice(number * size, (number + 1) * size)
        return Crops(
            self.global_images[:, cut],
            self.global_appearance[:, cut],
            self.local_images[:, cut],
            self.local_appearance[:, cut],
            self.masks[:, cut],
            self.gram_images[:, cut],
            self.places[cut],
            self.num_unreadable if number == 0 else 0,
        )


class Sample(NamedTuple):
    """One image's crops as arrays, channels last, before stacking."""

    global_images: np.ndarray
    global_appearance: np.ndarray
    local_images: np.ndarray
    local_appearance: np.ndarray
    masks: np.ndarray
    gram_images: np.ndarray
    place: np.ndarray
    num_unreadable: int


@dataclass(frozen=True, kw_only=True)
class ExtraViews:
    """What a method needs: crops, and some methods masks over the patches of a global crop, and
    crops for a Gram teacher."""

    num_global: int = 2  # crops of that kind
    local: bool = True  # whether there are any of the other kind
    patch: int = 16  # pixels
    masks: IbotConfig | None = None
    gram_size: int | None = None  # pixels


def split_held_out(count: int, *, wanted: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers to train on and numbers held out (at most a tenth), both sorted, chosen by the seed."""
    num_held_out = min(wanted, count // LEAST_TO_HOLD_OUT)
    shuffled = rng_for(seed, HELD_OUT).permutation(count)
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])


class CropDataset(Dataset[Sample]):
    """Indexed by (epoch, number of the image, number of the resolution): the crops it gives in
    that epoch."""

    def __init__(
        self,
        source: Source,
        *,
        crops: CropConfig,
        color: ColorConfig,
        seed: int,
        cache_bytes: int,
        # sorted numbers of the images to learn from; all by default
        numbers: np.ndarray | None = None,
        extra: ExtraViews | None = None,
    ) -> None:
        self.source, self.crops, self.color, self.seed = source, crops, color, seed
        self.numbers = np.arange(len(source)) if numbers is None else numbers
        self.cache_bytes = cache_bytes
        self.extra = extra or ExtraViews()
        self._sizes = resolutions(crops, gram_size=self.extra.gram_size)
        self._cache: OrderedDict[int, Image.Image] = OrderedDict()
        self._cached_bytes = 0

    def __getitem__(self, place: Place) -> Sample:
        epoch, wanted, resolution = place
        size = self._sizes[resolution]
        number, image, num_unreadable = self._readable_image(wanted)
        rng = rng_for(self.seed, CROPS, epoch, number)
        config = self.crops
        global_crops, gram_crops = [], []
        for _ in range(self.extra.num_global):
            again = copy.deepcopy(rng)  # cuts the same box once more
            global_crops.append(
                cut_crop(
                    image, rng, size=size.global_size, scale=config.global_scale, config=config
                )
            )
            if self.extra.gram_size is not None:
                gram = cut_crop(
                    image, again, size=size.gram_size, scale=config.global_scale, config=config
                )
                gram_crops.append(gram)
        local_crops = [
            cut_crop(image, rng, size=size.local_size, scale=config.local_scale, config=config)
            for _ in range(config.num_local if self.extra.local else 0)
        ]
        global_rows = [
            draw_appearance(rng, view=view, size=size.global_size, config=self.color)
            for view in range(self.extra.num_global)
        ]
        local_rows = [
            draw_appearance(rng, view=2, size=size.local_size, config=self.color)
            for _ in local_crops
        ]
        return Sample(
            np.stack(global_crops),
            np.stack(global_rows),
            np.stack(local_crops) if local_crops else NO_CROPS,
            np.stack(local_rows) if local_rows else np.zeros((0, global_rows[0].size), np.float32),
            self._masks(epoch, number, size.global_size // self.extra.patch),
            np.stack(gram_crops) if gram_crops else NO_CROPS,
            np.array([number, epoch]),
            num_unreadable,
        )

    def _masks(self, epoch: int, number: int, side: int) -> np.ndarray:
        """(G, h, w) bool with h = w = side."""
        if self.extra.masks is None:
            return np.zeros((self.extra.num_global, side, side), bool)
        rng = rng_for(self.seed, MASKS, epoch, number)
        return np.stack(
            [
                draw_mask(rng, grid=(side, side), config=self.extra.masks)
                for _ in range(self.extra.num_global)
            ]
        )

    def _readable_image(self, wanted: int) -> tuple[int, Image.Image, int]:
        """Image `wanted`, or the next to learn from that can be read, with its number, and how
        many could not."""
        place = int(np.searchsorted(self.numbers, wanted))
        first: InputError | None = None
        for skipped in range(len(self.numbers)):
            number = int(self.numbers[(place + skipped) % len(self.numbers)])
            try:
                return number, self._image(number), skipped
            except InputError as error:
                first = first or error  # counted by the caller and shown in the log
        tried = counted(len(self.numbers), "image")
        raise InputError(
            f"None of the {tried} of {self.source.name} can be read. The first: {first}"
        )

    def _image(self, number: int) -> Image.Image:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        side = DECODE_MARGIN * max(max(size.global_size, size.gram_size) for size in self._sizes)
        decoded = decode(self.source.read(number), name=self.source.key(number), shorter_side=side)
        image = Image.fromarray(decoded.pixels)
        if min(image.size) > side:
            image.thumbnail(
                (
                    side * image.width // min(image.size),
                    side * image.height // min(image.size),
                )
            )
        worker = get_worker_info()
        self._cache[number] = image
        self._cached_bytes += image.width * image.height * 3
        while self._cached_bytes > self.cache_bytes // (
            worker.num_workers if worker is not None else 1
        ):
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.width * oldest.height * 3
        return image


def resolutions(crops: CropConfig, *, gram_size: int | None) -> tuple[Resolution, ...]:
    """The sizes that steps are made at: those of the config, or the one."""
    only = Resolution(
        share=1.0,
        global_size=crops.global_size,
        local_size=crops.local_size,
        gram_size=gram_size or 0,
    )
    return crops.resolutions or (only,)


class EpochOrder(Sampler[list[Place]]):
    """Batches of places from `first_step` to `last_step`; each epoch is a new order, without a
    partial batch.

    A batch is taken in `parts`, one after the other; of `size` processes, that of `rank` takes its
    slice of every part, so that a part is of the same images however many processes there are.
    InputError where there are no equal slices.
    """

    def __init__(
        self,
        numbers: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        first_step: int,
        last_step: int,
        rank: int = 0,
        size: int = 1,
        parts: int = 1,
        shares: Sequence[float] = (1.0,),  # of the resolutions
        # that an image has, which epochs take in turn; 0: a new one every epoch
        num_views: int = 0,
        locality: Locality | None = None,  # of all items that `numbers` choose from
    ) -> None:
        if batch_size % (size * parts):
            whose = f"{counted(size, 'process', 'processes')} alike" + (
                f", each in engine.accumulate {parts} parts" if parts > 1 else ""
            )
            raise InputError(
                f"run.batch_size {batch_size} cannot be shared by {whose}; change one."
            )
        if len(numbers) < batch_size:
            there_are = (
                f"There {'is' if len(numbers) == 1 else 'are'} {counted(len(numbers), 'image')}"
                " to train on"
            )
            lower = " or lower --batch-size" if len(numbers) >= LEAST_BATCH else ""
            raise InputError(f"{there_are}, fewer than a batch of {batch_size}; add images{lower}.")
        self.batch_size, self.seed, self.num_views = batch_size, seed, num_views
        self.numbers = np.sort(numbers)
        self.locality = (
            None
            if locality is None
            else locality._replace(group_of=locality.group_of[self.numbers])
        )
        # Which time that a number comes it is, so that an image that is there twice is cropped in
        # two ways.
        self.times = np.arange(len(numbers)) - np.searchsorted(self.numbers, self.numbers)
        self.most_times = 1 + int(self.times.max(initial=0))
        self.first_step, self.last_step = first_step, last_step
        self.shares = np.cumsum(shares) / np.sum(shares)
        # of this process in every batch
        self.places = np.arange(batch_size).reshape(parts, size, -1)[:, rank].ravel()

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[Place]]:
        per_epoch = len(self.numbers) // self.batch_size
        epoch_of_order, order = -1, np.arange(len(self.numbers))
        for step in range(self.first_step, self.last_step):
            epoch, batch = divmod(step, per_epoch)
            if epoch != epoch_of_order:
                order = draw_order(
                    rng_for(self.seed, ORDER, epoch), len(self.numbers), self.locality
                )
                epoch_of_order = epoch
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size][self.places]
            drawn = rng_for(self.seed, RESOLUTION, step).random() if len(self.shares) > 1 else 0.0
            resolution = int(np.searchsorted(self.shares, drawn, side="right"))
            views = epoch * self.most_times + self.times[chosen]
            if self.num_views:
                views = views % self.num_views
            numbers = self.numbers[chosen]
            yield [
                (int(view), int(number), resolution)
                for view, number in zip(views, numbers, strict=True)
            ]


def draw_order(rng: np.random.Generator, count: int, locality: Locality | None) -> np.ndarray:
    """Draw the order of an epoch's items: any order, or one in which only a few row groups are read
    from at a time.

    The groups are shuffled, and the rows of `active` groups that follow each other are mixed: the
    item of a group with rank r comes at r + active * u with u uniform in [0, 1), and an item that
    lies in no group comes anywhere.
    """
    if locality is None or locality.num_bytes.sum() <= ACTIVE_BYTES:
        return rng.permutation(count)
    num_groups = len(locality.num_bytes)
    active = int(np.clip(ACTIVE_BYTES // max(1, locality.num_bytes.mean()), MIN_ACTIVE, MAX_ACTIVE))
    rank, uniform = rng.permutation(num_groups), rng.random(count)
    in_group = locality.group_of >= 0
    places = np.where(
        in_group, rank[locality.group_of] + active * uniform, (num_groups + active - 1) * uniform
    )
    return np.argsort(places, kind="stable")


def stack(samples: Sequence[Sample]) -> Crops:
    """Samples of one batch as Crops, channels first, crops ahead of images."""

    def images(field: int) -> Tensor:
        arrays = np.stack([sample[field] for sample in samples], axis=1)
        return torch.from_numpy(np.ascontiguousarray(arrays.transpose(0, 1, 4, 2, 3)))

    def rows(field: int) -> Tensor:
        return torch.from_numpy(np.stack([sample[field] for sample in samples], axis=1))

    places = torch.from_numpy(np.stack([sample.place for sample in samples]))
    num_unreadable = sum(sample.num_unreadable for sample in samples)
    return Crops(images(0), rows(1), images(2), rows(3), rows(4), images(5), places, num_unreadable)


def workers_within_memory(wanted: int, *, processes: int = 1) -> int:
    """Return `wanted` loader workers, or fewer where memory is limited; as many in each of
    `processes` that share a machine.

    Half of the spare memory is left to the training itself. A worker is taken to decode photographs
    of 24 million pixels whole.
    """
    if wanted == 0:
        return 0
    return workers_that_fit(
        wanted, worker_bytes=processes * WORKER_BYTES, reserved=spare_memory() // 2
    )


def crop_loader(
    dataset: CropDataset, order: Sampler[list[Place]] | Sequence[list[Place]], *, workers: int
) -> DataLoader[Crops]:
    """Batches of `order`; with workers == 0 they are made in this process. Worker count changes no
    byte of them.

    The data set's cache is cut to a share of the memory that is there, which changes no byte
    either.
    """
    dataset.cache_bytes = min(dataset.cache_bytes, int(MOST_CACHED * spare_memory()))
    loader: DataLoader[Crops] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the loader yields what `stack` makes of samples
        batch_sampler=order,
        collate_fn=stack,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_signals_to_the_loop,
    )
    return loader
