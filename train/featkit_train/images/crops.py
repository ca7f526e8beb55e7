"""Crops of images for training: the record of a batch, and the dataset that cuts them.

Every random choice is keyed by (seed, purpose, view, image index), so that a batch is the same
whichever worker made it, and a resumed run sees the crops that the unbroken one would have seen.

Letters: B images, G global and L local crops of each, C crops of either kind, (S, S), (s, s) and
(Z, Z) pixels, (h, w) patches of a global crop.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from featkit.errors import InputError
from featkit.images import decode
from featkit.sources import Source
from featkit.wording import counted
from featkit_train.config import ColorConfig, CropConfig, IbotConfig, Resolution
from featkit_train.images.augment import NUM_COLUMNS, cut_crop, draw_appearance
from featkit_train.images.masks import draw_mask
from featkit_train.random_streams import CROPS, MASKS, rng_for

# The cache keeps images at this multiple of the size that crops need, so that a crop of a small box
# still has detail.
DECODE_MARGIN = 2

CropKey: TypeAlias = tuple[int, int, int]  # view (or epoch), image index, index of the resolution
Record = TypeVar("Record")


class CropSet(NamedTuple):
    """Crops of one size with their colors, which are applied on the training device."""

    images: Tensor  # (C, B, 3, S, S) uint8
    appearance: Tensor  # (C, B, 7) float32, rows of `draw_appearance`


class Crops(NamedTuple):
    """The crops of a batch. Images lie along dimension 1 of every tensor.

    The crops of one image are the same record without that dimension.
    """

    global_crops: CropSet
    local_crops: CropSet
    masks: Tensor  # (G, B, h, w) bool, True for hidden patches; all False if none were requested
    gram_images: (
        Tensor  # (G, B, 3, Z, Z) uint8, the global crops' boxes for a Gram teacher, or (0, …)
    )
    indices: Tensor  # (2, B) int64: the image's index in the source, and which view of it
    num_unreadable: Tensor  # (1, B) int64: unreadable images that this one replaces

    @property
    def num_images(self) -> int:
        """B."""
        return self.indices.shape[1]

    def micro_batch(self, index: int, *, size: int) -> Crops:
        """Return images index * size up to (index + 1) * size."""
        images = slice(index * size, (index + 1) * size)
        return join_fields(lambda tensors: tensors[0][:, images], [self])


def stack(samples: Sequence[Crops]) -> Crops:
    """Stack the crops of single images into a batch."""
    return join_fields(lambda tensors: torch.stack(tensors, dim=1), samples)


def join_fields(join: Callable[[list[Tensor]], Tensor], records: Sequence[Record]) -> Record:
    """Return a record that joins each field of all records with `join`, including nested
    records."""
    first = records[0]
    if isinstance(first, Tensor):
        return join(list(records))  # type: ignore[arg-type,return-value]
    fields = zip(*records, strict=True)
    return type(first)(*(join_fields(join, field) for field in fields))


@dataclass(frozen=True, kw_only=True)
class CropSpec:
    """The crops that a method needs of each image."""

    num_global: int = 2
    local: bool = True  # whether the method uses local crops
    patch: int = 16  # pixels
    masks: IbotConfig | None = None  # hide patches of the global crops
    gram_size: int | None = None  # size in pixels of the crops for a Gram teacher


class CropDataset(Dataset[Crops]):
    """The crops of an image by CropKey.

    indices: the sorted indices of the images to learn from; all by default.
    """

    def __init__(
        self,
        source: Source,
        *,
        crops: CropConfig,
        color: ColorConfig,
        seed: int,
        cache_bytes: int,
        indices: np.ndarray | None = None,
        spec: CropSpec | None = None,
    ) -> None:
        self.source, self.crops, self.color, self.seed = source, crops, color, seed
        self.indices = np.arange(len(source)) if indices is None else indices
        self.cache_bytes = cache_bytes
        self.spec = spec or CropSpec()
        self._sizes = resolutions(crops, gram_size=self.spec.gram_size)
        self._cache: OrderedDict[int, Image.Image] = OrderedDict()
        self._cached_bytes = 0

    def __getitem__(self, key: CropKey) -> Crops:
        view, wanted, resolution = key
        size, config = self._sizes[resolution], self.crops
        index, image, num_unreadable = self._readable_image(wanted)
        rng = rng_for(self.seed, CROPS, view, index)
        global_images, gram_images = [], []
        for _ in range(self.spec.num_global):
            same_box = copy.deepcopy(rng)
            global_images.append(
                cut_crop(
                    image, rng, size=size.global_size, scale=config.global_scale, config=config
                )
            )
            if self.spec.gram_size is not None:
                gram_images.append(
                    cut_crop(
                        image,
                        same_box,
                        size=size.gram_size,
                        scale=config.global_scale,
                        config=config,
                    )
                )
        local_images = [
            cut_crop(image, rng, size=size.local_size, scale=config.local_scale, config=config)
            for _ in range(config.num_local if self.spec.local else 0)
        ]
        # After all boxes: colors are drawn from the same stream, and reordering would change runs.
        global_rows = [
            draw_appearance(rng, view=crop, size=size.global_size, config=self.color)
            for crop in range(self.spec.num_global)
        ]
        local_rows = [
            draw_appearance(rng, view=2, size=size.local_size, config=self.color)
            for _ in local_images
        ]
        return Crops(
            global_crops=CropSet(_images_of(global_images), _rows_of(global_rows)),
            local_crops=CropSet(_images_of(local_images), _rows_of(local_rows)),
            masks=self._masks(view, index, size.global_size // self.spec.patch),
            gram_images=_images_of(gram_images),
            indices=torch.tensor([index, view]),
            num_unreadable=torch.tensor([num_unreadable]),
        )

    def _masks(self, view: int, index: int, side: int) -> Tensor:
        """Return (G, h, w) bool with h = w = side."""
        if self.spec.masks is None:
            return torch.zeros(self.spec.num_global, side, side, dtype=torch.bool)
        rng = rng_for(self.seed, MASKS, view, index)
        masks = [
            draw_mask(rng, grid=(side, side), config=self.spec.masks)
            for _ in range(self.spec.num_global)
        ]
        return torch.from_numpy(np.stack(masks))

    def _readable_image(self, wanted: int) -> tuple[int, Image.Image, int]:
        """Return the first readable image from `wanted` on: its index, the image, and how many were
        skipped."""
        start = int(np.searchsorted(self.indices, wanted))
        first_error: InputError | None = None
        for num_skipped in range(len(self.indices)):
            index = int(self.indices[(start + num_skipped) % len(self.indices)])
            try:
                return index, self._image(index), num_skipped
            except InputError as error:  # counted by the caller and shown in the log
                first_error = first_error or error
        tried = counted(len(self.indices), "image")
        raise InputError(
            f"None of the {tried} of {self.source.name} can be read. The first: {first_error}"
        )

    def _image(self, index: int) -> Image.Image:
        """Return an image from the cache, or decode it and evict the least recently used."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        side = DECODE_MARGIN * max(max(size.global_size, size.gram_size) for size in self._sizes)
        decoded = decode(self.source.read(index), name=self.source.key(index), shorter_side=side)
        image = Image.fromarray(decoded.pixels)
        shorter = min(image.size)
        if shorter > side:  # a decoder reduces by whole factors only
            image.thumbnail((side * image.width // shorter, side * image.height // shorter))
        self._cache[index] = image
        self._cached_bytes += image.width * image.height * 3
        worker = get_worker_info()
        num_caches = worker.num_workers if worker is not None else 1
        while self._cached_bytes > self.cache_bytes // num_caches:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.width * oldest.height * 3
        return image


def _images_of(crops: Sequence[np.ndarray]) -> Tensor:
    """Return crops (S, S, 3) as one tensor (C, 3, S, S)."""
    if not crops:
        return torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    return torch.from_numpy(np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2)))


def _rows_of(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, NUM_COLUMNS)


def resolutions(crops: CropConfig, *, gram_size: int | None) -> tuple[Resolution, ...]:
    """Return the crop sizes that steps train at: the config's resolutions, or its single size."""
    only = Resolution(
        share=1.0,
        global_size=crops.global_size,
        local_size=crops.local_size,
        gram_size=gram_size or 0,
    )
    return crops.resolutions or (only,)
