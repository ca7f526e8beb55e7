"""From a method, a recipe and settings to the config of a run."""

from __future__ import annotations

from collections.abc import Sequence

from featkit.errors import InputError
from featkit_train.config import TrainConfig, from_mapping, read_recipe, with_settings
from featkit_train.methods import METHODS

DEFAULT_RECIPE = {
    "adapt": "adapt_dinov2",
    **dict.fromkeys(("born-again", "self-training", "internal"), "small_labeled"),
}


def configure(method: str, recipe: str | None = None, settings: Sequence[str] = ()) -> TrainConfig:
    """The config of a run by `method`: a recipe (its name or a YAML file; None is the method's
    usual one) with settings.

    A recipe that names no method serves several, and sections of it that this one does not read are
    left out; settings are not. InputError for a recipe of another method, and as `from_mapping`
    says.
    """
    if method not in METHODS:
        raise InputError(f"There is no method {method}; it is one of: {', '.join(METHODS)}.")
    name = recipe or DEFAULT_RECIPE.get(method, "tiny")
    mapping = read_recipe(name)
    if mapping.setdefault("method", method) != method:
        raise InputError(
            f"The recipe {name} is for {mapping['method']}; run `featkit train {mapping['method']}"
            f" --recipe {name}`."
        )
    read = {
        section: value
        for section, value in mapping.items()
        if section not in METHODS[method].unread
    }
    return from_mapping(TrainConfig, with_settings(read, settings))
