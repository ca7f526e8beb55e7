"""Promises of sizes: sides that the patch does not divide are refused by every runtime, and the
guard changes no vector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from featkit.backends import Run
from featkit.backends.opening import open_backend
from featkit.embedder import Embedder
from featkit.errors import FeatkitError
from featkit.modelfile import read_manifest
from featkit.models import default_model_path
from featkit_export.adopt import AdoptOptions, adopt_file
from featkit_export.seal import fingerprint
from featkit_export.surgery import GUARD, add_guard, find_guard
from featkit_export.verify import draw_images
from tests.export.backbones import CONFIGS, file_of
from tests.export.published import GEOMETRY, PATCH, build
from tests.sentences import refused

ODD = [
    (5 * PATCH - 1, 4 * PATCH),
    (4 * PATCH, 5 * PATCH - 1),
    (5 * PATCH + 1, 4 * PATCH),
    (69, 69),
    (PATCH - 1, PATCH),
    (1, 1),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file exported from torch and one that was adopted, both of patch 14."""
    folder = tmp_path_factory.mktemp("guarded")
    onnx.save(build(), folder / "m.onnx")
    adopt_file(
        folder / "m.onnx",
        folder / "adopted.onnx",
        AdoptOptions(license="x", geometry=GEOMETRY, num_registers=0),
    )
    assert CONFIGS["dinov2"].patch == PATCH
    return {"exported": file_of("dinov2")[0], "adopted": folder / "adopted.onnx"}


@pytest.mark.parametrize("name", ["exported", "adopted"])
@pytest.mark.parametrize(("height", "width"), ODD)
def test_runtimes_refuse_a_side_that_is_not_a_multiple(
    files: dict[str, Path], name: str, height: int, width: int
) -> None:
    images = np.zeros((2, height, width, 3), np.uint8)
    session = ort.InferenceSession(str(files[name]))
    with pytest.raises(Exception, match="Reshape"):
        session.run(["embedding"], {"images": images})
    with pytest.raises(ValueError, match="reshape"):
        ReferenceEvaluator(str(files[name])).run(["embedding"], {"images": images})


@pytest.mark.parametrize("name", ["exported", "adopted"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_refuse_it_and_the_embedder_names_the_nearest(
    files: dict[str, Path], name: str, backend: str
) -> None:
    engine = open_backend(files[name], Run(backend, "fp32"), threads=1)
    for height, width in ODD:
        with pytest.raises(FeatkitError):
            engine.run(np.zeros((1, height, width, 3), np.uint8))
    assert engine.run(np.zeros((1, 2 * PATCH, 3 * PATCH, 3), np.uint8))["embedding"].shape[0] == 1
    with refused("height is 69", "use 56 or 70"):
        Embedder(files[name], backend=backend).infer(np.zeros((1, 69, 56, 3), np.uint8))


@pytest.mark.parametrize("name", ["exported", "adopted"])
def test_the_guard_changes_neither_vectors_nor_fingerprint(
    files: dict[str, Path], name: str
) -> None:
    guarded, manifest = onnx.load(files[name]), read_manifest(files[name])
    bare = onnx.ModelProto()
    bare.CopyFrom(guarded)
    nodes = [node for node in bare.graph.node if not node.name.startswith(GUARD)]
    assert len(bare.graph.node) - len(nodes) == 4
    for node in nodes:
        node.input[:] = ["images" if value == f"{GUARD}images" else value for value in node.input]
    del bare.graph.node[:]
    bare.graph.node.extend(nodes)
    weights = [weight for weight in bare.graph.initializer if not weight.name.startswith(GUARD)]
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(weights)
    assert (
        fingerprint(bare, manifest.geometry)
        == fingerprint(guarded, manifest.geometry)
        == manifest.fingerprint
    )
    images = draw_images(3, height=2 * PATCH, width=5 * PATCH)
    found = [
        ort.InferenceSession(m.SerializeToString()).run(["embedding"], {"images": images})[0]
        for m in (bare, guarded)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    add_guard(bare.graph, PATCH, opset=17)
    assert fingerprint(bare, manifest.geometry) == manifest.fingerprint


def test_a_file_of_one_size_needs_no_guard(tmp_path: Path) -> None:
    onnx.save(build(shape=("batch", 3, 56, 56), baked="positions"), tmp_path / "m.onnx")
    adopt_file(
        tmp_path / "m.onnx",
        tmp_path / "out.onnx",
        AdoptOptions(license="x", geometry=GEOMETRY, num_registers=0),
    )
    assert not any(
        node.name.startswith(GUARD) for node in onnx.load(tmp_path / "out.onnx").graph.node
    )


def test_the_shipped_model_has_the_guard() -> None:
    path = default_model_path()
    patch = read_manifest(path).patch
    session = ort.InferenceSession(str(path))
    assert find_guard(onnx.load(path).graph) is not None
    with pytest.raises(Exception, match="Reshape"):
        session.run(["embedding"], {"images": np.zeros((1, 4 * patch + 1, 4 * patch, 3), np.uint8)})
