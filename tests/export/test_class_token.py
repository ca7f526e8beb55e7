"""Promises of files without a class token, such as SigLIP's: a patch is never taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from featkit.embedder import Embedder
from featkit.modelfile import read_manifest
from featkit_export.adopt import AdoptOptions, adopt_file
from featkit_export.verify import draw_images
from tests.export.published import GEOMETRY, NATIVE, PATCH, WIDTH, Published, build, publish_siglip
from tests.images import draw_image
from tests.sentences import refused


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish_siglip(tmp_path_factory.mktemp("siglip"))


def published_vectors(made: Published, images: np.ndarray, feature: str) -> np.ndarray:
    pixels = made.processor(list(images), do_resize=False, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        given = made.model(pixels)
    found = {"pooler": given.pooler_output, "mean": given.last_hidden_state.mean(dim=1)}[feature]
    vectors: np.ndarray = torch.nn.functional.normalize(found, dim=-1).numpy()
    return vectors


@pytest.mark.parametrize("feature", [None, "pooler", "mean"])
def test_siglip_gives_its_pooler_or_the_mean_of_patches(
    siglip: Published, tmp_path: Path, feature: str | None
) -> None:
    file = siglip.folder / "onnx" / "vision_model.onnx"
    report = adopt_file(
        file, tmp_path / "m.onnx", AdoptOptions(license="apache-2.0", feature=feature)
    )
    manifest = read_manifest(tmp_path / "m.onnx")
    assert (manifest.feature, manifest.family, manifest.width) == (
        feature or "pooler",
        "siglip",
        WIDTH,
    )
    assert any("no class token" in note for note in report.remarks)
    images = draw_images(3, height=NATIVE, width=NATIVE)
    embedder = Embedder(tmp_path / "m.onnx", backend="onnxruntime")
    expected = published_vectors(siglip, images, feature or "pooler")
    np.testing.assert_allclose(embedder.infer(images), expected, atol=1e-5)
    photo = draw_image(1, height=101, width=67)
    pixels = siglip.processor(photo, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        given = siglip.model(pixels)
    theirs = {"pooler": given.pooler_output, "mean": given.last_hidden_state.mean(dim=1)}[
        feature or "pooler"
    ][0].numpy()
    assert embedder.embed(photo)[0] @ theirs / np.linalg.norm(theirs) >= 0.9999


def test_without_class_token_all_tokens_are_patches(siglip: Published, tmp_path: Path) -> None:
    file = siglip.folder / "onnx" / "vision_model.onnx"
    adopt_file(
        file,
        tmp_path / "m.onnx",
        AdoptOptions(license="x", feature="mean", outputs=("embedding", "patches")),
    )
    images = draw_images(2, height=NATIVE, width=NATIVE)
    found = Embedder(tmp_path / "m.onnx", backend="onnxruntime").outputs(images, ["patches"])[
        "patches"
    ]
    pixels = siglip.processor(list(images), do_resize=False, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        hidden = siglip.model(pixels).last_hidden_state.numpy()
    np.testing.assert_allclose(found.reshape(2, -1, WIDTH), hidden, atol=1e-4)


@pytest.mark.parametrize("feature", ["cls", "cls+mean", "cls+gem"])
def test_missing_class_token_is_refused_with_alternatives(
    siglip: Published, tmp_path: Path, feature: str
) -> None:
    with refused("one token for each patch", "no class token", "--feature pooler, mean or gem"):
        adopt_file(
            siglip.folder / "onnx" / "vision_model.onnx",
            tmp_path / "m.onnx",
            AdoptOptions(license="x", feature=feature),
        )
    assert list(tmp_path.iterdir()) == []


def without_class_token(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same hand-built network without the token in front of the patches."""
    kept = [node for node in model.graph.node if node.op_type not in ("ReduceMax", "Concat")]
    for node in kept:
        node.input[:] = ["patch_tokens" if name == "tokens" else name for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def test_without_class_token_and_pooler_a_feature_is_required(tmp_path: Path) -> None:
    onnx.save(without_class_token(build()), tmp_path / "m.onnx")
    options: dict[str, Any] = {"license": "x", "geometry": GEOMETRY, "num_registers": 0}
    for feature in (None, "cls"):
        with refused("no class token", "--feature mean or"):
            adopt_file(
                tmp_path / "m.onnx", tmp_path / "out.onnx", AdoptOptions(feature=feature, **options)
            )
    report = adopt_file(
        tmp_path / "m.onnx", tmp_path / "out.onnx", AdoptOptions(feature="mean", **options)
    )
    assert report.manifest.fixed_size is None  # it holds at every size
    assert {(case.height, case.width) for case in report.comparisons} >= {
        (NATIVE, NATIVE),
        (84, 126),
    }


def test_a_pooler_that_is_not_there_is_refused(tmp_path: Path) -> None:
    onnx.save(build(), tmp_path / "m.onnx")
    with refused("no pooler_output", "--feature cls or mean"):
        adopt_file(
            tmp_path / "m.onnx",
            tmp_path / "o.onnx",
            AdoptOptions(license="x", geometry=GEOMETRY, num_registers=0, feature="pooler"),
        )


def test_the_pooler_of_a_file_with_a_class_token_can_be_chosen(tmp_path: Path) -> None:
    model = build()
    model.graph.node.append(
        helper.make_node(
            "ReduceMax", ["last_hidden_state"], ["pooler_output"], axes=[1], keepdims=0
        )
    )
    model.graph.output.append(
        helper.make_tensor_value_info("pooler_output", onnx.TensorProto.FLOAT, ["batch", WIDTH])
    )
    onnx.save(model, tmp_path / "m.onnx")
    options: dict[str, Any] = {"license": "x", "geometry": GEOMETRY, "num_registers": 0}
    adopt_file(
        tmp_path / "m.onnx", tmp_path / "pooler.onnx", AdoptOptions(feature="pooler", **options)
    )
    adopt_file(tmp_path / "m.onnx", tmp_path / "cls.onnx", AdoptOptions(**options))
    images = draw_images(2, height=2 * PATCH, width=3 * PATCH)
    pooler, cls = (Embedder(tmp_path / f"{name}.onnx").infer(images) for name in ("pooler", "cls"))
    assert np.abs(pooler - cls).max() > 1e-2
    assert read_manifest(tmp_path / "cls.onnx").feature == "cls"
    with refused("comes without patches"):
        adopt_file(
            tmp_path / "m.onnx",
            tmp_path / "o.onnx",
            AdoptOptions(feature="pooler", outputs=("embedding", "patches"), **options),
        )


def test_an_asked_size_wins_over_the_folders_and_is_said(siglip: Published, tmp_path: Path) -> None:
    onnx.save(build(), tmp_path / "m.onnx")
    (tmp_path / "config.json").write_text('{"patch_size": 14}')
    (tmp_path / "preprocessor_config.json").write_text(
        (siglip.folder / "preprocessor_config.json").read_text()
    )
    report = adopt_file(
        tmp_path / "m.onnx", tmp_path / "o.onnx", AdoptOptions(license="x", size=(28, 42))
    )
    assert report.manifest.fixed_size == (28, 42)
    assert (report.manifest.geometry.height, report.manifest.geometry.width) == (28, 42)
    assert "--size 28x42 overrides its 56×56." in report.remarks
    with refused("69×69, which is not a multiple of the patch size 14", "--size 56 or 70"):
        adopt_file(
            tmp_path / "m.onnx", tmp_path / "p.onnx", AdoptOptions(license="x", size=(69, 69))
        )
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        Embedder(tmp_path / "o.onnx", backend="onnxruntime")._backend.run(
            np.zeros((1, 56, 56, 3), np.uint8)
        )
