"""Read and check the values in published preprocessing files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

from featkit.errors import InputError

CONFIG = "config.json"
INTERPOLATIONS = ("lanczos", "bilinear", "bicubic")
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def three_numbers(name: str, value: object) -> tuple[float, float, float]:
    """Return three numbers, or one repeated. InputError for anything else."""
    if is_number(value):
        return float(value), float(value), float(value)
    if (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(is_number(part) for part in value)
    ):
        return float(value[0]), float(value[1]), float(value[2])
    raise InputError(
        f"the {name} is {value!r}; it has to be three numbers, for red, green and blue."
    )


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. InputError if it is missing or holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist. Download it from where the model was published."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({str(error).rstrip('.')}). Download it again."
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds a {type(values).__name__}, not a JSON object. Download it again."
        )
    return values


def refusal(path: Path, name: str, value: str, wanted: str) -> InputError:
    """Return the error for a field that holds a value of the wrong kind."""
    return InputError(f"{path} has the {name} {value}; it has to be {wanted}.")


def is_count(value: object) -> TypeGuard[int]:
    """Return whether a JSON value is a positive whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a JSON value is a finite number of a sensible size."""
    # The comparison is false for NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
