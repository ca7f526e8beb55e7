"""Promises of files whose only output is made of the class token: the last block computes nothing
else, and nobody can tell from the vectors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from featkit.backends import BF16, Run
from featkit.embedder import Embedder
from featkit.evaluate.speed import multiply_adds
from featkit_export import int8
from featkit_export.export import export_backbone
from featkit_export.graph import EmbeddingGraph
from featkit_export.half_weights_proof import halve_weights
from featkit_export.int8 import observe_ranges, quantizable_nodes, quantize_static
from featkit_export.original import load_onnx
from featkit_export.precision import lower
from featkit_export.recipe import Recipe
from featkit_export.verify import ParityError, draw_images
from featkit_train.networks.vit import Attention
from tests.export.backbones import CONFIGS, drawn_backbone, file_of, geometry_for, info_for
from tests.export.test_int8 import arrays, batches, cosines, run, set_array
from tests.featkit.backends.engines import RUNS, needs_openvino
from tests.sentences import refused

CLASS_ONLY = Recipe()
WHOLE = Recipe(outputs=("embedding", "patches"))
# Weights of this width are too large for the exporter to fold what is computed from them.
WIDE = dataclasses.replace(CONFIGS["dinov2"], width=192, mlp_width=384)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wide") / "m.onnx"
    export_backbone(drawn_backbone(WIDE), info_for(WIDE, family="dinov2"), out)
    return out


@pytest.mark.parametrize("engine", RUNS)
@pytest.mark.parametrize("name", CONFIGS)
def test_vectors_are_those_of_a_file_with_patches(name: str, engine: Run) -> None:
    alone, whole = (
        Embedder(file_of(name, recipe)[0], backend=engine.backend, precision=engine.precision)
        for recipe in (CLASS_ONLY, WHOLE)
    )
    atol = 5e-3 if engine.precision == BF16 else 2e-6
    patch = CONFIGS[name].patch
    for batch, height, width in ((1, 4, 4), (3, 3, 6), (8, 7, 7), (2, 1, 1)):
        images = draw_images(batch, height=height * patch, width=width * patch)
        np.testing.assert_allclose(alone.infer(images), whole.infer(images), atol=atol)


@needs_openvino
@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_block_computes_one_token(name: str) -> None:
    config = CONFIGS[name]
    others = config.num_registers + 4 * 4  # tokens besides the class token, at the native size
    layers = 3 if config.mlp == "swiglu" else 2
    saved = others * (
        2 * config.width**2  # query and projection
        + 2 * (1 + others) * config.width  # scores and their products with values
        + layers * config.width * config.mlp_width
    )
    whole, alone = (multiply_adds(file_of(name, recipe)[0]) for recipe in (WHOLE, CLASS_ONLY))
    assert whole is not None
    assert alone == whole - saved


@pytest.mark.parametrize(
    "recipe",
    [
        WHOLE,
        Recipe(outputs=("embedding", "attention")),
        Recipe(feature="mean"),
        Recipe(feature="gem"),
        Recipe(feature="cls+mean"),
        Recipe(layers=(1, 2)),
        Recipe(layers=(1,)),
    ],
    ids=str,
)
def test_other_recipes_need_all_tokens(recipe: Recipe) -> None:
    config = CONFIGS["dinov3"]
    assert not EmbeddingGraph(drawn_backbone(config), geometry_for(config), recipe).class_only


def test_the_last_layer_by_its_number_is_the_same_graph(tmp_path: Path) -> None:
    config = CONFIGS["dinov2"]
    named = export_backbone(
        drawn_backbone(config),
        info_for(config, family="dinov2"),
        tmp_path / "m.onnx",
        recipe=Recipe(layers=(config.depth,)),
    ).manifest
    assert named.fingerprint == file_of("dinov2", CLASS_ONLY)[1].manifest.fingerprint


def test_file_is_compared_with_the_whole_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the graph and torch's path for the class token go wrong here, in the same way."""
    right = Attention.class_query

    def wrong(self: Attention, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return right(self, tokens.roll(1, dims=1))

    monkeypatch.setattr(Attention, "class_query", wrong)
    config = CONFIGS["dinov3"]
    with refused("differs from its model in embedding", error=ParityError):
        export_backbone(drawn_backbone(config), info_for(config), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_names_and_sizes_stay_dynamic() -> None:
    graph = onnx.load(file_of("dinov3", CLASS_ONLY)[0]).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"images": ["N", "H", "W", 3], "embedding": ["N", 48]}


# Lower precisions look for weights ----------------------------------------------------------------


def test_every_product_with_a_weight_can_be_quantized(wide: Path) -> None:
    model = load_onnx(wide)
    constants, found = arrays(model), quantizable_nodes(model)
    shapes = [constants[node.input[1]].shape for node in model.graph.node if node.name in found]
    width, inner = WIDE.width, WIDE.mlp_width
    mlp = [(width, width), (width, inner), (inner, width)]
    assert sorted(shapes) == sorted(
        [(width, 3 * width), *mlp, (width, width), (width, 2 * width), *mlp]
    )
    # nothing is computed from weights when the file is opened
    assert not [node for node in model.graph.node if {*node.input} <= constants.keys()]
    weights = sum(parameter.numel() for parameter in drawn_backbone(WIDE).parameters()) * 4
    assert wide.stat().st_size < weights + 80_000


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return draw_images(12, height=4 * WIDE.patch, width=4 * WIDE.patch, seed=1)


def test_smoothing_reaches_query_and_keys_of_the_last_norm(wide: Path, images: np.ndarray) -> None:
    model, loud = load_onnx(wide), 200.0
    norm = [node for node in model.graph.node if node.op_type == "LayerNormalization"][2]
    readers = [node for node in model.graph.node if norm.output[0] in node.input]
    assert sorted(node.op_type for node in readers) == ["MatMul", "Slice"]
    normed = [norm.output[0], *(node.output[0] for node in readers if node.op_type == "Slice")]
    products = [
        node for node in model.graph.node if node.op_type == "MatMul" and node.input[0] in normed
    ]
    assert len(products) == 2  # the class token's query; all keys and values
    # The same function, with one channel as loud as in large models.
    for names, factor in (
        (norm.input[1:], loud),
        ([product.input[1] for product in products], 1 / loud),
    ):
        for name in names:
            value = arrays(model)[name].copy()
            value[5] *= factor
            set_array(model, name, value)
    ranges = observe_ranges(model, batches(images))
    graph = int8.EditedGraph(model)
    changed = int8.smooth(graph, graph.products, ranges)
    smooth = graph.finish()
    np.testing.assert_allclose(run(smooth, images)[0], run(model, images)[0], atol=1e-4)
    seen = observe_ranges(smooth, batches(images))
    for name in normed:
        assert seen[name].peak[5] < ranges[name].peak[5] / 5
        np.testing.assert_allclose(changed[name].peak, seen[name].peak, rtol=1e-3, atol=1e-4)
    found = run(quantize_static(model, ranges), images)[0]
    assert cosines(found, run(model, images)[0]).min() > 0.999


def test_lower_precisions_of_such_a_file_agree_with_it(
    wide: Path, images: np.ndarray, tmp_path: Path
) -> None:
    expected = Embedder(wide, backend="onnxruntime").infer(images)
    lower(wide, tmp_path / "half.onnx", precision="fp16")
    halve_weights(wide, tmp_path / "weights.onnx")
    for name in ("half.onnx", "weights.onnx"):
        found = Embedder(tmp_path / name, backend="onnxruntime").infer(images)
        assert cosines(found, expected).min() > 0.9999
    assert (tmp_path / "weights.onnx").stat().st_size < 0.6 * wide.stat().st_size
