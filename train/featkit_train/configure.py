"""Build the config of a run from a method, a recipe and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featkit.errors import InputError
from featkit_train.config import TrainConfig
from featkit_train.methods import METHODS
from featkit_train.settings import from_mapping, read_recipe, with_settings


def configure(
    method: str, recipe: str | None = None, settings: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Build the config of a run by `method` from a recipe and settings that override it.

    recipe: the name of a shipped one or a YAML file; None takes the method's default. A recipe
    may name its `method`, or several as `methods`. Sections that this method does not read are
    left out of a recipe that names no method.
    settings: values by dotted names, such as {"optim.lr": 0.002}. The method must read them.
    Another crops.global_size leaves the recipe's crops.test_size behind.
    InputError for a recipe of another method, and as in `from_mapping`.
    """
    if method not in METHODS:
        raise InputError(f"There is no method {method}; it is one of: {', '.join(METHODS)}.")
    name = recipe or METHODS[method].default_recipe
    mapping = read_recipe(name)
    methods = mapping.pop("methods", [mapping.setdefault("method", method)])
    if method not in methods:
        raise InputError(
            f"The recipe {name} is for {' and '.join(methods)}; run `featkit train {methods[0]}"
            f" --recipe {name}`."
        )
    read = {
        section: value
        for section, value in mapping.items()
        if section not in METHODS[method].unread()
    }
    settings = settings or {}
    if "crops.global_size" in settings:
        # A recipe's test size suits its own crops only: at twice the side of its crops a network
        # named 0.09 of images right, and 0.28 at their side.
        settings = {"crops.test_size": None, **settings}
    return from_mapping(TrainConfig, with_settings(read, settings))
