"""The graph of a model file: a backbone between uint8 pixels and unit vectors.

Letters: N pictures, (H, W) pixels, (h, w) patches, D the backbone's width.
"""

from __future__ import annotations

import logging
import warnings
from typing import Literal, TypeAlias, get_args

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featkit.geometry import Geometry
from featkit.modelfile import EMBEDDING, INPUT
from featkit_train.vit import VisionTransformer

OPSET = 20  # the newest that every supported onnxruntime reads; attention is plain nodes in it
Feature: TypeAlias = Literal["cls", "mean", "cls+mean"]
FEATURES: tuple[str, ...] = get_args(Feature)
DIMENSIONS = ("N", "H", "W")


class EmbeddingGraph(nn.Module):
    """(N, H, W, 3) uint8 to unit vectors: normalise, backbone, feature.

    cls: the class token, (N, D). mean: the mean patch token, (N, D). cls+mean: both at unit length, side by side, (N, 2 D).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: VisionTransformer, geometry: Geometry, *, feature: Feature) -> None:
        super().__init__()
        if feature not in FEATURES:
            raise ValueError(f"feature {feature!r} is none of {', '.join(FEATURES)}")
        self.backbone, self.feature = backbone, feature
        # In units of 0 .. 255, so that normalising is one subtraction and one division.
        self.register_buffer("mean", 255 * torch.tensor(geometry.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(geometry.std).view(1, 3, 1, 1))

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.backbone.config.width * (2 if self.feature == "cls+mean" else 1)

    def forward(self, images: Tensor) -> Tensor:
        """Unit vectors (N, width) float32."""
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        class_token, patch_tokens = self.backbone(pixels)
        parts = []
        if "cls" in self.feature:
            parts.append(F.normalize(class_token, dim=-1))
        if "mean" in self.feature:
            parts.append(F.normalize(patch_tokens.mean(dim=(1, 2)), dim=-1))
        # Parts of unit length side by side have length sqrt(len(parts)).
        vectors: Tensor = torch.cat(parts, dim=-1) / len(parts) ** 0.5
        return vectors


def to_onnx(module: EmbeddingGraph) -> onnx.ModelProto:
    """Trace the module with batch, height and width symbolic.

    Sizes of the example differ from each other and from the position table's grid, so that nothing is taken for equal that
    only happens to be. ValueError when a size was baked in all the same, or a branch was left in the graph.
    """
    patch = module.backbone.config.patch
    example = torch.zeros(2, 3 * patch, 5 * patch, 3, dtype=torch.uint8)
    # Sides are multiples of the patch: said to the tracer, or it guards on the remainder.
    rows, columns = torch.export.Dim("h", min=1, max=4096), torch.export.Dim("w", min=1, max=4096)
    sizes = {0: torch.export.Dim("N", min=1), 1: patch * rows, 2: patch * columns}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[EMBEDDING],
                dynamic_shapes=(sizes,),
                external_data=False,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    _name_dimensions(model)
    check_graph(model)
    return model


def check_graph(model: onnx.ModelProto) -> None:
    """ValueError when a size is fixed, a branch or loop is left, or ONNX's own checker objects."""
    onnx.checker.check_model(model)
    (images,) = model.graph.input
    dims = images.type.tensor_type.shape.dim
    fixed = [name for name, dim in zip(DIMENSIONS, dims, strict=False) if not dim.dim_param]
    if fixed:
        raise ValueError(f"the exported graph has a fixed {', '.join(fixed)}")
    branches = {node.op_type for node in model.graph.node} & {"If", "Loop", "Scan"}
    if branches:
        raise ValueError(f"the exported graph contains {', '.join(sorted(branches))}")


def _name_dimensions(model: onnx.ModelProto) -> None:
    """Call the input's sizes N, H and W instead of what the tracer made of them."""
    (images,) = model.graph.input
    for name, dim in zip(DIMENSIONS, images.type.tensor_type.shape.dim, strict=False):
        if dim.dim_param:
            dim.dim_param = name
    del model.graph.value_info[:]  # they speak of the tracer's names, and onnxruntime infers them again
    (embedding,) = model.graph.output
    embedding.type.tensor_type.shape.dim[0].dim_param = DIMENSIONS[0]
