"""A model file for any --model: a path, or the name of a published backbone, which is exported once
and kept in featkit's cache folder."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from featkit.errors import EnvironmentProblem
from featkit.models import default_model_path
from featkit.resources import cache_folder
from featkit_export.report import OnStep
from featkit_export.request import HUB, ExportRequest, export


class NamedModel(NamedTuple):
    """A model file, and whether it was made just now."""

    path: Path
    is_new: bool = False


def named_model(model: str | None, *, on_step: OnStep | None = None) -> NamedModel:
    """Return the model file for a name, exporting a published backbone on its first use.

    None is featkit-tiny; a path is returned as it is. Without torch, a backbone is taken from an
    ONNX file that others published, if there is one. on_step: as for `export`.

    Raises InputError for an unknown name; EnvironmentProblem, with the files to download by hand,
    if its weights cannot be fetched.
    """
    if model is None:
        return NamedModel(default_model_path())
    if Path(model).suffix == ".onnx" or Path(model).exists():
        return NamedModel(Path(model))
    path = cache_folder() / "models" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', model)}.onnx"
    if path.is_file():
        return NamedModel(path)
    try:
        export(ExportRequest(source=_source(model), out=path), on_step=on_step)
    except EnvironmentProblem as error:
        advice = "Then pass the file that it writes as --model m.onnx (with make: MODEL=m.onnx)."
        raise EnvironmentProblem(f"{error} {advice}") from error
    return NamedModel(path, is_new=True)


def _source(model: str) -> str:
    """Return the name itself if torch can read its weights, else its ONNX file on the hub."""
    from featkit_train.published.zoo import find_published

    published = find_published(model)
    if find_spec("torch") is None and published is not None and published.onnx_hub is not None:
        return f"{HUB}{published.onnx_hub}"
    return model
