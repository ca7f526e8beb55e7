"""Promises of export for networks of timm's and torchvision's, with exits and without: one exit is
one file, and no more."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from featkit.embedder import Embedder
from featkit.geometry import Geometry
from featkit.modelfile import read_manifest
from featkit_export.export import cut_at
from featkit_export.recipe import Recipe
from featkit_export.report import ExportReport
from featkit_export.request import ExportRequest, export
from featkit_export.torch_embedder import TorchEmbedder
from featkit_export.verify import draw_images
from featkit_train.networks.classifier import build_backbone
from featkit_train.networks.exits import ExitedBackbone
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, load_backbone, save_backbone
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision
from tests.train.networks.networks import CONFIGS, add_tiny_vit, drawn

NETWORKS = {
    "timm CNN": dataclasses.replace(CONFIGS["timm CNN"], exits=(1, 2)),
    "timm ViT": dataclasses.replace(CONFIGS["timm ViT"], exits=(1, 2)),
    "torchvision CNN": CONFIGS["torchvision CNN"],
    "torchvision ViT": dataclasses.replace(CONFIGS["torchvision ViT"], exits=(1,)),
}
WITH_PATCHES = Recipe(outputs=("embedding", "patches"))
GEOMETRY = Geometry(
    height=32,
    width=32,
    resize="shorter_side",
    resize_to=32,
    interpolation="bicubic",
    patch=8,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.25),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each network, by its name."""
    allow_torchvision()
    add_tiny_vit()
    folder = tmp_path_factory.mktemp("exits")
    for name, config in NETWORKS.items():
        info = BackboneInfo(
            name=name,
            family="internal",
            geometry=GEOMETRY,
            license="CC0-1.0",
            origin={"data": "drawn"},
        )
        save_backbone(folder / name / BACKBONE_FILE, drawn(build_backbone(config)), info)
    return folder


@cache  # tracing takes seconds
def exported(run: Path, exit_: int | None) -> tuple[Path, ExportReport]:
    out = run / f"{exit_}.onnx"
    return out, export(ExportRequest(source=str(run), out=out, **vars(WITH_PATCHES), exit=exit_))


def pixels(images: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (GEOMETRY.mean, GEOMETRY.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


@pytest.mark.parametrize(
    ("name", "exit_"),
    [
        ("timm CNN", 1),
        ("timm CNN", None),
        ("timm ViT", 1),
        ("torchvision CNN", None),
        ("torchvision ViT", 1),
    ],
)
def test_a_file_gives_the_very_vectors_of_its_exit(
    name: str, exit_: int | None, runs: Path
) -> None:
    out, report = exported(runs / name, exit_)
    assert all(case.holds for case in report.comparisons)
    assert {case.batch for case in report.comparisons} == {1, 3, 8}
    backbone, _ = load_backbone(runs / name)
    sizes = [(5, 32, 32)]
    if name == "torchvision ViT":
        assert report.manifest.fixed_size == (32, 32)
        assert "accepts only 32×32" in report.remarks[0]
    else:
        assert (report.manifest.fixed_size, report.remarks) == (None, ())
        sizes += [(2, 40, 24), (1, 8, 72)]
    embedder = Embedder(out)
    for count, height, width in sizes:
        images = draw_images(count, height=height, width=width)
        with torch.no_grad():
            if isinstance(backbone, ExitedBackbone):
                features = backbone.all_exits(pixels(images))[(exit_ or backbone.depth) - 1]
            else:
                features = backbone(pixels(images))
        found = embedder.outputs(images, ("embedding", "patches"))
        np.testing.assert_allclose(
            found["embedding"], F.normalize(features.class_token, dim=-1).numpy(), atol=2e-5
        )
        scale = float(features.patch_tokens.std())
        np.testing.assert_allclose(
            found["patches"] / scale, features.patch_tokens.numpy() / scale, atol=1e-4
        )
        # images differ
        assert count == 1 or np.abs(found["embedding"][0] - found["embedding"][1]).max() > 5e-3


@pytest.mark.parametrize(
    ("name", "exit_", "share"),
    [("timm CNN", 1, 0.2), ("timm CNN", None, 0.9), ("timm ViT", 1, 0.5)],
)
def test_a_file_holds_the_weights_of_its_exit_alone(
    name: str, exit_: int | None, share: float, runs: Path
) -> None:
    backbone, _ = load_backbone(runs / name)
    assert isinstance(backbone, ExitedBackbone)
    out, _ = exported(runs / name, exit_)
    size = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(out).graph.initializer)
    held = sum(
        parameter.numel() for parameter in backbone.cut(exit_ or backbone.depth).parameters()
    )
    # Folded constants and buffers add little.
    assert 0.97 * held < size < 1.03 * held + 200
    assert held < share * sum(parameter.numel() for parameter in backbone.parameters())


def test_the_manifest_says_which_exit_of_how_many(runs: Path) -> None:
    first, deepest = (read_manifest(exported(runs / "timm CNN", number)[0]) for number in (1, None))
    assert (first.origin["exit"], deepest.origin["exit"]) == ("1 of 3", "3 of 3")
    assert first.origin["sha256"] == deepest.origin["sha256"]
    assert first.fingerprint != deepest.fingerprint
    assert (first.width, first.patch, first.layers, first.geometry) == (128, 8, (), GEOMETRY)
    assert "exit" not in read_manifest(exported(runs / "torchvision CNN", None)[0]).origin
    assert "exit" not in load_backbone(runs / "timm CNN")[1].origin


def test_exits_and_outputs_that_are_not_there_are_refused(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    for number in (0, 4, -1):
        with refused("timm CNN has exits 1 to 3", number):
            export(ExportRequest(source=str(runs / "timm CNN"), out=out, exit=number))
    with refused("torchvision CNN has no early exits", "leave out --exit", "classifier.exits"):
        export(ExportRequest(source=str(runs / "torchvision CNN"), out=out, exit=1))
    for name in NETWORKS:
        with refused(name, "gives no attention", "leave it out of --outputs"):
            export(
                ExportRequest(source=str(runs / name), out=out, outputs=("embedding", "attention"))
            )
        if NETWORKS[name].exits:
            with refused(name, "only gives its last layer", "leave out --layers"):
                export(ExportRequest(source=str(runs / name), out=out, layers=(1,)))
        with refused(name, "[1, 9]"):
            export(ExportRequest(source=str(runs / name), out=out, layers=(1, 9)))
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_of_featkits_own_is_left_as_it_is() -> None:
    from tests.export.backbones import CONFIGS as VITS
    from tests.export.backbones import drawn_backbone, info_for

    backbone, info = drawn_backbone(VITS["dino"]), info_for(VITS["dino"])
    assert cut_at(backbone, info, None) == (backbone, info)
    with refused("drawn has no early exits"):
        cut_at(backbone, info, 1)


@pytest.mark.parametrize("name", ["timm CNN", "torchvision CNN"])
def test_a_run_is_evaluated_in_torch_as_its_file_is(name: str, runs: Path) -> None:
    images = draw_images(3, height=32, width=32)
    embedder = TorchEmbedder.open(runs / name, device="cpu")
    np.testing.assert_allclose(
        embedder.infer(images), Embedder(exported(runs / name, None)[0]).infer(images), atol=2e-5
    )
    assert (embedder.manifest.width, embedder.geometry) == (
        128 if name == "timm CNN" else 512,
        GEOMETRY,
    )
