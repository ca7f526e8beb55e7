"""The model that ships with featkit."""

from __future__ import annotations

from pathlib import Path

from featkit.errors import EnvironmentProblem

DEFAULT_MODEL = "featkit-tiny"


def default_model_path() -> Path:
    """Return the path of featkit-tiny. Raises EnvironmentProblem if it is not installed."""
    path = Path(__file__).with_name(f"{DEFAULT_MODEL}.onnx")
    if not path.is_file():
        raise EnvironmentProblem(
            f"{path} is missing from this installation; name a model with --model, or reinstall"
            " featkit."
        )
    return path
