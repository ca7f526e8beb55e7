"""Promises of the crops and of the batched colors."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from featkit_train.config import ColorConfig, CropConfig
from featkit_train.images.augment import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GRAY,
    HUE,
    NUM_COLUMNS,
    SATURATION,
    SOLARIZE,
    appear,
    cut_crop,
    draw_appearance,
)


def gradient_image(height: int, width: int) -> Image.Image:
    """Draw columns into red and rows into green, so that a crop's pixels show where they come
    from."""
    columns = np.linspace(0, 255, width)[None, :].repeat(height, axis=0)
    rows = np.linspace(0, 255, height)[:, None].repeat(width, axis=1)
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8))


def rows_of(**columns: float) -> torch.Tensor:
    """Return an appearance row that is neutral except in the named columns."""
    row = torch.zeros(1, NUM_COLUMNS)
    row[:, [BRIGHTNESS, CONTRAST, SATURATION]] = 1.0
    for name, value in columns.items():
        row[
            :,
            {
                "brightness": 0,
                "contrast": 1,
                "saturation": 2,
                "hue": 3,
                "gray": 4,
                "blur": 5,
                "solarize": 6,
            }[name],
        ] = value
    return row


def random_images(count: int = 2, size: int = 16) -> torch.Tensor:
    """Draw images (count, 3, size, size) uint8."""
    return torch.randint(
        0,
        256,
        (count, 3, size, size),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.uint8,
    )


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    seed=st.integers(0, 2**32),
    low=st.floats(0.05, 1.0),
    degrees=st.sampled_from([0.0, 20.0]),
)
def test_crop_has_its_size_whatever_the_image(
    height: int, width: int, seed: int, low: float, degrees: float
) -> None:
    config = CropConfig(rotation_degrees=degrees, rotation_probability=1.0)
    image = gradient_image(height, width)
    crop = cut_crop(image, np.random.default_rng(seed), size=16, scale=(low, 1.0), config=config)
    assert crop.shape == (16, 16, 3)
    assert crop.dtype == np.uint8


def test_crop_covers_the_requested_share_of_the_area() -> None:
    config = CropConfig(flip_probability=0.0)
    image = gradient_image(256, 256)
    for seed in range(50):
        crop = cut_crop(
            image, np.random.default_rng(seed), size=64, scale=(0.25, 0.25), config=config
        ).astype(float)
        width = (crop[:, -1, 0].mean() - crop[:, 0, 0].mean()) / 255
        height = (crop[-1, :, 1].mean() - crop[0, :, 1].mean()) / 255
        assert width * height == pytest.approx(0.25, abs=0.03)
        assert 0.7 < width / height < 1.4


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(100, 300),
    width=st.integers(100, 300),
    seed=st.integers(0, 2**32),
    low=st.floats(0.1, 0.5),
    reach=st.floats(0.0, 0.4),
)
def test_crop_box_is_inside_the_image_and_its_bounds(
    height: int, width: int, seed: int, low: float, reach: float
) -> None:
    config = CropConfig(flip_probability=0.0)
    rng = np.random.default_rng(seed)
    image = gradient_image(height, width)
    crop = cut_crop(image, rng, size=64, scale=(low, low + reach), config=config).astype(float)
    # The outermost pixels of a crop show its edges, to half a pixel.
    box_width = (crop[:, -1, 0].mean() - crop[:, 0, 0].mean()) / 255 * width * 64 / 63
    box_height = (crop[-1, :, 1].mean() - crop[0, :, 1].mean()) / 255 * height * 64 / 63
    share = box_width * box_height / (height * width)
    # where the aspect would leave the image
    clipped = box_width > 0.97 * width or box_height > 0.97 * height
    assert share < (low + reach) * 1.08
    assert clipped or share > low * 0.92
    assert clipped or 0.75 * 0.92 < box_width / box_height < 4 / 3 * 1.08


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), degrees=st.sampled_from([0.0, 20.0]))
def test_crop_and_colors_depend_on_the_seed(seed: int, degrees: float) -> None:
    config = CropConfig(rotation_degrees=degrees)
    image = gradient_image(90, 120)

    def drawn(seed: int) -> tuple[bytes, bytes]:
        rng = np.random.default_rng(seed)
        crop = cut_crop(image, rng, size=32, scale=(0.2, 0.8), config=config)
        return (
            crop.tobytes(),
            draw_appearance(rng, view=0, size=32, config=ColorConfig()).tobytes(),
        )

    assert drawn(seed) == drawn(seed)
    assert drawn(seed)[0] != drawn(seed + 1)[0]
    assert drawn(seed)[1] != drawn(seed + 1)[1]


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_crop_uses_the_configured_interpolation(degrees: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    found = {}
    for name in ("bilinear", "bicubic"):
        config = CropConfig(
            rotation_degrees=degrees,
            rotation_probability=1.0,
            flip_probability=0.0,
            interpolation=name,
        )
        found[name] = cut_crop(
            noise, np.random.default_rng(1), size=64, scale=(0.5, 0.5), config=config
        ).astype(int)
    # Enlarged, the cubic's steeper slopes make differences between neighbors larger, which its
    # overshoots do too.
    slopes = {name: np.abs(np.diff(crop, axis=1)).max() for name, crop in found.items()}
    assert slopes["bicubic"] > slopes["bilinear"]
    likeness = np.corrcoef(found["bicubic"].ravel(), found["bilinear"].ravel())[0, 1]
    assert likeness > 0.95  # the same box, at the same angle


@pytest.mark.parametrize(
    ("side", "size", "sigma"), [(224, 224, 2.0), (224, 112, 1.0), (0, 112, 2.0), (0, 224, 2.0)]
)
def test_blur_scales_with_the_crop_if_configured(side: int, size: int, sigma: float) -> None:
    config = ColorConfig(blur_probability=(1.0, 1.0, 1.0), blur_sigma=(2.0, 2.0), blur_side=side)
    row = draw_appearance(np.random.default_rng(0), view=2, size=size, config=config)
    assert row[BLUR] == pytest.approx(sigma)


def test_rotated_crop_turns_about_its_center() -> None:
    config = CropConfig(rotation_degrees=20.0, rotation_probability=1.0, flip_probability=0.0)
    image = gradient_image(256, 256)
    tilts = []
    for seed in range(30):
        crop = cut_crop(
            image, np.random.default_rng(seed), size=64, scale=(0.1, 0.1), config=config
        ).astype(float)
        inner = crop[16:48, 16:48]
        if (inner[..., :2].min(axis=2) == 0).any():
            continue  # the black beyond the image says nothing of the angle
        across = inner[:, -1, :2].mean(axis=0) - inner[:, 0, :2].mean(axis=0)
        tilts.append(abs(np.degrees(np.arctan2(across[1], across[0]))))
    assert max(tilts) > 10
    assert max(tilts) < 30  # 20 degrees, stretched by the aspect ratio


def test_flip_mirrors_the_crop() -> None:
    image = gradient_image(64, 64)
    flipped = cut_crop(
        image,
        np.random.default_rng(3),
        size=32,
        scale=(0.5, 0.5),
        config=CropConfig(flip_probability=1.0),
    )
    plain = cut_crop(
        image,
        np.random.default_rng(3),
        size=32,
        scale=(0.5, 0.5),
        config=CropConfig(flip_probability=0.0),
    )
    assert np.array_equal(flipped, plain[:, ::-1])


def test_neutral_appearance_leaves_pixels_unchanged() -> None:
    images = random_images()
    torch.testing.assert_close(
        appear(images, rows_of().expand(2, -1)), images.float() / 255, atol=1e-5, rtol=0
    )


def test_brightness_contrast_and_saturation_are_pillows() -> None:
    from PIL import ImageEnhance

    images = random_images(1, 32)
    image = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    for name, enhance in (
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ):
        ours = (appear(images, rows_of(**{name: 0.6}))[0].permute(1, 2, 0) * 255).numpy()
        theirs = np.asarray(enhance(image).enhance(0.6)).astype(float)
        assert np.abs(ours - theirs).max() <= 1.5, name


def test_gray_and_solarize_are_per_image() -> None:
    images = random_images(2)
    out = appear(images, torch.cat([rows_of(gray=1.0), rows_of(solarize=1.0)]))
    assert torch.equal(out[0, 0], out[0, 1])
    pixels = images[1].float() / 255
    torch.testing.assert_close(
        out[1], torch.where(pixels >= 128 / 255, 1 - pixels, pixels), atol=1e-5, rtol=0
    )


def test_blur_equals_pillows_gaussian_inside_the_image() -> None:
    images = random_images(2, 32)
    out = appear(images, torch.cat([rows_of(blur=1.5), rows_of()]))
    torch.testing.assert_close(out[1], images[1].float() / 255, atol=1e-5, rtol=0)
    places = np.arange(-8, 9)
    kernel = np.exp(-(places**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    pixels = images[0].numpy().astype(float) / 255
    rows = np.apply_along_axis(np.convolve, 1, pixels, kernel, mode="same")
    expected = np.apply_along_axis(np.convolve, 2, rows, kernel, mode="same")
    assert np.abs(out[0].numpy() - expected)[:, 8:-8, 8:-8].max() < 1e-3
    pillow = np.asarray(
        Image.fromarray(images[0].permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(1.5))
    )
    assert np.abs(out[0].permute(1, 2, 0).numpy() * 255 - pillow)[8:-8, 8:-8].mean() < 3


def test_hue_turns_red_as_hsv_does_and_keeps_gray() -> None:
    red = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    red[:, 0] = 200
    red[:, 1:] = 60
    turned = appear(red, rows_of(hue=0.1))[0, :, 0, 0].tolist()
    hue = colorsys.rgb_to_hsv(*turned)[0]
    assert abs(min(hue, 1 - hue) - 0.1) < 0.05
    gray = torch.full((1, 3, 2, 2), 90, dtype=torch.uint8)
    torch.testing.assert_close(
        appear(gray, rows_of(hue=0.3)), gray.float() / 255, atol=1e-3, rtol=0
    )


def test_appearance_rows_follow_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    config = ColorConfig()
    rows = np.stack([draw_appearance(rng, view=1, size=224, config=config) for _ in range(2000)])
    assert (rows[:, GRAY] > 0).mean() == pytest.approx(0.2, abs=0.03)
    assert (rows[:, BLUR] > 0).mean() == pytest.approx(0.1, abs=0.03)
    assert (rows[:, SOLARIZE] > 0).mean() == pytest.approx(0.2, abs=0.03)
    assert (rows[:, HUE] != 0).mean() == pytest.approx(0.8, abs=0.03)
    assert rows[:, BRIGHTNESS].min() >= 0.6
    assert rows[:, BRIGHTNESS].max() <= 1.4
