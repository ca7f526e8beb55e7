"""Promises of the recipe: each feature, join, output and size is what its definition says, through
the file and ONNX Runtime.

Tokens and attention come from transformers' models with the same weights, and are pooled here by
plain numpy.
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.modelfile import OUTPUTS
from featkit.whitening import Whitening
from featkit_export.export import export_backbone, sized
from featkit_export.graph import OPSET, EmbeddingGraph, TraceError, check_graph
from featkit_export.recipe import FEATURES, Recipe
from featkit_export.traced import Traced
from featkit_export.verify import draw_images
from featkit_train.networks.base import Activations, Backbone, Features
from tests.export.backbones import (
    ALL_OUTPUTS,
    CONFIGS,
    drawn_backbone,
    file_of,
    geometry_for,
    info_for,
)
from tests.sentences import refused
from tests.train.networks.test_vit import make_reference, renamed

# transformers stretches the tables of these by the official rule, so they serve at every size.
REFERENCES = ("dinov2_reg_swiglu", "dinov3")
SIZES = {"native": (4, 4), "rectangle": (3, 6), "large": (7, 7)}  # in patches
RECIPES = {
    "cls": Recipe(feature="cls"),
    "mean, layers swapped": Recipe(feature="mean", layers=(2, 1), outputs=("embedding", "patches")),
    "gem, layers averaged": Recipe(feature="gem", layers=(1, 2), join="mean"),
    "cls+mean, first layer": Recipe(
        feature="cls+mean", layers=(1,), outputs=("embedding", "attention")
    ),
}


@cache
def reference(name: str) -> Any:
    """transformers' model of drawn_backbone(CONFIGS[name]), which gives its attention."""
    model = make_reference(name)
    model.load_state_dict(renamed(drawn_backbone(CONFIGS[name]).state_dict(), name), strict=False)
    model.set_attn_implementation("eager")
    return model


def normalized(images: np.ndarray, geometry: Geometry) -> torch.Tensor:
    """(N, 3, H, W) float32, in plain numpy."""
    pixels = (images.astype(np.float64) / 255 - np.array(geometry.mean)) / np.array(geometry.std)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def tokens_of(name: str, images: np.ndarray) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """By transformers: after each block and the last norm (N, T, D), and the last block's attention
    (N, heads, T, T)."""
    model = reference(name)
    norm = model.layernorm if hasattr(model, "layernorm") else model.norm
    with torch.no_grad():
        given = model(
            normalized(images, geometry_for(CONFIGS[name])),
            output_hidden_states=True,
            output_attentions=True,
        )
        layers = {number: norm(given.hidden_states[number]).double().numpy() for number in (1, 2)}
        np.testing.assert_allclose(layers[2], given.last_hidden_state.numpy(), rtol=1e-4, atol=1e-4)
    return layers, given.attentions[-1].numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    """At length 1."""
    return vector / np.sqrt((vector**2).sum())  # type: ignore[no-any-return]


def pooled(tokens: np.ndarray, part: str, *, prefix: int) -> np.ndarray:
    """An image's tokens (T, D) to one vector: the class token, the mean, or the generalized mean
    (arXiv 1711.02512, eq. 3)."""
    if part == "cls":
        return tokens[0]  # type: ignore[no-any-return]
    patches = tokens[prefix:]
    found = np.zeros(tokens.shape[1])
    for channel in range(tokens.shape[1]):
        if part == "mean":
            found[channel] = sum(patches[:, channel]) / len(patches)
        else:
            powers = [max(value, 1e-6) ** 3 for value in patches[:, channel]]
            found[channel] = (sum(powers) / len(powers)) ** (1 / 3)
    return found


def defined(
    layers: dict[int, np.ndarray],
    recipe: Recipe,
    *,
    prefix: int,
    whitening: Whitening | None = None,
) -> np.ndarray:
    """The recipe's vectors (N, width), from its definition."""
    vectors = []
    for image in range(len(layers[2])):
        of_layers = []
        for number in recipe.layers or (2,):
            parts = [
                unit(pooled(layers[number][image], part, prefix=prefix))
                for part in recipe.feature.split("+")
            ]
            of_layers.append(unit(np.concatenate(parts)))
        joined = (
            np.concatenate(of_layers) if recipe.join == "concat" else np.mean(of_layers, axis=0)
        )
        vector = unit(joined)
        if whitening is not None:
            vector = unit(whitening.components.astype(np.float64) @ (vector - whitening.mean))
        vectors.append(vector)
    return np.stack(vectors)


def images_of(name: str, size: str, *, batch: int = 3) -> np.ndarray:
    height, width = (side * CONFIGS[name].patch for side in SIZES[size])
    return draw_images(batch, height=height, width=width)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", REFERENCES)
def test_every_output_of_a_file_is_its_definition(name: str, size: str) -> None:
    images = images_of(name, size)
    layers, attention = tokens_of(name, images)
    prefix, (height, width) = 1 + CONFIGS[name].num_registers, SIZES[size]
    found = Embedder(file_of(name)[0]).outputs(images, OUTPUTS)
    np.testing.assert_allclose(
        found["embedding"], defined(layers, ALL_OUTPUTS, prefix=prefix), atol=2e-6
    )
    np.testing.assert_allclose(
        found["patches"].reshape(3, height * width, -1), layers[2][:, prefix:], atol=2e-5, rtol=1e-4
    )
    np.testing.assert_allclose(
        found["attention"].reshape(3, 3, -1), attention[:, :, 0, prefix:], atol=1e-6
    )
    # The class token's own share and the registers' are left out, and nothing is scaled up in their
    # place.
    left_out = attention[:, :, 0, :prefix].sum(axis=-1)
    assert left_out.min() > 1e-3
    np.testing.assert_allclose(found["attention"].sum(axis=(2, 3)), 1 - left_out, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_every_feature_and_join_of_a_file_is_its_definition(name: str) -> None:
    recipe = RECIPES[name]
    out, report = file_of("dinov2_reg_swiglu", recipe)
    images = images_of("dinov2_reg_swiglu", "rectangle")
    layers, attention = tokens_of("dinov2_reg_swiglu", images)
    embedder = Embedder(out)
    expected = defined(layers, recipe, prefix=5)
    assert expected.shape[1] == embedder.width
    found = embedder.outputs(images, recipe.outputs)
    np.testing.assert_allclose(found["embedding"], expected, atol=2e-6)
    if "patches" in recipe.outputs:  # of the layer named last
        np.testing.assert_allclose(
            found["patches"].reshape(3, 18, -1), layers[1][:, 5:], atol=2e-5, rtol=1e-4
        )
    if "attention" in recipe.outputs:  # of the last block, whatever the layers
        np.testing.assert_allclose(
            found["attention"].reshape(3, 3, -1), attention[:, :, 0, 5:], atol=1e-6
        )
    manifest = report.manifest
    assert (manifest.feature, manifest.layers, manifest.outputs) == (
        recipe.feature,
        recipe.layers,
        recipe.outputs,
    )
    assert manifest.join == (recipe.join if recipe.layers else "")
    assert {case.output for case in report.comparisons} == set(recipe.outputs)


@pytest.mark.parametrize(
    ("feature", "layers", "join"),
    [*itertools.product(FEATURES, ((), (1,), (1, 2), (2, 1)), ("concat", "mean"))],
)
def test_every_recipe_in_torch_is_its_definition(
    feature: Any, layers: tuple[int, ...], join: Any
) -> None:
    images = images_of("dinov3", "rectangle", batch=2)
    recipe = Recipe(feature=feature, layers=layers, join=join)
    module = EmbeddingGraph(
        drawn_backbone(CONFIGS["dinov3"]), geometry_for(CONFIGS["dinov3"]), recipe
    ).eval()
    expected = defined(tokens_of("dinov3", images)[0], recipe, prefix=5)
    found = module.run(images)["embedding"]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.shape[1] == module.width
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)


def drawn_whitening(*, model: str, width: int, dim: int) -> Whitening:
    rng = np.random.default_rng(0)
    return Whitening(
        mean=rng.normal(0, 0.1, width).astype(np.float32),
        components=rng.standard_normal((dim, width)).astype(np.float32),
        num_vectors=1000,
        explained=0.875,
        model=model,
    )


def test_what_was_said_of_the_weights_is_in_the_report(tmp_path: Path) -> None:
    config = CONFIGS["dino"]
    info = dataclasses.replace(
        info_for(config, family="dino"), remarks=("w.pth: left out head (2 tensors).",)
    )
    report = export_backbone(drawn_backbone(config), info, tmp_path / "m.onnx", size=(16, 16))
    assert report.remarks == info.remarks


def test_a_whitening_is_folded_into_the_file(tmp_path: Path) -> None:
    name, recipe = "dinov2_reg_swiglu", Recipe(feature="cls+gem", layers=(1, 2), join="mean")
    whitening = drawn_whitening(
        model=f"{name} {'0' * 64} cls+gem of blocks 1, 2 (mean)", width=96, dim=20
    )
    config = CONFIGS[name]
    manifest = export_backbone(
        drawn_backbone(config),
        info_for(config, family=name),
        tmp_path / "m.onnx",
        recipe=recipe,
        whitening=whitening,
    ).manifest
    assert manifest.whitened == "1,000 vectors, 87.5% of the variance kept"
    assert manifest.made_of == whitening.model
    embedder, images = Embedder(tmp_path / "m.onnx"), images_of(name, "large")
    found = embedder.infer(images)
    layers, _ = tokens_of(name, images)
    np.testing.assert_allclose(
        found, defined(layers, recipe, prefix=5, whitening=whitening), atol=5e-6
    )
    # The same as the vectors of a file without it, put through it afterwards.
    plain = (
        EmbeddingGraph(drawn_backbone(config), geometry_for(config), recipe)
        .eval()
        .run(images)["embedding"]
    )
    np.testing.assert_allclose(found, whitening.apply(plain), atol=5e-6)
    assert embedder.width == manifest.width == 20


@pytest.mark.parametrize(
    "model",
    [
        f"dinov3 {'0' * 64} mean",
        f"dinov3 {'1' * 64} cls",
        f"dinov3 {'0' * 64} cls of blocks 1 (concat)",
    ],
)
def test_whitening_of_other_vectors_is_refused_before_tracing(tmp_path: Path, model: str) -> None:
    config, steps = CONFIGS["dinov3"], list[str]()
    with refused("another model or feature", model, f"dinov3 {'0' * 64} cls"):
        export_backbone(
            drawn_backbone(config),
            info_for(config, family="dinov3"),
            tmp_path / "m.onnx",
            whitening=drawn_whitening(model=model, width=48, dim=8),
            on_step=steps.append,
        )
    assert (steps, list(tmp_path.iterdir())) == ([], [])


class Convolutions(Backbone):
    """The smallest network without attention."""

    def __init__(self) -> None:
        super().__init__(patch=16, width=8, depth=1)
        self.filters = torch.nn.Conv2d(3, 8, 16, stride=16)

    def activations(
        self,
        images: torch.Tensor,
        *,
        layers: Any,  # noqa: ARG002
        attention: bool = False,  # noqa: ARG002
    ) -> Activations:
        """Features of the one layer."""
        places = self.filters(images)
        return Activations((Features(places.amax(dim=(2, 3)), places.permute(0, 2, 3, 1)),), None)


@pytest.mark.parametrize(
    ("backbone", "recipe", "words"),
    [
        ("vit", Recipe(layers=(3,)), "drawn has layers 1 to 2; name each at most once, not [3]."),
        ("vit", Recipe(layers=(0, 1)), "not [0, 1]."),
        ("vit", Recipe(layers=(-1,)), "not [-1]."),
        ("vit", Recipe(layers=(1, 2, 1)), "not [1, 2, 1]."),
        ("cnn", Recipe(layers=(1,)), "drawn only gives its last layer; leave out --layers."),
        (
            "cnn",
            Recipe(outputs=("embedding", "attention")),
            "drawn gives no attention, as only featkit's own transformers do",
        ),
    ],
)
def test_what_a_backbone_does_not_have_is_refused(
    tmp_path: Path, backbone: str, recipe: Recipe, words: str
) -> None:
    module = drawn_backbone(CONFIGS["dinov3"]) if backbone == "vit" else Convolutions()
    with refused(words) as _:
        export_backbone(module, info_for(CONFIGS["dinov3"]), tmp_path / "m.onnx", recipe=recipe)
    assert InputError.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_recipe_refuses_unknown_features_and_outputs() -> None:
    with pytest.raises(
        ValueError, match="unknown feature 'max'; choose from cls, mean, gem, cls\\+mean, cls\\+gem"
    ):
        Recipe(feature="max")  # type: ignore[arg-type]
    for outputs in (("patches",), ("embedding", "tokens"), ()):
        with pytest.raises(
            ValueError, match="must include embedding and be among embedding, patches, attention"
        ):
            Recipe(outputs=outputs)


@pytest.mark.parametrize("name", CONFIGS)
def test_graph_is_dynamic_without_branches_and_named(name: str) -> None:
    model = onnx.load(file_of(name)[0])
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"If", "Loop", "Scan"}
    if CONFIGS[name].position == "rotary":
        assert "Tile" not in operators
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["N", "H", "W", 3],
        "embedding": ["N", 192],
        "patches": ["N", "h", "w", 48],
        "attention": ["N", 3, "h", "w"],
    }
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize("name", CONFIGS)
def test_file_holds_no_paths_of_this_machine(name: str) -> None:
    out, _ = file_of(name)
    data = out.read_bytes()
    for word in (
        str(Path(__file__).parents[2]),
        "site-packages",
        "stack_trace",
        "graph.py",
        "featkit_train",
    ):
        assert word.encode() not in data
    weights = sum(parameter.numel() for parameter in drawn_backbone(CONFIGS[name]).parameters()) * 4
    assert out.stat().st_size < weights + 80_000


def test_the_opset_in_the_manifest_is_the_files() -> None:
    out, report = file_of("dinov3")
    (opset,) = onnx.load(out).opset_import
    assert (opset.domain, opset.version) == ("", report.manifest.opset)
    assert report.manifest.opset == OPSET


def test_a_fixed_size_is_refused_where_every_size_was_promised() -> None:
    model = onnx.load(file_of("dinov3")[0])
    check_graph(Traced(model=model))
    for place, side in enumerate("NHW"):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        changed.graph.input[0].type.tensor_type.shape.dim[place].dim_value = 64
        with refused(f"fixed {side}.", error=TraceError):
            check_graph(Traced(model=changed))


# One size only.


@pytest.mark.parametrize("size", [(56, 56), (42, 84)])
def test_fixed_size_file_gives_the_same_vectors(
    size: tuple[int, int],
) -> None:
    name, steps = "dinov2_reg_swiglu", RECIPES["cls"]
    out, report = file_of(name, steps, size=size)
    shape = [
        dim.dim_param or dim.dim_value
        for dim in onnx.load(out).graph.input[0].type.tensor_type.shape.dim
    ]
    assert shape == ["N", *size, 3]
    manifest = report.manifest
    assert (manifest.fixed_size, manifest.geometry.height, manifest.geometry.width) == (size, *size)
    assert {(case.batch, case.height, case.width) for case in report.comparisons} == {
        (batch, *size) for batch in (1, 3, 8)
    }
    assert report.fixed_speedup is not None
    assert 0.2 < report.fixed_speedup < 20
    images = draw_images(3, height=size[0], width=size[1])
    embedder = Embedder(out)
    np.testing.assert_allclose(
        embedder.infer(images), Embedder(file_of(name, steps)[0]).infer(images), atol=2e-6
    )
    with refused(f"only takes images of {size[0]}×{size[1]}", "70×70"):
        embedder.infer(draw_images(1, height=70, width=70))


def test_square_keeps_the_crop_and_rectangle_is_covered() -> None:
    dinov2 = Geometry(
        height=224,
        width=224,
        resize="shorter_side",
        resize_to=256,
        interpolation="bicubic",
        patch=14,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    assert sized(dinov2, 224, 224) == dinov2
    assert sized(dinov2, 518, 518) == dataclasses.replace(
        dinov2, height=518, width=518, resize_to=592
    )
    assert sized(dinov2, 336, 504) == dataclasses.replace(
        dinov2, height=336, width=504, resize="cover", resize_to=504
    )
    squeezed = dataclasses.replace(dinov2, resize="stretch", resize_to=224)
    assert sized(squeezed, 336, 504) == dataclasses.replace(
        squeezed, height=336, width=504, resize_to=504
    )


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (
            (200, 200),
            "200×200 is not a multiple of the patch size 14; use 196 or 210 by 196 or 210.",
        ),
        ((224, 500), "use 224 by 490 or 504."),
        ((5, 14), "use 14 by 14."),
    ],
)
def test_size_of_partial_patches_is_refused_with_the_nearest(
    size: tuple[int, int], words: str, tmp_path: Path
) -> None:
    config = CONFIGS["dinov2"]
    with refused(words):
        export_backbone(drawn_backbone(config), info_for(config), tmp_path / "m.onnx", size=size)
    assert list(tmp_path.iterdir()) == []
