"""Promises of what a model is measured against: raw pixels and the perceptual hash."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from featkit.evaluate.baselines import hash_vectors, perceptual_hash, pixel_vectors, pixels_of
from tests.images import draw_image

IMAGES = [draw_image(seed, height=240, width=320) for seed in range(12)]


def distance(first: Image.Image, second: Image.Image) -> int:
    """Bits that two images' hashes differ in."""
    return int(np.unpackbits(perceptual_hash(first) ^ perceptual_hash(second)).sum())


def as_jpeg(image: Image.Image, *, quality: int) -> Image.Image:
    """Saved and opened again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_hashes_compare_64_frequencies_with_their_median() -> None:
    image = IMAGES[0]
    gray = np.asarray(
        image.convert("L").resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=2.0), np.float64
    )

    def cosine(frequency: int, place: int) -> float:
        return math.cos(math.pi * frequency * (2 * place + 1) / 64)

    frequencies = [
        math.fsum(gray[y, x] * cosine(v, y) * cosine(u, x) for y in range(32) for x in range(32))
        for v in range(8)
        for u in range(8)
    ]
    middle = sorted(frequencies)[31:33]
    bits = [frequency > sum(middle) / 2 for frequency in frequencies]
    hashed = perceptual_hash(image)
    assert hashed.shape == (8,)
    assert np.unpackbits(hashed).astype(bool).tolist() == bits


def test_a_image_and_its_copy_have_distance_0() -> None:
    for image in IMAGES:
        assert distance(image, image.copy()) == 0


@pytest.mark.parametrize("quality", [30, 75])
def test_a_hash_survives_jpeg_a_smaller_size_and_brightness(quality: int) -> None:
    for image in IMAGES:
        assert distance(image, as_jpeg(image, quality=quality)) <= 4
        assert distance(image, image.resize((160, 120), Image.Resampling.BICUBIC)) <= 4
        assert distance(image, ImageEnhance.Brightness(image).enhance(0.9)) <= 4


def test_hashes_of_different_images_are_far_apart() -> None:
    distances = [distance(first, second) for first, second in itertools.combinations(IMAGES, 2)]
    assert min(distances) >= 12
    assert 24 <= np.mean(distances) <= 36


def test_products_of_hash_vectors_are_hamming_distances_exactly() -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (9, 8), dtype=np.uint8)
    vectors = hash_vectors(hashes)
    assert vectors.shape == (9, 64)
    assert vectors.dtype == np.float32
    for (i, first), (j, second) in itertools.product(enumerate(hashes), repeat=2):
        hamming = sum(int(a ^ b).bit_count() for a, b in zip(first, second, strict=True))
        assert float(vectors[i] @ vectors[j]) == 1 - hamming / 32


def test_pixels_are_the_whole_image_at_32_by_32() -> None:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    np.testing.assert_array_equal(pixels_of(small), np.asarray(small).flatten())
    halves = Image.new("RGB", (64, 96), (10, 20, 30))
    halves.paste((200, 100, 50), (0, 48, 64, 96))
    rows = pixels_of(halves).reshape(32, 32, 3)
    assert (rows[:15] == (10, 20, 30)).all()
    assert (rows[17:] == (200, 100, 50)).all()


def test_pixel_vectors_are_centered_then_normalized() -> None:
    pixels = np.zeros((2, 4), np.uint8)
    pixels[0], pixels[1] = (3, 4, 0, 0), (5, 0, 12, 0)
    np.testing.assert_allclose(
        pixel_vectors(pixels, 0.0), [[0.6, 0.8, 0, 0], [5 / 13, 0, 12 / 13, 0]], rtol=1e-6
    )
    # Less their mean (4, 2, 6, 0) they are opposite.
    centered = pixel_vectors(pixels, pixels.mean(axis=0))
    expected = np.array([-1, 2, -6, 0]) / math.sqrt(41)
    np.testing.assert_allclose(centered, [expected, -expected], rtol=1e-6)
    assert centered.dtype == np.float32


def test_only_plain_pixels_take_a_bright_ground_for_likeness() -> None:
    grounds = np.stack([pixels_of(ImageEnhance.Brightness(image).enhance(1.5)) for image in IMAGES])

    def mean_product(vectors: np.ndarray) -> float:
        products = vectors @ vectors.T
        return float(products[~np.eye(len(vectors), dtype=bool)].mean())

    assert mean_product(pixel_vectors(grounds, 0.0)) > 0.5
    assert abs(mean_product(pixel_vectors(grounds, grounds.mean(axis=0)))) < 0.2
