"""Open the model that `featkit evaluate` measures: a file, a backbone in torch, or a published one
by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featkit.cli.console import step_reporter
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.models import DEFAULT_MODEL

if TYPE_CHECKING:
    from featkit.evaluate.embedding import ImageModel

ELSEWHERE = ("timm:", "hub:")  # prefixes of names that others list


def open_model(model: str | None, *, quiet: bool = False) -> ImageModel:
    """Open a model file, or in torch a run folder, its backbone.safetensors or a Hugging Face
    folder.

    Any other text is the name of a published backbone, which is exported to featkit's cache on its
    first use. None is featkit-tiny. quiet: show no progress of that export.

    Raises InputError for a missing file, another kind of file and an unknown name, and
    EnvironmentProblem if a package is missing or a download fails.
    """
    if model is None or (model == DEFAULT_MODEL and not Path(model).exists()):
        return _open_file(None)
    path = Path(model)
    if path.is_dir() or path.suffix == ".safetensors":
        return _open_in_torch(path)
    if path.suffix == ".onnx" or path.exists():
        return _open_file(path)
    _refuse_unknown(model)
    from featkit_export.named_model import named_model

    with step_reporter(quiet=quiet) as on_step:
        file = named_model(model, on_step=on_step)
    return _open_file(file.path)


def _open_file(path: Path | None) -> ImageModel:
    need_extra("cpu", "onnxruntime")
    from featkit.embedder import Embedder

    return Embedder(path)


def _open_in_torch(path: Path) -> ImageModel:
    need_extra("export", "torch", "onnx", "safetensors")
    from featkit_export.graph import EmbeddingGraph
    from featkit_export.recipe import Recipe
    from featkit_export.request import is_onnx
    from featkit_export.torch_embedder import TorchEmbedder
    from featkit_train.published.pretrained import load_pretrained
    from featkit_train.published.weight_files import CONFIG

    if is_onnx(str(path)):
        raise InputError(
            f"{path} has an ONNX file made elsewhere; convert it with `featkit export` and name the"
            " file that it writes."
        )
    if not (path / CONFIG).is_file():
        return TorchEmbedder.open(path)
    backbone, info = load_pretrained(str(path), quiet=True)
    return TorchEmbedder(EmbeddingGraph(backbone, info.geometry, Recipe()), info)


def _refuse_unknown(model: str) -> None:
    """Raise InputError if nobody publishes a model of this name, before torch is needed."""
    from featkit_train.published.zoo import find_published, similar_names

    if model.startswith(ELSEWHERE) or find_published(model) is not None:
        return
    near = similar_names(model)
    hint = f"; similar names: {', '.join(near)}" if near else ""
    raise InputError(
        f"{model} does not exist, and is not a published backbone (featkit export --list shows"
        f" them{hint}); name a model file, a run folder, or a published backbone."
    )
