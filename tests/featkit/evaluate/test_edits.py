"""Promises of the edits: drawn by seed and key alone, inside their ranges, and what each one does
to an image."""

from __future__ import annotations

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from featkit.evaluate import edits
from featkit.evaluate.edits import (
    COLOR_FACTOR,
    EDITS_VERSION,
    FINISHES,
    SINGLE_EDITS,
    TEXTS,
    WORKING_LONGEST,
    WORKING_SIDE,
    Blur,
    Color,
    Crop,
    Edit,
    Flip,
    Jpeg,
    Rotate,
    Text,
    apply_edits,
    draw_compound,
    draw_single,
    working_image,
)
from tests.images import draw_image

KEYS = [f"folder/{number}.jpg" for number in range(40)]
COMPOUNDS = [draw_compound(seed=0, key=str(number), number=1) for number in range(1000)]


def described(*drawn: Edit) -> list[object]:
    """Names and parameters, rounded to what every machine's exp and log agree on."""
    numbers = [(edit.name, *vars(edit).values()) for edit in drawn]
    return [
        [round(value, 9) if isinstance(value, float) else value for value in row] for row in numbers
    ]


def all_edits(key: str, *, seed: int = 0) -> list[object]:
    """Everything that an image gets."""
    compounds = [
        edit for number in range(4) for edit in draw_compound(seed=seed, key=key, number=number)
    ]
    return described(*compounds, *(draw_single(name, seed=seed, key=key) for name in SINGLE_EDITS))


def pixels(image: Image.Image) -> np.ndarray:
    """Float64, so that differences have a sign."""
    return np.asarray(image, np.float64)


def test_edits_of_a_image_are_the_same_in_any_order_and_thread() -> None:
    forwards = {key: all_edits(key) for key in KEYS}
    backwards = {key: all_edits(key) for key in reversed(KEYS)}
    with ThreadPoolExecutor(4) as threads:
        threaded = dict(zip(KEYS, threads.map(all_edits, KEYS), strict=True))
    assert forwards == backwards == threaded


def test_edits_differ_between_seeds_keys_and_numbers() -> None:
    drawn = [json.dumps(all_edits(key, seed=seed)) for key in KEYS for seed in (0, 1)]
    assert len(set(drawn)) == len(drawn)
    compounds = [described(*draw_compound(seed=0, key="a", number=number)) for number in range(4)]
    assert len({json.dumps(compound) for compound in compounds}) == 4


def test_version_1_draws_what_it_always_drew() -> None:
    # Of parameters, not pixels, which belong to Pillow's version. Another digest is another
    # yardstick: raise EDITS_VERSION.
    text = json.dumps(
        [all_edits(key, seed=seed) for seed in (0, 7) for key in ("a.jpg", "dir/é.png")]
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert (EDITS_VERSION, digest) == (
        1,
        "6f507fe090a9f622db89a805585e0b1c81696144612bc186ef0097becb218251",
    )


def test_the_version_is_part_of_the_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    before = all_edits("a.jpg")
    monkeypatch.setattr(edits, "EDITS_VERSION", 2)
    assert all_edits("a.jpg") != before


def test_compounds_apply_their_edits_in_order() -> None:
    for drawn in COMPOUNDS:
        names = [edit.name for edit in drawn]
        middle = ["flip"] if len(names) == 5 else []
        assert names[:-1] == ["rotate", "crop", *middle, "color"]
        assert names[-1] in FINISHES


def test_compounds_flip_half_the_time_finishes_are_even() -> None:
    flips = sum(any(isinstance(edit, Flip) for edit in drawn) for drawn in COMPOUNDS)
    assert abs(flips - 500) < 4 * math.sqrt(1000 / 4)
    for finish in FINISHES:
        count = sum(drawn[-1].name == finish for drawn in COMPOUNDS)
        assert abs(count - 1000 / 3) < 4 * math.sqrt(1000 * 2 / 9)


def test_parameters_fill_their_ranges_and_never_leave_them() -> None:
    ranges = {
        ("crop", "area"): (0.30, 0.80),
        ("crop", "across"): (0.0, 1.0),
        ("crop", "down"): (0.0, 1.0),
        ("rotate", "degrees"): (-20.0, 20.0),
        ("color", "brightness"): COLOR_FACTOR,
        ("color", "contrast"): COLOR_FACTOR,
        ("color", "saturation"): COLOR_FACTOR,
        ("blur", "radius"): (0.006, 0.012),
        ("text", "height"): (0.10, 0.20),
    }
    for (name, parameter), (low, high) in ranges.items():
        drawn = [
            getattr(edit, parameter)
            for compound in COMPOUNDS
            for edit in compound
            if edit.name == name
        ]
        spread = high - low
        assert low <= min(drawn) < low + 0.05 * spread, (name, parameter)
        assert high - 0.05 * spread < max(drawn) <= high, (name, parameter)
    assert {
        edit.words for compound in COMPOUNDS for edit in compound if isinstance(edit, Text)
    } == set(TEXTS)
    assert {
        edit.light for compound in COMPOUNDS for edit in compound if isinstance(edit, Text)
    } == {True, False}


@pytest.mark.parametrize("size", [(600, 400), (256, 1024), (97, 101)])
def test_crops_keep_30_to_80_percent_and_lie_inside(size: tuple[int, int]) -> None:
    width, height = size
    white = Image.new("RGB", size, "white")
    for compound in COMPOUNDS[:200]:
        (crop,) = (edit for edit in compound if isinstance(edit, Crop))
        cut = crop(white)
        rounding = (cut.width + cut.height) / (width * height)
        assert 0.30 - rounding <= cut.width * cut.height / (width * height) <= 0.80 + rounding
        aspect = (cut.width / cut.height) / (width / height)
        assert 3 / 4 * 0.96 <= aspect <= 4 / 3 * 1.04
        assert np.asarray(cut).min() == 255  # what lies outside is black


def test_a_crop_is_the_box_it_says() -> None:
    image = draw_image(0, height=100, width=200)
    crop = Crop(area=0.5, aspect=1.0, across=1.0, down=0.0)
    expected = np.asarray(image)[:71, 200 - 141 :]
    np.testing.assert_array_equal(np.asarray(crop(image)), expected)
    tiny = Crop(area=0.3, aspect=1.0, across=0.5, down=0.5)(Image.new("RGB", (1, 1)))
    assert tiny.size == (1, 1)


def test_a_rotation_is_counter_clockwise_about_the_center() -> None:
    image = draw_image(1, height=64, width=64)
    np.testing.assert_array_equal(np.asarray(Rotate(90.0)(image)), np.rot90(np.asarray(image)))
    image = draw_image(1, height=60, width=80)
    angle, (x, y) = math.radians(17.0), (40.0, 30.0)
    cos, sin = math.cos(angle), math.sin(angle)
    # Pillow's affine matrix goes from places of the result to places of the original.
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    expected = image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    turned = Rotate(17.0)(image)
    np.testing.assert_allclose(pixels(turned), pixels(expected), atol=1)
    assert turned.getpixel((0, 0)) == (0, 0, 0)


def test_a_flip_mirrors_left_and_right() -> None:
    image = draw_image(2)
    np.testing.assert_array_equal(np.asarray(Flip()(image)), np.asarray(image)[:, ::-1])


def test_color_follows_its_definition() -> None:
    image = draw_image(3)
    original = pixels(image)
    gray = pixels(image.convert("L").convert("RGB"))
    cases = {
        Color(0.8, 1.0, 1.0): 0.8 * original,
        Color(1.0, 1.25, 1.0): gray.mean() + 1.25 * (original - gray.mean()),
        Color(1.0, 1.0, 0.7): gray + 0.7 * (original - gray),
    }
    for color, expected in cases.items():
        np.testing.assert_allclose(pixels(color(image)), np.clip(expected, 0, 255), atol=1.01)
    assert color_by_hand(image, (1.3, 0.7, 1.2)) == Color(1.3, 0.7, 1.2)(image)
    assert Color(1.0, 1.0, 1.0)(image) == image


def color_by_hand(image: Image.Image, factors: tuple[float, float, float]) -> Image.Image:
    """Brightness, contrast, saturation, in this order."""
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        image = enhance(image).enhance(factor)
    return image


def test_jpeg_is_a_file_of_quality_30(tmp_path: Path) -> None:
    image = draw_image(4)
    image.save(tmp_path / "q.jpg", quality=30, subsampling="4:2:0")
    assert draw_single("jpeg", seed=0, key="a") == Jpeg(30)
    assert Jpeg(30)(image) == Image.open(tmp_path / "q.jpg").convert("RGB")


def test_blur_is_gaussian_of_a_share_of_the_shorter_side() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    sigma = 0.01 * 200
    taps = np.arange(-8, 9)
    kernel = np.exp(-(taps**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = sum(
        weight * np.roll(noise.astype(np.float64), tap, axis=0)
        for weight, tap in zip(kernel, taps, strict=True)
    )
    expected = sum(
        weight * np.roll(expected, tap, axis=1) for weight, tap in zip(kernel, taps, strict=True)
    )
    blurred = pixels(Blur(0.01)(Image.fromarray(noise)))
    inside = (slice(20, -20), slice(20, -20))
    difference = (blurred - expected)[inside]
    assert np.sqrt((difference**2).mean()) < 0.1 * expected[inside].std()


@pytest.mark.parametrize(("across", "down"), [(0.0, 0.0), (0.5, 0.3), (1.0, 1.0)])
@pytest.mark.parametrize("size", [(256, 256), (400, 256), (256, 900)])
def test_text_lies_inside_the_image_at_its_height(
    across: float, down: float, size: tuple[int, int]
) -> None:
    ground = Image.new("RGB", size, (90, 120, 150))
    text = Text("follow for more", height=0.15, across=across, down=down, light=True)
    changed = (pixels(text(ground)) != pixels(ground)).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    rim = math.ceil(0.15 * 256 / 12)
    assert width <= 0.95 * size[0] + 2 * rim
    assert 0.06 * 256 <= height <= 0.15 * 256 + 2 * rim
    # Between 0 (at the left) and 1 (at the right) by `across`, but for the rim.
    assert columns[0] == pytest.approx((size[0] - width) * across, abs=2 * rim)
    assert rows[0] == pytest.approx((size[1] - height) * down, abs=2 * rim)


def test_text_is_light_with_a_dark_rim_or_dark_with_a_light_one() -> None:
    red = (200, 0, 0)  # between black and white lie only grays
    ground = Image.new("RGB", (300, 256), red)
    for light, ink, rim in ((True, 255, 0), (False, 0, 255)):
        drawn = np.asarray(Text("SALE", 0.2, 0.5, 0.5, light)(ground))
        inside = (drawn == ink).all(axis=2)
        assert inside.any()
        assert (drawn == rim).all(axis=2).any()
        beside = inside | np.roll(inside, 1, axis=0) | np.roll(inside, 1, axis=1)
        assert not (beside & (drawn == red).all(axis=2)).any()


def test_an_edit_leaves_the_image_it_was_given_as_it_was() -> None:
    image = working_image(np.asarray(draw_image(5, height=300, width=280)))
    before = image.copy()
    for name in SINGLE_EDITS:
        edited = apply_edits(image, [draw_single(name, seed=0, key="a")])
        assert image == before, name
        assert edited.mode == "RGB"
        assert edited.tobytes() != before.tobytes(), name
    assert apply_edits(image, []) == before


def test_edits_follow_one_another_in_order() -> None:
    image = draw_image(6)
    rotate, flip = Rotate(20.0), Flip()
    assert apply_edits(image, [rotate, flip]) == flip(rotate(image))
    assert apply_edits(image, [rotate, flip]) != apply_edits(image, [flip, rotate])


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (600, 800, (256, 341)),
        (800, 600, (341, 256)),
        (100, 300, (100, 300)),
        (512, 512, (256, 256)),
        (300, 3 * WORKING_LONGEST, (100, WORKING_LONGEST)),
        (1, 2 * WORKING_LONGEST, (1, WORKING_LONGEST)),
    ],
)
def test_working_images_are_256_and_never_enlarged(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    image = working_image(np.zeros((height, width, 3), np.uint8))
    assert (image.height, image.width) == expected
    assert min(expected) <= WORKING_SIDE


def test_a_small_working_image_is_the_image_itself() -> None:
    drawn = np.asarray(draw_image(7))
    np.testing.assert_array_equal(np.asarray(working_image(drawn)), drawn)
