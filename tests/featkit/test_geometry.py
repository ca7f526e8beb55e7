"""The recipes that bring an image to a model's size: what plain Pillow gives in two steps, and as
data that is checked."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from featkit.geometry import RESAMPLING, RESIZES, Geometry
from tests.images import draw_image
from tests.sentences import refused

Resize = Literal["shorter_side", "stretch", "cover", "stretch_then_crop", "cover_then_crop"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]


def make_geometry(
    height: int = 32,
    width: int = 32,
    *,
    resize: Resize = "shorter_side",
    resize_to: int = 32,
    interpolation: Interpolation = "bicubic",
    rounding: Literal["none", "down", "even"] = "none",
) -> Geometry:
    """A geometry of the sizes that matter here."""
    return Geometry(
        height=height,
        width=width,
        resize=resize,
        resize_to=resize_to,
        interpolation=interpolation,
        patch=8,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        rounding=rounding,
    )


def resized_then_cropped(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The recipe as two plain steps, with the whole image resized in between."""
    image = Image.fromarray(pixels)
    filter = RESAMPLING[geometry.interpolation]
    if geometry.resize == "stretch":
        return np.asarray(image.resize((geometry.width, geometry.height), filter))
    scale = geometry.resize_to / min(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), filter)
    left, top = (resized.width - geometry.width) // 2, (resized.height - geometry.height) // 2
    return np.asarray(resized.crop((left, top, left + geometry.width, top + geometry.height)))


def smooth(height: int, width: int) -> np.ndarray:
    """An image of slow waves, which a shift by a part of a pixel hardly changes."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [
        np.sin(rows / height * 3 + shift) + np.cos(columns / max(height, width) * 4 - shift)
        for shift in (0.0, 1.0, 2.0)
    ]
    return (127.5 + 60 * np.stack(waves, axis=2)).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("height", "width", "resize_to"),
    [
        (60, 90, 40),
        (90, 60, 40),
        (60, 60, 32),
        (16, 24, 32),
        (24, 16, 40),
        (64, 128, 32),
        (32, 32, 32),
    ],
)
def test_shorter_side_is_plain_resize_and_center_crop(
    height: int, width: int, resize_to: int, interpolation: Interpolation
) -> None:
    geometry = make_geometry(resize_to=resize_to, interpolation=interpolation)
    pixels = np.asarray(draw_image(1, height=height, width=width))
    found = geometry.apply(pixels)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    # In these sizes neither step has anything to round, so only Pillow's own arithmetic differs.
    assert np.abs(found.astype(int) - resized_then_cropped(pixels, geometry)).max() <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("height", "width"), [(60, 80), (33, 47), (500, 21), (1, 1)])
def test_stretch_is_plain_resize(height: int, width: int, interpolation: Interpolation) -> None:
    geometry = make_geometry(24, 40, resize="stretch", interpolation=interpolation)
    pixels = np.asarray(draw_image(2, height=500, width=100))[:height, :width]
    found, expected = geometry.apply(pixels), resized_then_cropped(pixels, geometry)
    assert found.shape == (24, 40, 3)
    # Above four times the size a fast first step is taken, which changes a level here and there.
    assert np.abs(found.astype(int) - expected).max() <= (12 if height > 4 * 24 else 0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    crop=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    more=st.integers(0, 40),
    resize=st.sampled_from(RESIZES),
    rounding=st.sampled_from(["none", "down", "even"]),
)
def test_any_size_becomes_the_models_size(
    height: int,
    width: int,
    crop: tuple[int, int],
    more: int,
    resize: Resize,
    rounding: Literal["none", "down", "even"],
) -> None:
    geometry = make_geometry(*crop, resize=resize, resize_to=max(crop) + more, rounding=rounding)
    flat = np.full((height, width, 3), (10, 128, 250), np.uint8)
    found = geometry.apply(flat)
    assert found.shape == (*crop, 3)
    assert np.abs(found.astype(int) - (10, 128, 250)).max() <= 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    height=st.integers(90, 301),
    width=st.integers(90, 301),
    resize=st.sampled_from(["shorter_side", "stretch"]),
)
def test_odd_sizes_are_the_two_steps_within_what_they_round(
    height: int, width: int, resize: Resize
) -> None:
    geometry = make_geometry(48, 64, resize=resize, resize_to=64)
    pixels = smooth(height, width)
    difference = np.abs(geometry.apply(pixels).astype(int) - resized_then_cropped(pixels, geometry))
    assert difference.max() <= 5
    assert difference.mean() < 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (60, 90),
        (90, 60),
        (48, 72),
        (24, 36),
        (33, 47),
        (101, 37),
        (37, 101),
        (7, 5),
        (1, 1),
        (95, 142),
    ],
)
def test_cover_is_pillows_fit(height: int, width: int, interpolation: Interpolation) -> None:
    geometry = make_geometry(24, 36, resize="cover", interpolation=interpolation)
    pixels = np.asarray(draw_image(4, height=height + 20, width=width + 20))[:height, :width]
    found = geometry.apply(pixels)
    image = Image.fromarray(pixels)
    expected = np.asarray(
        ImageOps.fit(image, (geometry.width, geometry.height), RESAMPLING[interpolation])
    )
    assert found.shape == (24, 36, 3)
    # Above four times the size a fast first step is taken, which changes a level here and there;
    # else both are one step.
    assert np.abs(found.astype(int) - expected).max() <= (
        12 if min(height / 24, width / 36) > 4 else 1
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 140),
    width=st.integers(1, 140),
    crop=st.sampled_from([(24, 36), (36, 24), (32, 32), (5, 60)]),
)
def test_cover_is_pillows_fit_whatever_the_size(
    height: int, width: int, crop: tuple[int, int]
) -> None:
    geometry = make_geometry(*crop, resize="cover", interpolation="bicubic")
    pixels = smooth(height, width)
    expected = np.asarray(
        ImageOps.fit(Image.fromarray(pixels), (crop[1], crop[0]), Image.Resampling.BICUBIC)
    )
    assert np.abs(geometry.apply(pixels).astype(int) - expected).max() <= (
        3 if min(height / crop[0], width / crop[1]) > 4 else 1
    )


def test_cover_needs_no_shorter_side() -> None:
    geometry = make_geometry(24, 36, resize="cover", resize_to=1)
    assert geometry.apply(np.zeros((9, 9, 3), np.uint8)).shape == (24, 36, 3)
    assert geometry.shorter_side == 36


def test_the_crop_is_the_center() -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 255
    assert make_geometry().apply(pixels)[:, 1:-1].min() == 255
    assert make_geometry().apply(pixels.swapaxes(0, 1))[1:-1].min() == 255
    pixels = np.zeros((80, 80, 3), np.uint8)
    pixels[16:64, 16:64] = 255  # 32 of 40 pixels show 64 of 80
    found = make_geometry(resize_to=40, interpolation="bilinear").apply(pixels)
    np.testing.assert_array_equal(found, found[::-1, ::-1])
    assert (found[5:27, 5:27].min(), found[:3].max()) == (255, 0)


@pytest.mark.parametrize(("height", "width"), [(2, 3000), (3000, 2)])
def test_a_strip_is_shown_by_its_middle(height: int, width: int) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[(slice(None), slice(1499, 1501)) if width > height else slice(1499, 1501)] = (
        200,
        100,
        50,
    )
    found = make_geometry(interpolation="bilinear").apply(pixels)
    assert found[16, 16].tolist() == [200, 100, 50]
    stretched = make_geometry(resize="stretch").apply(np.full((height, width, 3), 90, np.uint8))
    assert np.unique(stretched).tolist() == [90]


def test_one_pixel_fills_the_model_size() -> None:
    found = make_geometry(resize_to=40).apply(np.array([[[1, 2, 3]]], np.uint8))
    assert np.unique(found.reshape(-1, 3), axis=0).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("resize", "expected"), [("shorter_side", 256), ("stretch", 224), ("cover", 224)]
)
def test_decoding_may_go_down_to_what_apply_needs(resize: Resize, expected: int) -> None:
    assert make_geometry(224, 160, resize=resize, resize_to=256).shorter_side == expected


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (24, 36), (33, 47)])
def test_stretch_then_crop_is_the_two_steps(
    height: int, width: int, interpolation: Interpolation
) -> None:
    geometry = make_geometry(
        24, 36, resize="stretch_then_crop", resize_to=48, interpolation=interpolation
    )
    pixels = np.asarray(draw_image(5, height=height, width=width))
    # both sides 4/3 of the crop
    stretched = Image.fromarray(pixels).resize((48, 32), RESAMPLING[interpolation])
    expected = np.asarray(stretched.crop((6, 4, 42, 28)))
    assert np.abs(geometry.apply(pixels).astype(int) - expected).max() <= 1
    assert geometry.shorter_side == 48


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 96), (40, 90)])
def test_cover_then_crop_is_pillows_fit_and_a_crop(height: int, width: int) -> None:
    geometry = make_geometry(24, 36, resize="cover_then_crop", resize_to=48)
    pixels = np.asarray(draw_image(6, height=height, width=width))
    expected = np.asarray(
        ImageOps.fit(Image.fromarray(pixels), (48, 32), RESAMPLING["bicubic"]).crop((6, 4, 42, 28))
    )
    assert np.abs(geometry.apply(pixels).astype(int) - expected).max() <= 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    height=st.integers(40, 301),
    width=st.integers(40, 301),
    more=st.integers(0, 20),
    rounding=st.sampled_from(["down", "even"]),
)
def test_whole_pixels_are_exactly_the_two_steps(
    height: int, width: int, more: int, rounding: Literal["down", "even"]
) -> None:
    geometry = make_geometry(resize_to=32 + more, rounding=rounding, interpolation="bilinear")
    pixels = np.asarray(draw_image(7, height=height, width=width))
    long = int((32 + more) * max(height, width) / min(height, width))
    rows, columns = (long, 32 + more) if height > width else (32 + more, long)
    top, left = (
        ((rows - 32) // 2, (columns - 32) // 2)
        if rounding == "down"
        else (round((rows - 32) / 2), round((columns - 32) / 2))
    )
    resized = Image.fromarray(pixels).resize((columns, rows), RESAMPLING["bilinear"])
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)))
    # Pillow's own arithmetic differs; above four times the size it takes a fast first step.
    limit = 20 if min(height, width) / (32 + more) > 3.8 else 2
    assert np.abs(geometry.apply(pixels).astype(int) - expected).max() <= limit


def test_another_size_keeps_the_share_that_the_crop_leaves_out() -> None:
    square = make_geometry(resize_to=40)
    assert square.at_size(64, 64) == make_geometry(64, 64, resize_to=80)
    assert square.at_size(64, 96) == make_geometry(64, 96, resize="cover", resize_to=96)
    for resize in ("stretch_then_crop", "cover_then_crop"):
        geometry = make_geometry(32, 32, resize=resize, resize_to=40)
        assert geometry.at_size(64, 96) == make_geometry(64, 96, resize=resize, resize_to=120)


def test_a_image_of_the_models_size_is_left_as_it_is() -> None:
    pixels = np.array(draw_image(3, height=32, width=32))
    found = make_geometry().apply(pixels)
    np.testing.assert_array_equal(found, pixels)
    assert not np.shares_memory(found, pixels)


def test_a_geometry_comes_back_from_json() -> None:
    geometry = make_geometry(224, 160, resize="stretch", resize_to=256, interpolation="lanczos")
    values = geometry.to_dict()
    assert values["mean"] == [0.485, 0.456, 0.406]
    assert Geometry.from_dict(json.loads(json.dumps(values))) == geometry
    assert set(values) == {field.name for field in dataclasses.fields(Geometry)} - {"rounding"}
    rounded = dataclasses.replace(geometry, rounding="even")
    assert Geometry.from_dict(json.loads(json.dumps(rounded.to_dict()))) == rounded


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 0}, "height is 0; it has to be a whole number of pixels from 1 to 16,384."),
        ({"width": -32}, "width is -32; it has to be"),
        ({"resize_to": 32.0}, "resize_to is 32.0; it has to be"),
        ({"patch": True}, "patch is True; it has to be"),
        ({"patch": "8"}, "patch is '8'; it has to be"),
        (
            {"resize": "longer_side"},
            "resize is 'longer_side'; it has to be shorter_side or stretch or cover or",
        ),
        ({"rounding": "up"}, "rounding is 'up'; it has to be none or down or even."),
        (
            {"interpolation": "nearest"},
            "interpolation is 'nearest'; it has to be bilinear or bicubic or lanczos.",
        ),
        ({"interpolation": ["bicubic"]}, "interpolation is ('bicubic',); it has to be"),
        ({"mean": [0.5, 0.5]}, "mean is (0.5, 0.5); it has to be three numbers."),
        ({"height": 10**9}, "height is 1000000000; it has to be"),
        ({"mean": [0.5, 0.5, 10**400]}, "it has to be three numbers."),
        ({"mean": 0.5}, "mean is 0.5; it has to be three numbers."),
        ({"mean": [0.5, 0.5, float("nan")]}, "it has to be three numbers."),
        ({"std": [0.5, 0.5, 0.0]}, "std is (0.5, 0.5, 0.0); it has to be three numbers above 0."),
        ({"std": [0.5, 0.5, "0.5"]}, "it has to be three numbers above 0."),
        ({"std": None}, "std is None; it has to be three numbers above 0."),
        ({"resize_to": 31}, "resizes to 31 pixels, which is less than its crop of 32×32;"),
    ],
)
def test_a_field_that_no_geometry_has_is_refused(change: dict[str, Any], words: str) -> None:
    with refused("The geometry", words):
        Geometry.from_dict({**make_geometry().to_dict(), **change})


def test_missing_and_unknown_fields_are_named() -> None:
    values = make_geometry().to_dict()
    with refused("lacks ['patch'] and has unknown fields: nothing."):
        Geometry.from_dict({name: value for name, value in values.items() if name != "patch"})
    with refused("lacks nothing and has unknown fields: ['blur']."):
        Geometry.from_dict({**values, "blur": 1})


def test_stretch_needs_no_shorter_side() -> None:
    assert make_geometry(resize="stretch", resize_to=1).apply(
        np.zeros((9, 9, 3), np.uint8)
    ).shape == (32, 32, 3)
