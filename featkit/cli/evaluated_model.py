"""Open the model that `featkit evaluate` measures: a model file, or a backbone in torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featkit.extras import need_extra

if TYPE_CHECKING:
    from featkit.evaluate.embedding import ImageModel


def open_model(model: Path | None) -> ImageModel:
    """Open a model file, or in torch a run folder or its backbone.safetensors. None is
    featkit-tiny."""
    if model is not None and (model.is_dir() or model.suffix == ".safetensors"):
        need_extra("export", "torch", "onnx", "safetensors")
        from featkit_export.torch_embedder import TorchEmbedder

        return TorchEmbedder.open(model)
    need_extra("cpu", "onnxruntime")
    from featkit.embedder import Embedder

    return Embedder(model)
