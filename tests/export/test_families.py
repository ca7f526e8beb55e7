"""Every family's exported file is that family: its vectors are those of implementations that are
not ours, with equal weights.

At the size of the position table, where every rule agrees, against transformers and timm as they
are; at other sizes against transformers with the position rule of the family's released code
(facebookresearch/dino, dinov2). Rows that differ in sizes alone are one graph: the smallest of each
form runs here, the rest with --slow and, whole, in verify_zoo.py.
"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from torch import Tensor

from featkit.embedder import Embedder
from featkit.modelfile import OUTPUTS
from featkit_export.export import export_backbone
from featkit_export.recipe import Recipe
from featkit_export.report import ExportReport
from featkit_export.verify import draw_images
from featkit_train.networks.vit import VisionTransformer
from featkit_train.published.loading import PREPROCESSING
from featkit_train.published.preprocessor import in_words
from featkit_train.published.pretrained import load_published
from featkit_train.published.zoo import PUBLISHED, Published
from tests.export.backbones import drawn_published, with_depth
from tests.export.oracles import (
    TIMM,
    class_token,
    cosines,
    native_side,
    normalized,
    patch_tokens,
    timm_model,
    transformers_model,
)
from tests.export.zoo_files import write_published
from tests.torchvision_without_cuda import allow_torchvision

SIZES_ALONE = {"width", "num_heads", "mlp_width", "depth", "patch", "depths", "dims"}
# The smallest of each form. ibot_vits16 is dino_vits16 with other weights in it: once is enough.
WHOLE = (
    "dino_vits16",
    "dinov2_vits14",
    "dinov2_vits14_reg",
    "dinov3_vits16",
    "dinov3_convnext_tiny",
    "dino_resnet50",
)
SHORT_DEPTH = 2
IN_EVERY_RUN = {*WHOLE, "dinov3_vits16plus"}


class Exported(NamedTuple):
    """A row with drawn weights, the tensors, and its model file."""

    published: Published
    ours: dict[str, Tensor]
    out: Path
    report: ExportReport


def marked(names: list[str]) -> list[Any]:
    """Those of IN_EVERY_RUN as they are, the others slow."""
    return [
        name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


@cache
def exported(name: str, depth: int | None) -> Exported:
    """Draw a row, write it as its publisher does, load it and export it with every output."""
    allow_torchvision()
    published = PUBLISHED[name] if depth is None else with_depth(PUBLISHED[name], depth)
    ours = drawn_published(published).state_dict()
    folder = Path(tempfile.mkdtemp(prefix="featkit-families-", dir=_FOLDER.name))
    backbone, info = load_published(
        published, weights=write_published(published, ours, folder / "weights")
    )
    outputs = OUTPUTS if isinstance(backbone, VisionTransformer) else OUTPUTS[:2]
    report = export_backbone(backbone, info, folder / "m.onnx", recipe=Recipe(outputs=outputs))
    return Exported(published, ours, folder / "m.onnx", report)


_FOLDER = tempfile.TemporaryDirectory(prefix="featkit-families-")


@pytest.fixture(scope="module", autouse=True)
def _clean_up() -> Any:
    yield
    exported.cache_clear()
    _FOLDER.cleanup()


def depth_of(name: str) -> int | None:
    """Two blocks of a transformer; the convolutional networks whole."""
    return SHORT_DEPTH if PUBLISHED[name].kind == "vit" else None


def expect_equal(found: np.ndarray, expected: np.ndarray, *, least: float = 0.99999) -> None:
    """Vectors that point the same way for every image, far closer to each other than two images
    are."""
    assert cosines(found, expected).min() >= least
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, unit, atol=2e-4)
    assert np.abs(found[0] - found[1]).max() > 50 * np.abs(found - unit).max()


@pytest.mark.parametrize("name", marked(list(PUBLISHED)))
def test_row_equals_the_official_model_at_every_size(name: str) -> None:
    published, ours, out, report = exported(name, depth_of(name))
    assert all(case.holds for case in report.comparisons)
    embedder = Embedder(out)
    # the folder's processor rounds down
    assert dataclasses.replace(embedder.geometry, rounding="none") == published.geometry
    prepared = in_words(published.geometry)
    told = f"Images are prepared as described in preprocessor_config.json: {prepared}."
    assert report.remarks == ((told,) if PREPROCESSING in embedder.manifest.origin else ())
    side, patch = native_side(published), published.patch
    sizes = [(side, side), (8 * patch, 8 * patch), (7 * patch, 10 * patch)]
    for height, width in sizes:
        images = draw_images(2, height=height, width=width)
        pixels = normalized(images, published.geometry)
        found = embedder.outputs(images, ("embedding", "patches"))
        if published.kind == "resnet":
            assert (
                cosines(
                    found["embedding"], timm_model(published, ours)(pixels).detach().numpy()
                ).min()
                >= 0.99999
            )
            continue
        model = transformers_model(published, ours, official=(height, width) != (side, side))
        expect_equal(found["embedding"], class_token(model, pixels))
        tokens = patch_tokens(model, pixels, published)
        scale = float(np.sqrt((tokens.astype(np.float64) ** 2).mean()))
        assert np.abs(found["patches"].reshape(tokens.shape) - tokens).max() <= 1e-3 * scale


@pytest.mark.parametrize(
    "name", marked([name for name, row in PUBLISHED.items() if row.kind == "vit"])
)
def test_a_file_of_the_class_token_alone_is_the_row(name: str, tmp_path: Path) -> None:
    published, ours, _, _ = exported(name, SHORT_DEPTH)
    backbone, info = load_published(
        published, weights=write_published(published, ours, tmp_path / "weights")
    )
    export_backbone(backbone, info, tmp_path / "m.onnx")
    embedder, patch = Embedder(tmp_path / "m.onnx"), published.patch
    model = transformers_model(published, ours, official=True)
    for height, width in ((8 * patch, 8 * patch), (7 * patch, 10 * patch)):
        images = draw_images(2, height=height, width=width)
        pixels = normalized(images, published.geometry)
        expect_equal(embedder.infer(images), class_token(model, pixels))


@pytest.mark.parametrize("name", marked(list(TIMM)))
def test_a_row_is_timms_at_the_tables_size(name: str) -> None:
    published, ours, out, _ = exported(name, depth_of(name))
    side = native_side(published)
    images = draw_images(2, height=side, width=side)
    expected = timm_model(published, ours)(normalized(images, published.geometry)).detach().numpy()
    expect_equal(Embedder(out).infer(images), expected)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in WHOLE if PUBLISHED[name].kind == "vit"],
)
def test_the_smallest_of_a_family_is_itself_at_full_depth(name: str) -> None:
    published, ours, out, report = exported(name, None)
    assert (
        sum(tensor.numel() for key, tensor in ours.items() if key != "rotary_periods")
        >= published.num_parameters
    )
    assert all(case.holds for case in report.comparisons)
    side, embedder = native_side(published), Embedder(out)
    for height, width in ((side, side), (7 * published.patch, 10 * published.patch)):
        images = draw_images(2, height=height, width=width)
        model = transformers_model(published, ours, official=(height, width) != (side, side))
        expect_equal(
            embedder.infer(images), class_token(model, normalized(images, published.geometry))
        )


def test_every_row_is_tested_or_marked_slow() -> None:
    def form(published: Published) -> tuple[object, ...]:
        settings = {
            key: value
            for key, value in published.arch.items()
            if key not in SIZES_ALONE | {"position_grid", "arch"}
        }
        return (published.kind, *sorted(settings.items()))

    every_time = {form(PUBLISHED[name]) for name in IN_EVERY_RUN}
    left = {name for name, row in PUBLISHED.items() if form(row) not in every_time}
    # SwiGLU at a width of 1536, and keys, queries and values without a bias at 4096.
    assert left == {"dinov2_vitg14", "dinov2_vitg14_reg", "dinov3_vit7b16", "dinov3_vit7b16_sat"}
