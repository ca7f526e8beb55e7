"""A model by its file or by its published name, of which a model file is made once and kept in
featkit's cache folder."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from featkit.cli.console import stdout, step_reporter
from featkit.cli.export import Wanted, write_full
from featkit.errors import EnvironmentProblem
from featkit.models import default_model_path
from featkit.resources import cache_folder


def model_file(model: str | None, *, quiet: bool = False) -> Path:
    """The file to use for --model: featkit-tiny for None, a file that is there, or the one made of
    a published backbone.

    Without torch a backbone that others published as an ONNX file is taken from there. InputError
    for a name that nobody knows; EnvironmentProblem when its weights cannot be fetched, saying what
    to fetch by hand.
    """
    if model is None:
        return default_model_path()
    if Path(model).suffix == ".onnx" or Path(model).exists():
        return Path(model)
    path = cache_folder() / "models" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', model)}.onnx"
    if path.is_file():
        return path
    try:
        with step_reporter(quiet=quiet) as say:
            write_full(_source(model), Wanted(out=path, quiet=quiet), say)
    except EnvironmentProblem as error:
        then = "Then name the file that it writes: --model m.onnx (with make, MODEL=m.onnx)."
        raise EnvironmentProblem(f"{error} {then}") from error
    if not quiet:
        stdout().print(f"{model} is kept as {path}.")
    return path


def _source(model: str) -> str:
    """The published name itself where torch can read its weights, else the ONNX file that others
    made of them."""
    from featkit_train.published.zoo import find_published

    published = find_published(model)
    if find_spec("torch") is None and published is not None and published.onnx_hub is not None:
        return f"hub:{published.onnx_hub}"
    return model
