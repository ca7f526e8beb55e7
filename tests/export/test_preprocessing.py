"""From an image to its vector as transformers computes it, its own image processor included, with
equal weights.

DINOv2 at the size of its position table, where transformers' rule and the released one agree;
DINOv3, without a table, at 224.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from featkit.embedder import Embedder
from featkit.geometry import Geometry
from featkit_export.export import export_backbone, sized
from featkit_train.published.pretrained import load_published
from featkit_train.published.zoo import PUBLISHED
from tests.data import shared_data
from tests.export.backbones import drawn_published, with_depth
from tests.export.oracles import cosines, transformers_model
from tests.export.zoo_files import write_published
from tests.images import draw_image
from tests.torchvision_without_cuda import import_quietly

NAMES = ("dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16")
DEPTH, TABLE_SIDE, RESIZED = 4, 518, 592
LEAST = 0.9999


@cache
def embedded_and_expected(name: str, folder: Path) -> tuple[Embedder, Any, Any]:
    """A model file of drawn weights, transformers' model of the same, and its processor as its
    publisher configures it."""
    transformers = import_quietly("transformers")
    published = with_depth(PUBLISHED[name], DEPTH)
    ours = drawn_published(published, seed=5).state_dict()
    backbone, info = load_published(
        published, weights=write_published(published, ours, folder / name)
    )
    out = folder / f"{name}.onnx"
    export_backbone(backbone, info, out)
    embedder = Embedder(out)
    if published.family == "dinov2":
        embedder.geometry = sized(info.geometry, TABLE_SIDE, TABLE_SIDE)
        assert embedder.geometry.resize_to == RESIZED
        processor = transformers.BitImageProcessor(
            size={"shortest_edge": RESIZED},
            crop_size={"height": TABLE_SIDE, "width": TABLE_SIDE},
            resample=3,
            image_mean=list(info.geometry.mean),
            image_std=list(info.geometry.std),
        )
    else:
        module = import_quietly("transformers.models.dinov3_vit.image_processing_dinov3_vit")
        processor = module.DINOv3ViTImageProcessor()
        assert dict(processor.size) == {"height": 224, "width": 224}
    return embedder, transformers_model(published, ours, official=False), processor


def by_transformers(model: Any, processor: Any, images: list[Image.Image]) -> np.ndarray:
    """Class tokens (N, D), one image per call."""
    found = []
    with torch.no_grad():
        for image in images:
            pixels = processor(image, return_tensors="pt")["pixel_values"]
            found.append(model(pixels).last_hidden_state[0, 0].numpy())
    return np.stack(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preprocessing")


@pytest.mark.parametrize("name", NAMES)
def test_a_drawn_images_vector_is_transformers_own(name: str, folder: Path) -> None:
    embedder, model, processor = embedded_and_expected(name, folder)
    images = [draw_image(seed, height=700 + 40 * seed, width=900 - 60 * seed) for seed in range(3)]
    assert cosines(embedder.embed(images), by_transformers(model, processor, images)).min() >= LEAST


def in_srgb(image: Image.Image) -> Image.Image:
    """The image in the color space that every model was trained in; transformers ignores
    profiles, featkit does not."""
    profile = image.info.get("icc_profile")
    if profile is None:
        return image.convert("RGB")
    converted = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    assert converted is not None
    return converted


@pytest.mark.parametrize("name", NAMES)
def test_a_photographs_vector_is_transformers_own(name: str, folder: Path) -> None:
    data = shared_data()
    if data is None:
        pytest.skip("the photographs are not here; see tests/data.py")
    paths = sorted((data / "photos").iterdir())[:40:8]
    embedder, model, processor = embedded_and_expected(name, folder)
    images = [in_srgb(Image.open(path)) for path in paths]
    found, expected = embedder.embed(paths), by_transformers(model, processor, images)
    agreement = cosines(found, expected)
    print(f"{name}: cosines with transformers {agreement.round(6).tolist()}")
    assert agreement.min() >= LEAST
    others = cosines(found, np.roll(expected, 1, axis=0))
    # so it is the image that agrees, not what all have in common
    assert others.max() < agreement.min()


def test_the_geometry_of_one_size_is_the_published_crop_larger() -> None:
    geometry: Geometry = PUBLISHED["dinov2_vits14"].geometry
    assert (geometry.resize_to, sized(geometry, TABLE_SIDE, TABLE_SIDE).resize_to) == (256, RESIZED)
