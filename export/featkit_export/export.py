"""From a training run to one model file, proven equal to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featkit.modelfile import Manifest
from featkit_export.graph import OPSET, EmbeddingGraph, Feature, to_onnx
from featkit_export.seal import seal
from featkit_export.verify import Parity, compare, require_parity
from featkit_train.weights import load_backbone


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The manifest that was written, and every comparison made before."""

    manifest: Manifest
    comparisons: list[Parity]


def export_model(run: Path, out: Path, *, feature: Feature = "cls", name: str | None = None, notes: str = "") -> ExportReport:
    """Write the backbone of a run folder (or of a backbone.safetensors) as a model file `out`.

    InputError when there is no backbone; ParityError, with nothing written, when the graph disagrees with torch.
    """
    backbone, info = load_backbone(run)
    module = EmbeddingGraph(backbone, info.geometry, feature=feature).eval()
    model = to_onnx(module)
    comparisons = compare(module, model, height=info.geometry.height, width=info.geometry.width)
    manifest = Manifest(
        family=info.family,
        name=name or info.name,
        patch=backbone.config.patch,
        width=module.width,
        feature=feature,
        geometry=info.geometry,
        parity=require_parity(comparisons),
        licence=info.licence,
        origin=info.origin,
        opset=OPSET,
        notes=notes,
    )
    return ExportReport(manifest=seal(model, manifest, out), comparisons=comparisons)
