"""Augmentation of training images: crops are cut one by one in workers, colors applied to batches.

A worker draws everything (box, angle, flip, colors) from a generator keyed by the image, so that no
result depends on which worker computed it or when. It cuts the crops and sends an appearance row
with each; `appear` applies the colors to a whole batch on the training device.

Follows DINO (arXiv 2104.14294) and its released code with two differences, which make a batch one
computation. Hue turns in YIQ instead of HSV, which is one matrix for each image. Brightness,
contrast, saturation and hue follow in this order; torchvision's ColorJitter draws an order for each
image.

Letters: B images, C crops of each, (S, S) pixels of a crop.
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
    """Cut a random resized crop, rotated and flipped at random: (S, S, 3) uint8.

    The area is uniform in `scale`, the aspect ratio log-uniform in 3/4 .. 4/3, as in torchvision's
    RandomResizedCrop. Parts of a rotated box outside the image are black.
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
    """Resample the box, rotated about its center, to size × size pixels."""
    # Affine transforms do not antialias, so the image is first reduced by a whole factor.
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
    """Draw a box inside the image: (left, top, width, height) in pixels."""
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
    """Draw an appearance row (7,) float32. view: 0 or 1 for global crops, 2 for local ones."""
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
    """Apply appearance rows (B, 7) to images (B, 3, S, S) uint8; return float32 in 0 .. 1."""
    pixels = images.float() / 255
    columns = appearance.to(pixels.device, non_blocking=True).T[:, :, None, None, None]
    # columns: (7, B, 1, 1, 1)
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
    """Move crops (C, B, 3, S, S) uint8 to the device, apply appearance (C, B, 7), and normalize."""
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
    """Return matrices (B, 3, 3) that rotate the chroma plane of YIQ by shares of a full circle."""
    to_yiq = torch.tensor(RGB_TO_YIQ, dtype=turns.dtype, device=turns.device)
    cosine, sine = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    zero, one = torch.zeros_like(turns), torch.ones_like(turns)
    rows = (one, zero, zero, zero, cosine, -sine, zero, sine, cosine)
    turn = torch.unflatten(torch.stack(rows, dim=1), 1, (3, 3))
    out: Tensor = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return out


def _blur(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each image by its own sigma in pixels; 0 leaves it unchanged.

    The blur is separable: two products with one (S, S) matrix for each image. At training sizes
    that is faster than a convolution, which would need a group for every channel of every image.
    """
    blurred = torch.nonzero(sigmas > 0).flatten()
    if len(blurred) == 0:
        return pixels
    kernel = _blur_matrices(sigmas[blurred], pixels.shape[-1]).to(pixels.device)
    out = pixels.clone()
    out[blurred] = torch.einsum("bij,bcjk,blk->bcil", kernel, pixels[blurred], kernel)
    return out


def _blur_matrices(sigmas: Tensor, size: int) -> Tensor:
    """Return matrices (B, S, S) whose row i is a Gaussian around i, renormalized at the edges."""
    positions = torch.arange(size, dtype=torch.float32, device=sigmas.device)
    distance = positions[:, None] - positions[None, :]  # (S, S)
    weights = torch.exp(-(distance**2) / (2 * sigmas[:, None, None] ** 2))
    return weights / weights.sum(dim=2, keepdim=True)
