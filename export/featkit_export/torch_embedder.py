"""A backbone in torch as what featkit evaluates: the module that an export would write, run without
writing it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from featkit.geometry import Geometry
from featkit.modelfile import Manifest
from featkit_export.graph import OPSET, EmbeddingGraph
from featkit_export.recipe import Recipe
from featkit_train.processes.device import bound_threads, pick_device
from featkit_train.weights import BackboneInfo, load_backbone

DEFAULT_BATCH = 32


class TorchEmbedder:
    """Prepared images to unit vectors, as the model file of the same backbone and recipe gives
    them within rounding.

    Computed in float32. device: cpu, cuda, or auto, which is CUDA where there is one.
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
        """Of a run folder, or of its backbone.safetensors; `recipe` as for an export. InputError as
        for load_backbone."""
        backbone, info = load_backbone(run)
        return cls(EmbeddingGraph(backbone, info.geometry, recipe or Recipe()), info, device=device)

    @property
    def geometry(self) -> Geometry:
        """How images are brought to its size."""
        return self.manifest.geometry

    def infer(self, images: np.ndarray) -> np.ndarray:
        """Prepared images (N, H, W, 3) uint8 to unit vectors (N, D) float32."""
        blocks = [np.zeros((0, self.manifest.width), np.float32)]
        # Convolutions on CUDA would round their inputs to 10 bits, which no model file's do.
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            for start in range(0, len(images), self.batch_size):
                batch = torch.from_numpy(images[start : start + self.batch_size]).to(self.device)
                blocks.append(self._module(batch)[0].cpu().numpy())
        return np.concatenate(blocks)
