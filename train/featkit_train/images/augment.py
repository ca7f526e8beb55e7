"""What happens to an image before a backbone sees it in training: crops one by one in workers,
color by the batch.

A worker decides everything (box, angle, flip, colors) from a generator keyed by the item, so that
no result depends on who computed it or when. It cuts the crops; `Appearance` rows travel with them,
and `appear` applies the colors to a whole batch on the training device. DINO (arXiv 2104.14294)
and its released code, but for two things that make a batch one computation: the hue turns in YIQ
instead of HSV, which is one matrix for an image, and brightness, contrast, saturation and hue
follow in this order, where torchvision's ColorJitter draws one for each image.

Letters: B images, (S, S) pixels of a crop.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featkit.geometry import RESAMPLING
from featkit_train.config import ColorConfig, CropConfig
from featkit_train.networks.normalization import normalize

# Columns of an appearance row.
BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY, BLUR, SOLARIZE = range(7)
NUM_COLUMNS = 7
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def cut_crop(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float],
    config: CropConfig,
) -> np.ndarray:
    """A random resized crop, turned and flipped: (S, S, 3) uint8.

    The area is uniform in `scale`, the aspect ratio log-uniform in 3/4 .. 4/3, as torchvision's
    RandomResizedCrop. Where a turned box leaves the image, its corners are black.
    """
    left, top, width, height = _random_box(image.width, image.height, rng, scale=scale)
    turned = rng.random() < config.rotation_probability and config.rotation_degrees > 0
    angle = (
        math.radians(rng.uniform(-config.rotation_degrees, config.rotation_degrees))
        if turned
        else 0.0
    )
    flipped = rng.random() < config.flip_probability
    filter_ = RESAMPLING[config.interpolation]
    if angle == 0.0:
        box = (left, top, left + width, top + height)
        crop = image.resize((size, size), filter_, box=box, reducing_gap=2.0)
    else:
        crop = _turned_crop(
            image, (left, top, width, height), size=size, angle=angle, filter_=filter_
        )
    pixels = np.asarray(crop)
    return np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels


def _turned_crop(
    image: Image.Image,
    box: tuple[float, float, float, float],
    *,
    size: int,
    angle: float,
    filter_: Image.Resampling,
) -> Image.Image:
    """The box, turned about its center, as size × size pixels: reduced by a whole factor first, so
    that nothing aliases."""
    left, top, width, height = box
    factor = max(1, int(min(width, height) / size))
    source = image.reduce(factor) if factor > 1 else image
    center_x, center_y = (left + width / 2) / factor, (top + height / 2) / factor
    step_x, step_y = width / factor / size, height / factor / size
    cosine, sine = math.cos(angle), math.sin(angle)
    half = size / 2
    rows = (
        (cosine * step_x, -sine * step_y, center_x - half * (cosine * step_x - sine * step_y)),
        (sine * step_x, cosine * step_y, center_y - half * (sine * step_x + cosine * step_y)),
    )
    affine = Image.Transform.AFFINE
    return source.transform((size, size), affine, (*rows[0], *rows[1]), filter_)


def _random_box(
    width: int, height: int, rng: np.random.Generator, *, scale: tuple[float, float]
) -> tuple[float, float, float, float]:
    """(left, top, width, height) in pixels, inside the image."""
    area = width * height * rng.uniform(*scale)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    box_width = min(float(width), math.sqrt(area * ratio))
    box_height = min(float(height), math.sqrt(area / ratio))
    return (
        rng.uniform(0, width - box_width),
        rng.uniform(0, height - box_height),
        box_width,
        box_height,
    )


def draw_appearance(
    rng: np.random.Generator, *, view: int, size: int, config: ColorConfig
) -> np.ndarray:
    """One appearance row, float32 (7,), for a crop that is view 0 or 1 (global) or 2 (local)."""
    row = np.zeros(NUM_COLUMNS, np.float32)
    row[[BRIGHTNESS, CONTRAST, SATURATION]] = 1.0
    if rng.random() < config.jitter_probability:
        for column, amount in (
            (BRIGHTNESS, config.brightness),
            (CONTRAST, config.contrast),
            (SATURATION, config.saturation),
        ):
            row[column] = rng.uniform(max(0.0, 1 - amount), 1 + amount)
        row[HUE] = rng.uniform(-config.hue, config.hue)
    row[GRAY] = rng.random() < config.gray_probability
    if rng.random() < config.blur_probability[view]:
        row[BLUR] = rng.uniform(*config.blur_sigma) * (
            size / config.blur_side if config.blur_side else 1
        )
    row[SOLARIZE] = rng.random() < config.solarize_probability[view]
    return row


def appear(images: Tensor, appearance: Tensor) -> Tensor:
    """Colors of a batch: images (B, 3, S, S) uint8 and rows (B, 7) to (B, 3, S, S) float32 in 0 ..
    1."""
    pixels = images.float() / 255
    columns = appearance.to(pixels.device, non_blocking=True).T[:, :, None, None, None]
    pixels = (pixels * columns[BRIGHTNESS]).clamp(0, 1)
    mean = _gray(pixels).mean(dim=(2, 3), keepdim=True)
    pixels = torch.lerp(mean.expand_as(pixels), pixels, columns[CONTRAST]).clamp(0, 1)
    pixels = torch.lerp(_gray(pixels).expand_as(pixels), pixels, columns[SATURATION]).clamp(0, 1)
    turns = _hue_turns(columns[HUE].flatten())
    pixels = torch.einsum("bij,bjhw->bihw", turns, pixels).clamp(0, 1)
    pixels = torch.where(columns[GRAY] > 0, _gray(pixels), pixels)
    pixels = _blur(pixels, appearance[:, BLUR])
    return torch.where((columns[SOLARIZE] > 0) & (pixels >= 128 / 255), 1 - pixels, pixels)


def as_seen(
    images: Tensor,
    appearance: Tensor | None,
    *,
    device: torch.device,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """uint8 crops (C, B, 3, S, S), with their rows of colors (C, B, 7), to normalized floats on
    the device."""
    if images.shape[0] == 0:
        return images.to(device, torch.float32)
    pixels = images.flatten(0, 1).to(device, non_blocking=True)
    pixels = (
        pixels.float() / 255 if appearance is None else appear(pixels, appearance.flatten(0, 1))
    )
    return torch.unflatten(normalize(pixels, mean=mean, std=std), 0, images.shape[:2])


def _gray(pixels: Tensor) -> Tensor:
    return torch.einsum("c,bchw->bhw", pixels.new_tensor(GRAY_WEIGHTS), pixels)[:, None]


def _hue_turns(turns: Tensor) -> Tensor:
    """(B, 3, 3) matrices that turn the chroma plane of YIQ by a share of a full circle."""
    to_yiq = torch.tensor(RGB_TO_YIQ, dtype=turns.dtype, device=turns.device)
    cosine, sine = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    zero, one = torch.zeros_like(turns), torch.ones_like(turns)
    rows = (one, zero, zero, zero, cosine, -sine, zero, sine, cosine)
    turn = torch.unflatten(torch.stack(rows, dim=1), 1, (3, 3))
    out: Tensor = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return out


def _blur(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Gaussian blur, each image by its own sigma in pixels (0: untouched).

    Separable, as products with a (S, S) matrix an image: at training sizes faster than a
    convolution, which would need a group for every channel of every image.
    """
    blurred = torch.nonzero(sigmas > 0).flatten()
    if len(blurred) == 0:
        return pixels
    kernel = _blur_matrices(sigmas[blurred], pixels.shape[-1]).to(pixels.device)
    out = pixels.clone()
    out[blurred] = torch.einsum("bij,bcjk,blk->bcil", kernel, pixels[blurred], kernel)
    return out


def _blur_matrices(sigmas: Tensor, size: int) -> Tensor:
    """(B, S, S): row i holds the Gaussian about i, renormalized at the edges."""
    places = torch.arange(size, dtype=torch.float32, device=sigmas.device)
    distance = places[:, None] - places[None, :]
    weights = torch.exp(-(distance**2) / (2 * sigmas[:, None, None] ** 2))
    return weights / weights.sum(dim=2, keepdim=True)
