"""Promises of reading a published preprocessor: the geometry gives its pixels, and what none can
express is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featkit.geometry import Geometry
from featkit_train.published.preprocessor import (
    check_patch,
    find_preprocessor,
    in_words,
    read_config,
    read_preprocessor,
)
from tests.export.backbones import CONFIGS, drawn_backbone
from tests.images import draw_image
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
    rounding="down",
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
    config = {"patch_size": patch, "model_type": values.get("model_type", "dinov2")}
    (folder / "config.json").write_text(json.dumps(config))
    return read_preprocessor(folder)


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({}, {}),
        ({"crop_size": 224, "size": 256}, {}),
        ({"image_processor_type": "BitImageProcessorFast"}, {}),
        (
            {
                "do_pad": None,
                "crop_pct": None,
                "size": {"shortest_edge": 256, "longest_edge": None},
            },
            {},
        ),
        ({"do_pad": False, "do_flip_channel_order": False}, {}),
        ({"resample": 2}, {"interpolation": "bilinear"}),
        ({"resample": 1}, {"interpolation": "lanczos"}),
        ({"crop_size": {"height": 112, "width": 224}}, {"height": 112}),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        (
            {"size": {"height": 224, "width": 112}, "do_center_crop": False},
            {"resize": "stretch", "rounding": "none", "resize_to": 224, "width": 112},
        ),
        (
            {"size": {"height": 224, "width": 224}},
            {"resize": "stretch", "rounding": "none", "resize_to": 224},
        ),  # the crop takes all of it
        ({"size": {"height": 256, "width": 256}}, {"resize": "stretch_then_crop"}),
        (
            {"size": [224, 112], "crop_size": [224, 112]},
            {"resize": "stretch", "rounding": "none", "resize_to": 224, "width": 112},
        ),
        ({"image_processor_type": "BitImageProcessorPil"}, {}),
        ({"image_mean": 0.5}, {"mean": (0.5, 0.5, 0.5)}),
        ({"resample": "BILINEAR"}, {"interpolation": "bilinear"}),
    ],
)
def test_every_form_is_the_geometry_that_it_says(
    tmp_path: Path, changes: dict[str, Any], differences: dict[str, Any]
) -> None:
    assert read(tmp_path, {**DINOV2, **changes}) == dataclasses.replace(EXPECTED, **differences)


def test_a_bare_number_is_both_sides_where_its_class_takes_it_so(tmp_path: Path) -> None:
    assert read(tmp_path, DINO, patch=16) == dataclasses.replace(
        EXPECTED,
        resize="stretch",
        rounding="none",
        resize_to=224,
        interpolation="bilinear",
        patch=16,
    )


def test_the_file_itself_may_be_named_and_the_patch_given(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text(json.dumps(DINOV2))
    assert read_preprocessor(tmp_path / "some.json", patch=28) == dataclasses.replace(
        EXPECTED, patch=28
    )


@pytest.mark.parametrize(("rescale", "factor"), [(True, 1 / 127.5), (True, 1.0), (False, None)])
def test_another_scale_is_put_into_mean_and_std(
    tmp_path: Path, rescale: bool, factor: float | None
) -> None:
    geometry = read(tmp_path, {**DINOV2, "do_rescale": rescale, "rescale_factor": factor})
    pixels = np.array([0.0, 1.0, 100.0, 255.0])
    for place in range(3):
        published = (pixels * (factor or 1.0) - DINOV2["image_mean"][place]) / DINOV2["image_std"][
            place
        ]
        np.testing.assert_allclose(
            (pixels / 255 - geometry.mean[place]) / geometry.std[place], published, rtol=1e-9
        )


@pytest.mark.parametrize("kind", ["BitImageProcessor", "ViTImageProcessor"])
def test_pixels_are_those_of_the_published_processor(tmp_path: Path, kind: str) -> None:
    transformers = import_quietly("transformers")
    numbers = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    if kind == "BitImageProcessor":
        processor = transformers.BitImageProcessor(
            size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, **numbers
        )
    else:
        processor = transformers.ViTImageProcessor(
            size={"height": 56, "width": 56}, resample=3, **numbers
        )
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"patch_size": 14}')
    geometry = read_preprocessor(tmp_path)
    # halves, and crops by whole pixels: nothing is rounded
    image = draw_image(1, height=128, width=192)
    published = processor(image, return_tensors="np")["pixel_values"][0]
    pixels = geometry.apply(np.asarray(image)) / 255
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
        ({"do_resize": False}, ["do_resize False", "it has to be true"]),
        ({"resample": 0}, ["resample 0 (nearest)", "3 (bicubic)"]),
        ({"resample": 4}, ["resample 4 (box)"]),
        ({"do_thumbnail": True}, ["do_thumbnail True"]),
        ({"do_something_new": True}, ["do_something_new True"]),
        ({"do_normalize": "yes"}, ["do_normalize 'yes'", "true or false"]),
        ({"keep_aspect_ratio": True}, ["keep_aspect_ratio True"]),
        (
            {"image_processor_type": "LevitImageProcessor"},
            ["LevitImageProcessor", "known are Bit, CLIP"],
        ),
        ({"resample": True}, ["resample True"]),
        ({"resample": None}, ["resample None"]),
        ({"do_center_crop": False}, ["do_center_crop False", "leaves no one size"]),
        ({"crop_size": 512}, ["crop_size 512", "shorter side of 256"]),
        ({"crop_size": None}, ["crop_size None", "a height and a width"]),
        ({"crop_size": {"height": 224}}, ["crop_size {'height': 224}"]),
        (
            {"size": {"shortest_edge": 256, "longest_edge": 512}},
            ["size {'shortest_edge': 256, 'longest_edge': 512}"],
        ),
        ({"size": {"shortest_edge": "256"}}, ["whole numbers"]),
        ({"size": None}, ["size None"]),
        (
            {"size": 256, "image_processor_type": None, "model_type": None},
            ["size 256", "write which"],
        ),
        ({"size": {"height": 256, "width": 300}}, ["crop_size", "256×300", "of its proportions"]),
        ({"image_mean": [0.5, 0.5]}, ["image_mean is [0.5, 0.5]", "three numbers"]),
        ({"image_std": None}, ["image_std is None"]),
        ({"image_std": [0.2, 0.0, 0.2]}, ["std", "above 0"]),
        ({"rescale_factor": 0}, ["rescale_factor 0"]),
        ({"rescale_factor": float("nan")}, ["rescale_factor nan"]),
        ({"rescale_factor": 10**400}, ["rescale_factor 1000"]),
        ({"crop_size": 10**9, "size": 10**9}, ["height is 1000000000"]),
    ],
)
def test_what_a_geometry_cannot_express_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with refused("preprocessor_config.json", *words):
        read(tmp_path, {**DINOV2, **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ("\xff", "JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
    with refused("preprocessor_config.json", words):
        read_preprocessor(tmp_path)


def test_the_config_tells_family_patch_and_registers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"patch_size": 14, "num_register_tokens": 4, "model_type": "dinov2_with_registers"}'
    )
    config = read_config(tmp_path)
    assert (config.family, config.patch, config.num_registers) == ("dinov2_with_registers", 14, 4)
    (tmp_path / "config.json").write_text('{"patch_size": [16, 16]}')
    config = read_config(tmp_path)
    assert (config.family, config.patch, config.num_registers) == ("vit", 16, None)


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


def test_vision_config_holds_the_patch_of_text_models(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "siglip", "vision_config": {"patch_size": 16}}'
    )
    config = read_config(tmp_path)
    assert (config.family, config.patch, config.num_registers) == ("siglip", 16, None)


# Files, their order, and what they leave out


def test_a_missing_field_has_the_default_of_the_class(tmp_path: Path) -> None:
    transformers = import_quietly("transformers")
    for name in (
        "BitImageProcessor",
        "CLIPImageProcessor",
        "ViTImageProcessor",
        "DeiTImageProcessor",
        "SiglipImageProcessor",
    ):
        whole, bare = tmp_path / name, tmp_path / f"{name}-bare"
        getattr(transformers, name)().save_pretrained(whole)
        (whole / "config.json").write_text('{"patch_size": 16}')
        bare.mkdir()
        (bare / "config.json").write_text('{"patch_size": 16}')
        (bare / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name}))
        assert read_preprocessor(bare) == read_preprocessor(whole), name


def test_without_a_class_missing_fields_are_the_familys(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.4, 0.5, 0.6], "size": {"shortest_edge": 300}}'
    )
    expected = dataclasses.replace(EXPECTED, mean=(0.4, 0.5, 0.6), resize_to=300)
    assert read_preprocessor(tmp_path, patch=14, default=EXPECTED) == expected


def test_processor_config_wins_over_preprocessor_config(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(DINOV2))
    (tmp_path / "processor_config.json").write_text('{"processor_class": "SomeProcessor"}')
    assert find_preprocessor(tmp_path) == tmp_path / "preprocessor_config.json"
    inside = {"image_processor": {**DINOV2, "resample": 2}}
    (tmp_path / "processor_config.json").write_text(json.dumps(inside))
    assert find_preprocessor(tmp_path) == tmp_path / "processor_config.json"
    assert read_preprocessor(tmp_path, patch=14) == dataclasses.replace(
        EXPECTED, interpolation="bilinear"
    )


def test_a_folder_without_any_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dinov2", "patch_size": 14}')
    assert find_preprocessor(tmp_path) is None


def test_a_size_not_divided_by_the_patch_is_refused() -> None:
    with refused(
        "some.json makes images of 225×225, which is not a multiple of the patch size 14",
        "--size 224 or 238",
    ):
        check_patch(dataclasses.replace(EXPECTED, height=225, width=225), source="some.json")
    check_patch(EXPECTED, source="some.json")


def test_a_recipe_reads_as_one_line() -> None:
    words = (
        "shorter side to 256, center crop 224×224, bicubic, mean 0.485, 0.456, 0.406, std 0.229,"
        " 0.224, 0.225"
    )
    assert in_words(EXPECTED) == words


# End to end: vectors by the published pipeline and by ours, on images of odd sizes

SIZES = [(101, 67), (67, 101), (333, 251), (57, 300), (48, 48)]  # height, width
PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("BitImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": 56}),
    ("BitImageProcessorPil", {"size": {"shortest_edge": 64}, "crop_size": 56}),
    (
        "BitImageProcessor",
        {"size": {"shortest_edge": 70}, "crop_size": {"height": 56, "width": 70}, "resample": 2},
    ),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": 56}),
    ("ViTImageProcessor", {"size": {"height": 56, "width": 70}}),
    ("DeiTImageProcessor", {"size": {"height": 64, "width": 64}, "crop_size": 56}),
    ("SiglipImageProcessor", {"size": {"height": 56, "width": 56}}),
    ("DINOv3ViTImageProcessor", {"size": {"height": 56, "width": 56}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 56}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 392}}),
    ("BitImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": 56, "do_normalize": False}),
    (
        "BitImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": 56, "rescale_factor": 1 / 127.5},
    ),
]


@pytest.fixture(scope="module")
def backbone() -> Any:
    """A drawn ViT of patch 14, in evaluation mode."""
    return drawn_backbone(CONFIGS["dinov2"], seed=3)


def vector(backbone: Any, pixels: np.ndarray) -> np.ndarray:
    """The class token (D,) of normalized pixels (3, H, W)."""
    with torch.no_grad():
        token: np.ndarray = (
            backbone(torch.from_numpy(pixels[None].astype(np.float32))).class_token[0].numpy()
        )
    return token


def cosine_of_pipelines(
    backbone: Any, geometry: Geometry, image: Image.Image, published: np.ndarray
) -> float:
    ours = (geometry.apply(np.asarray(image)) / 255 - np.array(geometry.mean)) / np.array(
        geometry.std
    )
    assert ours.transpose(2, 0, 1).shape == published.shape
    first, second = vector(backbone, ours.transpose(2, 0, 1)), vector(backbone, published)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize(("kind", "options"), PROCESSORS)
def test_vectors_are_those_of_transformers_own_processor(
    backbone: Any, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    transformers = import_quietly("transformers")
    numbers = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    processor = getattr(transformers, kind)(**numbers, **options)
    processor.save_pretrained(tmp_path)
    geometry = read_preprocessor(tmp_path, patch=14)
    for seed, (height, width) in enumerate(SIZES):
        image = draw_image(seed, height=height, width=width)
        published = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
        assert cosine_of_pipelines(backbone, geometry, image, published) >= 0.9999, (
            height,
            width,
        )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_mode": "squash", "crop_pct": 0.9},
        {"crop_mode": "squash", "crop_pct": 1.0},
        {"input_size": [3, 56, 84], "crop_pct": 0.8},
        {"input_size": [3, 56, 84], "crop_pct": 1.0},
        {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 0.95},
    ],
)
@pytest.mark.parametrize("form", ["nested", "flat", "wrapper"])
def test_vectors_are_those_of_timms_evaluation_transform(
    backbone: Any, tmp_path: Path, settings: dict[str, Any], form: str
) -> None:
    timm_data = import_quietly("timm.data")
    settings = {"input_size": [3, 56, 56], "fixed_input_size": True, **settings}
    config: dict[str, Any] = {"architecture": "vit_small_patch14_dinov2"}
    config |= settings if form == "flat" else {"pretrained_cfg": settings}
    (tmp_path / ("preprocessor_config.json" if form == "wrapper" else "config.json")).write_text(
        json.dumps(config)
    )
    geometry = read_preprocessor(tmp_path, patch=14)
    transform = timm_data.create_transform(
        **timm_data.resolve_data_config({}, pretrained_cfg=settings), is_training=False
    )
    for seed, (height, width) in enumerate(SIZES):
        image = draw_image(seed, height=height, width=width)
        assert cosine_of_pipelines(backbone, geometry, image, transform(image).numpy()) >= 0.9999, (
            height,
            width,
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crop_mode": "border"}, "crop_mode is 'border'"),
        ({"crop_pct": 1.5}, "crop_pct is 1.5"),
        ({"input_size": [1, 56, 56]}, "input_size is [1, 56, 56]"),
        ({"interpolation": "random"}, "random"),
        ({"mean": [0.5]}, "mean is [0.5]"),
    ],
)
def test_what_timm_does_beyond_a_geometry_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    config = {"architecture": "x", "pretrained_cfg": {"input_size": [3, 56, 56], **settings}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refused("config.json", words):
        read_preprocessor(tmp_path, patch=14)
