"""The graph of a model file: a backbone between uint8 pixels and unit vectors.

Letters: N images, (H, W) pixels, (h, w) patches or positions, D the width of a layer, L layers
joined.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from torch.nn import functional as F

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.modelfile import ATTENTION, EMBEDDING, INPUT, MAX_INLINE_BYTES, PATCHES
from featkit.whitening import Whitening
from featkit.wording import first_line
from featkit_export.recipe import Recipe
from featkit_export.report import ExportError
from featkit_export.surgery import GEM_FLOOR, GEM_POWER, add_guard
from featkit_export.traced import Traced
from featkit_train.networks.base import Backbone, Features
from featkit_train.networks.vit import VisionTransformer

OPSET = 20  # the newest that every supported onnxruntime reads; attention is plain nodes in it
DIMENSIONS = ("N", "H", "W")


class TraceError(ExportError):
    """A backbone cannot be written as one graph that takes any image size."""


class EmbeddingGraph(nn.Module):
    """Map uint8 images (N, H, W, 3) to unit vectors: normalize, backbone, feature, and whitening if
    given.

    cls: the class token, (N, D). mean: the mean patch token, (N, D). gem: the generalized mean of
    the patch tokens, mean(max(x, 1e-6) ** 3) ** (1 / 3). cls+mean and cls+gem: two of these at unit
    length, concatenated, (N, 2 D). Several layers, each at unit length, are concatenated (as long
    as all together) or averaged, for which `check_recipe` requires one width.
    """

    mean: Tensor
    std: Tensor
    whitening_mean: Tensor
    whitening_components: Tensor

    def __init__(
        self,
        backbone: Backbone,
        geometry: Geometry,
        recipe: Recipe,
        *,
        whitening: Whitening | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.recipe, self.whitened = backbone, recipe, whitening is not None
        self.layers = recipe.layers or (backbone.depth,)
        self.class_only = (
            isinstance(backbone, VisionTransformer)
            and recipe.class_only
            and self.layers == (backbone.depth,)
        )
        # In units of 0 .. 255, so that normalization is one subtraction and one division.
        self.register_buffer("mean", 255 * torch.tensor(geometry.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(geometry.std).view(1, 3, 1, 1))
        if whitening is not None:
            self.register_buffer("whitening_mean", torch.from_numpy(whitening.mean))
            self.register_buffer("whitening_components", torch.from_numpy(whitening.components))

    @property
    def width(self) -> int:
        """Number of dimensions of a vector, for a backbone whose patch tokens are as wide as its
        class tokens.

        In some timm and torchvision networks the last map has another width than the vector before
        the classifier; `width_of` reads the width from the traced graph.
        """
        if self.whitened:
            return self.whitening_components.shape[0]
        widths = self.recipe.widths(self.backbone.widths)
        return sum(widths) if self.recipe.join == "concat" else widths[0]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the recipe's outputs in its order, in float32.

        Vectors are (N, width); patches (N, h, w, D), from the layer named last, whose positions may
        be smaller than a patch; attention (N, heads, h, w), always from the last block. If only the
        class token is needed, the last block computes nothing else.
        """
        if self.class_only:
            features = self.backbone.student_forward(self._normalized(images), class_only=True)
            return (self._vectors((features,)),)
        return self.from_all_tokens(images)

    def from_all_tokens(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what `forward` does, from all tokens of every layer."""
        wants_attention = ATTENTION in self.recipe.outputs
        features, attention = self.backbone.activations(
            self._normalized(images), layers=self.layers, attention=wants_attention
        )
        outputs = {
            EMBEDDING: self._vectors(features),
            PATCHES: features[-1].patch_tokens,
            ATTENTION: attention,
        }
        return tuple(value for name in self.recipe.outputs if (value := outputs[name]) is not None)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name for images (N, H, W, 3) uint8, from all tokens: a graph with
        the class token alone in its last block is compared with the whole network."""
        with torch.no_grad():
            values = self.from_all_tokens(torch.from_numpy(images))
        names = self.recipe.outputs
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    def _normalized(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std  # (N, 3, H, W)

    def _vectors(self, features: Sequence[Features]) -> Tensor:
        vectors = [self._vector(feature) for feature in features]
        if len(vectors) == 1:
            joined = vectors[0]
        elif self.recipe.join == "concat":
            joined = torch.cat(vectors, dim=-1) / len(vectors) ** 0.5
        else:
            joined = F.normalize(torch.stack(vectors).mean(dim=0), dim=-1)
        if self.whitened:
            joined = F.normalize(
                (joined - self.whitening_mean) @ self.whitening_components.T, dim=-1
            )
        return joined

    def _vector(self, features: Features) -> Tensor:
        parts = []
        for pooling in self.recipe.feature.split("+"):
            if pooling == "cls":
                pooled = features.class_token
            elif pooling == "mean":
                pooled = features.patch_tokens.mean(dim=(1, 2))
            else:
                powers = features.patch_tokens.clamp(min=GEM_FLOOR) ** GEM_POWER
                pooled = powers.mean(dim=(1, 2)) ** (1 / GEM_POWER)
            parts.append(F.normalize(pooled, dim=-1))
        # The concatenation of unit vectors has length sqrt(len(parts)).
        return torch.cat(parts, dim=-1) / len(parts) ** 0.5 if len(parts) > 1 else parts[0]


def check_recipe(recipe: Recipe, backbone: Backbone, name: str) -> None:
    """Raise InputError for outputs, layers or a join that the backbone called `name` cannot
    give."""
    if ATTENTION in recipe.outputs and not backbone.has_attention:
        raise InputError(
            f"{name} gives no attention, as only featkit's own transformers do; leave it out"
            " of --outputs."
        )
    wrong = [layer for layer in recipe.layers if not 1 <= layer <= backbone.depth]
    if wrong or len(set(recipe.layers)) != len(recipe.layers):
        raise InputError(
            f"{name} has layers 1 to {backbone.depth}; name each at most once, not"
            f" {list(recipe.layers)}."
        )
    if recipe.layers and backbone.depth == 1 and not isinstance(backbone, VisionTransformer):
        raise InputError(f"{name} only gives its last layer; leave out --layers.")
    widths = {layer: backbone.widths[layer - 1] for layer in recipe.layers}
    if recipe.join == "mean" and len(set(widths.values())) > 1:
        shown = ", ".join(f"layer {layer} has {width}" for layer, width in widths.items())
        raise InputError(
            f"The layers of {name} have different widths, so they cannot be averaged ({shown});"
            " use --join concat, or name layers of one width."
        )


def width_of(traced: Traced) -> int:
    """Return the number of dimensions of a vector of the graph."""
    (shape,) = (
        output.type.tensor_type.shape
        for output in traced.model.graph.output
        if output.name == EMBEDDING
    )
    return int(shape.dim[1].dim_value)


def trace(module: EmbeddingGraph, folder: Path, *, size: tuple[int, int] | None = None) -> Traced:
    """Trace the module to an ONNX graph with symbolic batch, height and width.

    size: the one (height, width) in pixels of a fixed-size graph; only its batch is symbolic.
    folder: where weights beyond protobuf's 2 GB go.

    Raises TraceError if torch cannot trace the module, if tracing fixed a size, or if a branch or
    loop is left in the graph.
    """
    patch = module.backbone.patch
    # The example's sizes differ from each other and from the position table's, so that the tracer
    # does not unify two of them by accident.
    height, width = size or (3 * patch, 5 * patch)
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    sizes: dict[int, object] = {0: torch.export.Dim("N", min=1)}
    if size is None:
        # Declare sides as multiples of the patch; otherwise the tracer guards on the remainder.
        sizes[1] = patch * torch.export.Dim("h", min=1, max=4096)
        sizes[2] = patch * torch.export.Dim("w", min=1, max=4096)
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(module.recipe.outputs),
                dynamic_shapes=(sizes,),
                external_data=False,
                verbose=False,
            )
            assert program is not None
            if module.class_only:
                # The query's weight is apart from the others' in the last block. Quantization and
                # half weights look for weights, not for slices of them.
                optimize_ir(
                    program.model,
                    onnx_shape_inference=False,
                    output_size_limit=sys.maxsize,
                    should_fold=lambda node: True if node.op_type == "Slice" else None,
                )
    # The exporter raises many classes, torch's and dynamo's own.
    except Exception as error:
        cause = first_line(error.__cause__ or error)
        raise TraceError(f"The backbone cannot be written as one graph: {cause}") from error
    num_bytes = sum(
        tensor.numel() * tensor.element_size()
        for tensor in (*module.parameters(), *module.buffers())
    )
    if num_bytes <= MAX_INLINE_BYTES:
        traced = Traced(model=program.model_proto)
    else:
        path = folder / "graph.onnx"
        program.save(str(path), external_data=True)
        traced = Traced(model=onnx.load(str(path), load_external_data=False), path=path)
    _remove_traces(traced.model)
    _name_dimensions(traced.model, module.recipe.outputs)
    if size is None:
        add_guard(traced.model.graph, patch, opset=OPSET)
    if traced.path is not None:
        traced.path.write_bytes(traced.model.SerializeToString())
    check_graph(traced, size=size)
    return traced


def check_graph(traced: Traced, *, size: tuple[int, int] | None = None) -> None:
    """Raise TraceError if a dynamic size was fixed, a branch or loop is left, or ONNX's checker
    rejects the graph.

    The checker rejects an output that shares a weight's name; the exporter can write such files,
    but no engine opens them.
    """
    try:
        onnx.checker.check_model(str(traced.path) if traced.path else traced.model)
    except onnx.checker.ValidationError as error:
        raise TraceError(f"The exported graph is not valid ONNX: {first_line(error)}") from error
    (images,) = traced.model.graph.input
    dims = images.type.tensor_type.shape.dim
    free = DIMENSIONS if size is None else DIMENSIONS[:1]
    fixed = [name for name, dim in zip(free, dims, strict=False) if not dim.dim_param]
    if fixed:
        raise TraceError(f"The exported graph has a fixed {', '.join(fixed)}")
    branches = {node.op_type for node in traced.model.graph.node} & {"If", "Loop", "Scan"}
    if branches:
        raise TraceError(f"The exported graph contains {', '.join(sorted(branches))}")


def _remove_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's metadata from every node: stack traces with paths of this machine, as
    large as a small model."""
    graph = model.graph
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]


def _name_dimensions(model: onnx.ModelProto, outputs: Sequence[str]) -> None:
    """Rename the symbolic sizes to N, H, W, and h, w for patches, from the tracer's own names."""
    dimensions = {
        INPUT: DIMENSIONS,
        EMBEDDING: ("N",),
        PATCHES: ("N", "h", "w"),
        ATTENTION: ("N", None, "h", "w"),
    }
    # They use the tracer's names; onnxruntime infers the shapes again.
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        assert value.name in (INPUT, *outputs)
        for name, dim in zip(
            dimensions[value.name], value.type.tensor_type.shape.dim, strict=False
        ):
            if name and dim.dim_param:
                dim.dim_param = name


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the logs and warnings of the exporter and its optimizer."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
