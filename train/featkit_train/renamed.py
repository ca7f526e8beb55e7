"""Settings and recipes that earlier versions spelled differently, read for one more release.

Needs no torch, so that the report of an old run does not either.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

SETTINGS = {
    "colour": "color",  # quoted
    "grey_probability": "gray_probability",
    "solarise_probability": "solarize_probability",
    "licence": "license",  # quoted
    "labelled_share": "labeled_share",
}
RECIPES = {"small_labelled": "small_labeled"}


class RenamedWarning(FutureWarning):
    """An old name was used; the next release refuses it."""


def current_recipe(name: str) -> str:
    """Return the recipe's present name; warn if `name` is an old one."""
    return _current(name, RECIPES, "recipe")


def current_key(key: str) -> str:
    """Return the setting's present name; warn if `key` is an old one."""
    return _current(key, SETTINGS, "setting")


def current_keys(mapping: Mapping[str, Any], *, warn: bool = True) -> dict[str, Any]:
    """Copy nested mappings with old keys renamed. warn: False for files that nobody edits."""
    return {
        (current_key(key) if warn else SETTINGS.get(key, key)): (
            current_keys(value, warn=warn) if isinstance(value, Mapping) else value
        )
        for key, value in mapping.items()
    }


def _current(name: str, renamed: Mapping[str, str], what: str) -> str:
    if name not in renamed:
        return name
    warnings.warn(
        f"The {what} {name} is now called {renamed[name]}. Write the new name; the next release"
        " refuses the old one.",
        RenamedWarning,
        stacklevel=2,
    )
    return renamed[name]
