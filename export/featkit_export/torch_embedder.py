"""Evaluate a backbone in torch, through the module that an export would write to a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from featkit.geometry import Geometry
from featkit.modelfile import Manifest
from featkit_export.graph import OPSET, EmbeddingGraph, check_recipe
from featkit_export.recipe import Recipe
from featkit_train.processes.device import bound_threads, pick_device
from featkit_train.weights import BackboneInfo, load_backbone

DEFAULT_BATCH = 32


class TorchEmbedder:
    """Compute the vectors of a backbone in torch. They equal those of its model file, except for
    rounding.

    Computes in float32. device: cpu, cuda, or auto, which is CUDA if available.
    """

    def __init__(
        self,
        module: EmbeddingGraph,
        info: BackboneInfo,
        *,
        batch_size: int = DEFAULT_BATCH,
        device: str = "auto",
    ) -> None:
        bound_threads()
        self.device, self.batch_size = pick_device(device), batch_size
        self._module = module.eval().to(self.device)
        recipe = module.recipe
        self.manifest = Manifest(
            family=info.family,
            name=info.name,
            patch=module.backbone.patch,
            width=module.width,
            feature=recipe.feature,
            layers=recipe.layers,
            join=recipe.join if recipe.layers else "",
            geometry=info.geometry,
            license=info.license,
            origin=info.origin,
            opset=OPSET,
        )

    @classmethod
    def open(
        cls, run: Path, *, recipe: Recipe | None = None, device: str = "auto"
    ) -> TorchEmbedder:
        """Open a run folder or its backbone.safetensors. Raises InputError as load_backbone and
        check_recipe do."""
        backbone, info = load_backbone(run)
        recipe = recipe or Recipe()
        check_recipe(recipe, backbone, info.name)
        return cls(EmbeddingGraph(backbone, info.geometry, recipe), info, device=device)

    @property
    def geometry(self) -> Geometry:
        """How images are resized and cropped to the model's size."""
        return self.manifest.geometry

    def infer(self, images: np.ndarray) -> np.ndarray:
        """Return unit vectors (N, D) float32 for prepared images (N, H, W, 3) uint8."""
        blocks = []
        # With TF32, CUDA convolutions would round inputs to 10 bits, unlike any model file.
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            for start in range(0, len(images), self.batch_size):
                batch = torch.from_numpy(images[start : start + self.batch_size]).to(self.device)
                blocks.append(self._module(batch)[0].cpu().numpy())
        return np.concatenate(blocks) if blocks else np.zeros((0, self.manifest.width), np.float32)
