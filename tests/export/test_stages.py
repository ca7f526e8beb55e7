"""Promises of files that join stages of a convolutional network, whose widths and sizes differ."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from featkit.embedder import Embedder
from featkit.geometry import Geometry
from featkit.modelfile import read_manifest
from featkit_export.export import export_backbone
from featkit_export.recipe import Feature, Recipe
from featkit_export.report import ExportReport
from featkit_export.request import ExportRequest, export
from featkit_export.torch_embedder import TorchEmbedder
from featkit_export.verify import draw_images
from featkit_train.networks.base import Features
from featkit_train.networks.borrowed import TimmModel
from featkit_train.networks.classifier import build_backbone
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, load_backbone, save_backbone
from tests.export.test_graph import unit
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision
from tests.train.networks.networks import config, drawn

WIDTHS, PATCH = (8, 12, 16, 24), 8  # of the stages, at strides 1, 2, 4 and 8
NETWORK = config("timm:resnet18", layers=[1, 1, 1, 1], channels=list(WIDTHS), small_stem=True)
GEOMETRY = Geometry(
    height=32,
    width=32,
    resize="shorter_side",
    resize_to=32,
    interpolation="bicubic",
    patch=PATCH,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.25),
)
INFO = BackboneInfo(
    name="drawn", family="resnet", geometry=GEOMETRY, license="CC0-1.0", origin={"data": "drawn"}
)
ALL_LAYERS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network whose weights, biases and statistics of BatchNorm are drawn."""
    allow_torchvision()
    folder = tmp_path_factory.mktemp("stages") / "run"
    save_backbone(folder / BACKBONE_FILE, drawn(build_backbone(NETWORK)), INFO)
    return folder


@cache  # tracing takes seconds
def exported(run: Path, feature: Feature, layers: tuple[int, ...]) -> tuple[Path, ExportReport]:
    """Export the run with the output `patches`."""
    out = run / f"{feature}-{'-'.join(map(str, layers))}.onnx"
    outputs = ("embedding", "patches")
    request = ExportRequest(
        source=str(run), out=out, feature=feature, layers=layers, outputs=outputs
    )
    return out, export(request)


def stages_of(
    run: Path, images: np.ndarray, *, layers: tuple[int, ...] = ALL_LAYERS
) -> list[Features]:
    """Features of every stage in torch, of pixels normalized here."""
    backbone, _ = load_backbone(run)
    pixels = (images / 255 - np.array(GEOMETRY.mean)) / np.array(GEOMETRY.std)
    with torch.no_grad():
        given = backbone.activations(
            torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)), layers=layers
        )
    return list(given.features)


def defined(stages: list[Features], feature: str, layers: tuple[int, ...]) -> np.ndarray:
    """The vectors by a plain loop: pool, scale to unit length, concatenate, scale."""
    vectors = []
    for image in range(len(stages[0].class_token)):
        parts = []
        for layer in layers:
            places = stages[layer - 1].patch_tokens[image].double().numpy()
            places = places.reshape(-1, places.shape[-1])
            pooled = {
                "cls": stages[layer - 1].class_token[image].double().numpy(),
                "mean": sum(places) / len(places),
                "gem": (sum(np.maximum(place, 1e-6) ** 3 for place in places) / len(places))
                ** (1 / 3),
            }
            of_layer = np.concatenate([unit(pooled[part]) for part in feature.split("+")])
            parts.append(unit(of_layer))
        vectors.append(unit(np.concatenate(parts)))
    return np.stack(vectors)


@pytest.mark.parametrize(
    ("feature", "layers"), [("gem", (2, 4, 3)), ("cls+mean", (3, 4)), ("mean", (1, 2))]
)
def test_joined_stages_are_their_definition(
    feature: Feature, layers: tuple[int, ...], run: Path
) -> None:
    out, report = exported(run, feature, layers)
    assert report.manifest.fixed_size is None
    assert all(case.holds for case in report.comparisons)
    embedder = Embedder(out)
    width = sum(WIDTHS[layer - 1] for layer in layers) * (1 + ("+" in feature))
    assert (embedder.width, embedder.manifest.layers) == (width, layers)
    assert embedder.manifest.made_of.endswith(
        f"{feature} of blocks {', '.join(map(str, layers))} (concat)"
    )
    for count, height, side in ((5, 32, 32), (2, 40, 24), (1, 8, 72)):
        images = draw_images(count, height=height, width=side)
        found = embedder.outputs(images, ("embedding", "patches"))
        stages = stages_of(run, images)
        assert found["embedding"].shape == (count, width)
        np.testing.assert_allclose(
            found["embedding"], defined(stages, feature, layers), atol=2e-6, rtol=1e-4
        )
        last = stages[layers[-1] - 1].patch_tokens.numpy()  # of the layer named last, in its size
        assert found["patches"].shape == last.shape
        assert last.shape[1] == height // (2 ** (layers[-1] - 1))
        np.testing.assert_allclose(found["patches"] / last.std(), last / last.std(), atol=1e-4)


def test_a_run_in_torch_gives_the_vectors_of_its_file(run: Path) -> None:
    recipe, images = (
        Recipe(feature="gem", layers=(2, 4, 3)),
        draw_images(3, height=32, width=32),
    )
    embedder = TorchEmbedder.open(run, recipe=recipe, device="cpu")
    file = Embedder(exported(run, "gem", (2, 4, 3))[0])
    np.testing.assert_allclose(embedder.infer(images), file.infer(images), atol=2e-6)
    assert embedder.manifest.width == file.width
    assert embedder.infer(images[:0]).shape == (0, file.width)


def test_the_last_stage_by_name_is_the_file_without_layers(run: Path) -> None:
    plain, named = (read_manifest(exported(run, "cls", layers)[0]) for layers in ((), (4,)))
    assert (plain.layers, named.layers) == ((), (4,))
    assert plain.fingerprint == named.fingerprint


def test_a_file_of_early_stages_holds_no_later_weights(run: Path) -> None:
    backbone, _ = load_backbone(run)
    held = sum(
        parameter.numel()
        for name, parameter in backbone.named_parameters()
        if not name.startswith(("body.layer3", "body.layer4"))
    )
    graph = onnx.load(exported(run, "mean", (1, 2))[0]).graph
    assert sum(int(np.prod(tensor.dims)) for tensor in graph.initializer) < 1.03 * held + 200


@pytest.mark.parametrize("layers", [(3, 4), (4, 1)])
def test_mean_of_different_widths_is_refused_before_tracing(
    layers: tuple[int, int], run: Path, tmp_path: Path
) -> None:
    steps: list[str] = []
    shown = ", ".join(f"layer {layer} has {WIDTHS[layer - 1]}" for layer in layers)
    with refused("drawn", "cannot be averaged", shown, "use --join concat"):
        export_backbone(
            load_backbone(run)[0],
            INFO,
            tmp_path / "m.onnx",
            recipe=Recipe(layers=layers, join="mean"),
            on_step=steps.append,
        )
    assert (steps, list(tmp_path.iterdir())) == ([], [])
    with refused("cannot be averaged"):
        TorchEmbedder.open(run, recipe=Recipe(layers=layers, join="mean"))


def test_missing_stages_are_refused_with_the_existing_ones(run: Path, tmp_path: Path) -> None:
    for layers in ((5,), (0, 1), (2, 2)):
        with refused("drawn has layers 1 to 4; name each at most once", list(layers)):
            export(ExportRequest(source=str(run), out=tmp_path / "m.onnx", layers=layers))
    assert list(tmp_path.iterdir()) == []


def test_stages_of_featkits_convnet_are_joined(tmp_path: Path) -> None:
    run = tmp_path / "run"
    network = config("featkit:convnet", stem=6, widths=[8, 12], blocks=[1, 2])
    save_backbone(run / BACKBONE_FILE, drawn(build_backbone(network)), INFO)
    out = tmp_path / "m.onnx"
    export(ExportRequest(source=str(run), out=out, feature="gem", layers=(2, 1)))
    images = draw_images(2, height=40, width=24)
    stages = stages_of(run, images, layers=(1, 2))
    found = Embedder(out).infer(images)
    np.testing.assert_allclose(found, defined(stages, "gem", (2, 1)), atol=2e-6, rtol=1e-4)
    assert read_manifest(out).width == found.shape[1] == 20


def test_the_width_of_a_last_map_is_not_its_vectors(tmp_path: Path) -> None:
    """MobileNetV3 has a layer between its last map and its classifier."""
    allow_torchvision()
    backbone, out = drawn(TimmModel("mobilenetv3_small_050")), tmp_path / "m.onnx"
    geometry = dataclasses.replace(GEOMETRY, height=64, width=64, resize_to=64, patch=32)
    info = dataclasses.replace(INFO, geometry=geometry)
    export_backbone(backbone, info, out, recipe=Recipe(feature="gem"))
    embedder = Embedder(out)
    vectors = embedder.infer(draw_images(2, height=64, width=64))
    assert vectors.shape[1] == embedder.width == 288 != backbone.width
