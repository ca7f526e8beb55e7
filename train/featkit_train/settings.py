"""Read recipes and settings into a TrainConfig.

A recipe is a mapping of sections, as YAML. `--set optim.lr=0.002` changes one leaf of it. An
unknown key is an error that suggests the nearest name.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from featkit.errors import InputError
from featkit_train.config import TrainConfig
from featkit_train.renamed import current_key, current_keys, current_recipe

RECIPES = Path(__file__).parent / "recipes"
T = TypeVar("T")


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """Read a shipped recipe (`tiny`) or a YAML file. InputError if neither exists, or if the file
    is not a mapping."""
    name_or_path = current_recipe(name_or_path)
    shipped = RECIPES / f"{name_or_path}.yaml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise InputError(f"There is no recipe {name_or_path}. Give a YAML file or one of: {known}.")
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {_one_line(error)}") from error
    if not isinstance(mapping, dict):
        raise InputError(f"{path} is not a mapping of sections; `{RECIPES.name}/tiny.yaml` is one.")
    return current_keys(mapping)


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `section.key=value` texts, each value as YAML, into dotted names and values. Later ones
    win.

    InputError for any other form.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise InputError(
                f"--set {text} has no value; write it as section.key=value, such as optim.lr=0.002."
            )
        settings.pop(name, None)  # the last occurrence also decides the order
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(
                f"--set {text} has a value that is not YAML: {_one_line(error)}"
            ) from error
    return settings


def with_settings(mapping: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy nested `mapping` and insert `settings`, which are values by dotted names.

    InputError for a name that passes through a value, such as optim.lr.x.
    """
    merged = current_keys(mapping)
    for dotted, value in settings.items():
        *sections, leaf = map(current_key, dotted.split("."))
        section = merged
        for depth, name in enumerate(sections, 1):
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise InputError(
                    f"The setting {'.'.join(sections[:depth])} is a value, not a section, so there"
                    f" is no {dotted}."
                )
        section[leaf] = value
    return merged


def from_mapping(kind: type[T], mapping: Mapping[str, Any], *, at: str = "") -> T:
    """Make a dataclass of `kind` from nested mappings of its fields; missing fields keep their
    defaults.

    InputError for an unknown key, suggesting the nearest field, and for a value of another type or
    out of bounds.
    """
    hints = typing.get_type_hints(kind)
    mapping = current_keys(mapping)
    for key in mapping:
        if key not in hints:
            raise InputError(f"There is no setting {at}{key}{_suggestion(str(key), hints, at)}")
    values = {key: _convert(value, hints[key], at=f"{at}{key}") for key, value in mapping.items()}
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]  # every kind is a dataclass
        required = (
            each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        )
        if required and each.name not in values:
            raise InputError(f"{at.rstrip('.')} has no {each.name}; add it.")
    try:
        return kind(**values)
    except ValueError as error:  # values that contradict each other
        raise InputError(
            f"The settings of {at.rstrip('.') or 'the run'} do not go together: {error}."
        ) from error


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """Return the config as nested mappings, lists and scalars, with every default filled in;
    from_mapping reads it back."""
    return dict(to_plain(dataclasses.asdict(config)))


def _suggestion(key: str, known: Collection[str], at: str) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {at}{near[0]}?" if near else f". It must be one of: {', '.join(known)}."


def _convert(value: Any, hint: Any, *, at: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise InputError(f"The setting {at} is a section with keys of its own, not {value!r}.")
        return from_mapping(hint, value, at=f"{at}.")
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        inner = next(arm for arm in typing.get_args(hint) if arm is not type(None))
        return _convert(value, inner, at=at)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"The setting {at} is a mapping of names to values, not {value!r}.")
        return {str(key): inner for key, inner in value.items()}
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise InputError(
                f"The setting {at} is one of {', '.join(map(str, choices))}, not {value!r}."
            )
        return value
    if origin is tuple:
        return _convert_list(value, typing.get_args(hint), at=at)
    return _convert_scalar(value, hint, at=at)


def _convert_list(value: Any, arms: tuple[Any, ...], *, at: str) -> tuple[Any, ...]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if is_list and len(arms) == 2 and arms[1] is Ellipsis:
        arms = (arms[0],) * len(value)
    if not is_list or len(value) != len(arms):
        raise InputError(f"The setting {at} is a list of {len(arms)} values, not {value!r}.")
    return tuple(_convert(item, arm, at=at) for item, arm in zip(value, arms, strict=True))


def _convert_scalar(value: Any, hint: type, *, at: str) -> Any:
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-6 as text
        except (TypeError, ValueError):
            pass
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"The setting {at} is of type {hint.__name__}, not {value!r}.")


def _one_line(error: yaml.YAMLError) -> str:
    """Return the error's text, which yaml spreads over several lines."""
    return " ".join(str(error).split())


def to_plain(value: Any) -> Any:
    """Return a setting's value with its tuples as lists, as YAML and JSON have them."""
    if isinstance(value, dict):
        return {key: to_plain(inner) for key, inner in value.items()}
    return [to_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
