"""Promises of reading a published preprocessor: the geometry gives its pixels, and what none can express is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit.geometry import Geometry
from featkit_export.preprocessor import read_config, read_preprocessor
from tests.pictures import draw_picture
from tests.sentences import refused
from tests.torchvision_without_cuda import import_quietly

DINOV2: dict[str, Any] = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
EXPECTED = Geometry(
    height=224,
    width=224,
    resize="shorter_side",
    resize_to=256,
    interpolation="bicubic",
    patch=14,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
DINO: dict[str, Any] = {  # as facebook/dino-vits16 has it, from before sizes had names
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "size": 224,
}


def read(folder: Path, values: dict[str, Any], *, patch: int = 14) -> Geometry:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    (folder / "config.json").write_text(json.dumps({"patch_size": patch, "model_type": "dinov2"}))
    return read_preprocessor(folder)


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({}, {}),
        ({"crop_size": 224, "size": 256}, {}),
        ({"image_processor_type": "BitImageProcessorFast"}, {}),
        ({"do_pad": None, "crop_pct": None, "size": {"shortest_edge": 256, "longest_edge": None}}, {}),
        ({"do_pad": False, "do_flip_channel_order": False}, {}),
        ({"resample": 2}, {"interpolation": "bilinear"}),
        ({"resample": 1}, {"interpolation": "lanczos"}),
        ({"crop_size": {"height": 112, "width": 224}}, {"height": 112}),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        (
            {"size": {"height": 224, "width": 112}, "do_center_crop": False},
            {"resize": "stretch", "resize_to": 224, "width": 112},
        ),
        ({"size": {"height": 224, "width": 224}}, {"resize": "stretch", "resize_to": 224}),  # the crop takes all of it
    ],
)
def test_every_form_is_the_geometry_that_it_says(tmp_path: Path, changes: dict[str, Any], differences: dict[str, Any]) -> None:
    assert read(tmp_path, {**DINOV2, **changes}) == dataclasses.replace(EXPECTED, **differences)


def test_a_bare_number_is_both_sides_where_its_class_takes_it_so(tmp_path: Path) -> None:
    assert read(tmp_path, DINO, patch=16) == dataclasses.replace(
        EXPECTED, resize="stretch", resize_to=224, interpolation="bilinear", patch=16
    )


def test_the_file_itself_may_be_named_and_the_patch_given(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text(json.dumps(DINOV2))
    assert read_preprocessor(tmp_path / "some.json", patch=28) == dataclasses.replace(EXPECTED, patch=28)


@pytest.mark.parametrize(("rescale", "factor"), [(True, 1 / 127.5), (True, 1.0), (False, None)])
def test_another_scale_is_put_into_mean_and_std(tmp_path: Path, rescale: bool, factor: float | None) -> None:
    geometry = read(tmp_path, {**DINOV2, "do_rescale": rescale, "rescale_factor": factor})
    pixels = np.array([0.0, 1.0, 100.0, 255.0])
    for place in range(3):
        published = (pixels * (factor or 1.0) - DINOV2["image_mean"][place]) / DINOV2["image_std"][place]
        np.testing.assert_allclose((pixels / 255 - geometry.mean[place]) / geometry.std[place], published, rtol=1e-9)


@pytest.mark.parametrize("kind", ["BitImageProcessor", "ViTImageProcessor"])
def test_pixels_are_those_of_the_published_processor(tmp_path: Path, kind: str) -> None:
    transformers = import_quietly("transformers")
    numbers = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    if kind == "BitImageProcessor":
        processor = transformers.BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, **numbers)
    else:
        processor = transformers.ViTImageProcessor(size={"height": 56, "width": 56}, resample=3, **numbers)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"patch_size": 14}')
    geometry = read_preprocessor(tmp_path)
    picture = draw_picture(1, height=128, width=192)  # halves, and crops by whole pixels: nothing is rounded
    published = processor(picture, return_tensors="np")["pixel_values"][0]
    pixels = geometry.apply(np.asarray(picture)) / 255
    ours = ((pixels - np.array(geometry.mean)) / np.array(geometry.std)).transpose(2, 0, 1)
    assert ours.shape == published.shape == (3, 56, 56)
    levels = np.abs(ours - published) * np.array(geometry.std)[:, None, None] * 255
    assert levels.mean() < 0.5  # of 255
    assert np.abs(ours).mean() > 0.3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"do_pad": True}, ["do_pad True"]),
        ({"do_flip_channel_order": True}, ["do_flip_channel_order True"]),
        ({"crop_pct": 0.875}, ["crop_pct 0.875"]),
        ({"do_resize": False}, ["do_resize False", "wanted is true"]),
        ({"resample": 0}, ["resample 0", "3 (bicubic)"]),
        ({"resample": True}, ["resample True"]),
        ({"resample": None}, ["resample None"]),
        ({"do_center_crop": False}, ["do_center_crop False", "leaves no one size"]),
        ({"crop_size": 512}, ["crop_size 512", "shorter side of 256"]),
        ({"crop_size": None}, ["crop_size None", "a height and a width"]),
        ({"crop_size": {"height": 224}}, ["crop_size {'height': 224}"]),
        ({"crop_size": 225}, ["225×225", "patch of 14"]),
        ({"size": {"height": 256, "width": 256}}, ["crop_size", "256×256"]),
        ({"size": {"shortest_edge": 256, "longest_edge": 512}}, ["size {'shortest_edge': 256, 'longest_edge': 512}"]),
        ({"size": {"shortest_edge": "256"}}, ["whole numbers"]),
        ({"size": None}, ["size None"]),
        ({"size": 256, "image_processor_type": "SomeProcessor"}, ["size 256", "write which"]),
        ({"image_mean": [0.5, 0.5]}, ["image_mean [0.5, 0.5]", "three numbers"]),
        ({"image_std": None}, ["image_std None"]),
        ({"image_std": [0.2, 0.0, 0.2]}, ["std", "above 0"]),
        ({"rescale_factor": 0}, ["rescale_factor 0"]),
        ({"rescale_factor": float("nan")}, ["three numbers"]),
    ],
)
def test_what_a_geometry_cannot_express_is_refused(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with refused("preprocessor_config.json", *words):
        read(tmp_path, {**DINOV2, **changes})


@pytest.mark.parametrize(
    ("text", "words"), [(None, "does not exist"), ("{", "cannot be read as JSON"), ("[]", "holds a list"), ("\xff", "JSON")]
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
    with refused("preprocessor_config.json", words):
        read_preprocessor(tmp_path)


def test_the_config_tells_family_patch_and_registers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"patch_size": 14, "num_register_tokens": 4, "model_type": "dinov2_with_registers"}')
    config = read_config(tmp_path)
    assert (config.family, config.patch, config.num_registers) == ("dinov2_with_registers", 14, 4)
    (tmp_path / "config.json").write_text('{"patch_size": [16, 16]}')
    config = read_config(tmp_path)
    assert (config.family, config.patch, config.num_registers) == ("vit", 16, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "patch_size None"),
        ('{"patch_size": [16, 8]}', "patch_size [16, 8]"),
        ('{"patch_size": true}', "patch_size True"),
        ('{"patch_size": 14, "num_register_tokens": -1}', "num_register_tokens -1"),
    ],
)
def test_a_config_without_what_is_needed_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with refused("config.json", words):
        read_config(tmp_path)
