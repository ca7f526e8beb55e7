"""The zoo's rows tell the truth: of what is built from them, and of what others count."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from featkit.geometry import Geometry
from featkit_train.published.building import build
from featkit_train.published.zoo import PUBLISHED, find_published
from tests.torchvision_without_cuda import allow_torchvision
from tests.train import published_files as published


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_is_the_backbone_built_from_it(name: str) -> None:
    allow_torchvision()
    row = PUBLISHED[name]
    backbone = build(row)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == row.num_parameters
    assert (backbone.width, backbone.patch) == (row.width, row.patch)
    assert all(parameter.is_meta for parameter in backbone.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_has_as_many_parameters_as_others_count(name: str) -> None:
    model = published.reference(name, empty=True)
    count = sum(
        parameter.numel() for key, parameter in model.named_parameters() if "mask_token" not in key
    )
    if name == "dino_resnet50":
        count -= 1000 * 2048 + 1000  # the classifier
    # transformers leaves out the keys' bias, which is masked
    if name.startswith("dinov3_vit") and "7b" not in name:
        count += model.config.hidden_size * model.config.num_hidden_layers
    assert PUBLISHED[name].num_parameters == count


def test_every_name_belongs_to_one_row_and_finds_it() -> None:
    names = Counter(
        name
        for row in PUBLISHED.values()
        for name in (row.name, *row.aliases, *filter(None, [row.hub]))
    )
    assert set(names.values()) == {1}
    for row in PUBLISHED.values():
        for name in (row.name, *row.aliases, *filter(None, [row.hub])):
            assert find_published(name) is row
    assert find_published("dinov2") is None
    assert find_published("") is None


def test_all_published_sizes_are_there() -> None:
    assert set(PUBLISHED) == {
        *"dino_vits16 dino_vits8 dino_vitb16 dino_vitb8 dino_resnet50 ibot_vits16 ibot_vitb16"
        " ibot_vitl16".split(),
        *(f"dinov2_vit{size}14{registers}" for size in "sblg" for registers in ("", "_reg")),
        *"dinov3_vits16 dinov3_vits16plus dinov3_vitb16 dinov3_vitl16 dinov3_vith16plus"
        " dinov3_vit7b16".split(),
        *"dinov3_vitl16_sat dinov3_vit7b16_sat".split(),
        *(f"dinov3_convnext_{size}" for size in ("tiny", "small", "base", "large")),
    }
    assert (
        PUBLISHED["dinov2_vits14"]
        is find_published("facebook/dinov2-small")
        is find_published("dinov2-small")
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_geometry_is_the_familys_and_fits_the_patches(name: str) -> None:
    row = PUBLISHED[name]
    geometry = row.geometry
    assert geometry.height == geometry.width == 224
    assert geometry.height % row.patch == 0
    assert geometry.patch == row.patch
    assert Geometry.from_dict(geometry.to_dict()) == geometry
    how = (geometry.resize, geometry.interpolation)
    assert how == (
        ("stretch", "bilinear") if row.family == "dinov3" else ("shorter_side", "bicubic")
    )
    if row.family != "dinov3":
        assert geometry.resize_to == 256
    satellite = name.endswith("_sat")
    assert geometry.mean == ((0.430, 0.411, 0.296) if satellite else (0.485, 0.456, 0.406))
    assert geometry.std == ((0.213, 0.156, 0.143) if satellite else (0.229, 0.224, 0.225))
    assert geometry.apply(np.zeros((40, 300, 3), dtype=np.uint8)).shape == (224, 224, 3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_has_an_address_and_a_license(name: str) -> None:
    row = PUBLISHED[name]
    assert row.hub or row.url
    assert row.source == (f"hf.co/{row.hub}" if row.hub else row.url)
    assert (row.license, row.gated) == (
        ("DINOv3 License", True) if row.family == "dinov3" else ("Apache-2.0", False)
    )


def test_the_zoo_is_read_without_torch() -> None:
    look = (
        "import sys, featkit_train.published.zoo; "
        "print(sorted({'torch', 'timm', 'torchvision', 'huggingface_hub'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
