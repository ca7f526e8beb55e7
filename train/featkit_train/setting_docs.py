"""Every setting of a run with its default, bounds and documentation, read from the config's
classes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml

from featkit_train.config import Bounds, TrainConfig, bounds_of, field_types
from featkit_train.configure import configure
from featkit_train.methods import METHODS
from featkit_train.settings import to_plain


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted name, its type in words, and what it does."""

    name: str
    type: str
    default: Any
    bounds: Bounds | None
    doc: str

    @property
    def default_text(self) -> str:
        """The default as one writes it after --set."""
        if isinstance(self.default, str):
            return self.default or "''"
        text = yaml.safe_dump(to_plain(self.default), default_flow_style=True, width=1000)
        return text.removesuffix("\n").removesuffix("\n...")

    @property
    def values(self) -> str:
        """The values that it takes, in words."""
        return self.type if self.bounds is None else f"{self.type}, {self.bounds}"

    def to_dict(self) -> dict[str, Any]:
        """Return the setting as JSON can hold it."""
        bounds = self.bounds or Bounds(-math.inf)
        return {
            "name": self.name,
            "type": self.type,
            "default": to_plain(self.default),
            "least": bounds.least if math.isfinite(bounds.least) else None,
            "most": bounds.most if math.isfinite(bounds.most) else None,
            "doc": self.doc,
        }


def list_settings(config: TrainConfig | None = None) -> list[Setting]:
    """Return every setting in the order of the sections, with the values of `config`, else the
    defaults."""
    return list(_settings_of(config or TrainConfig(), ""))


def settings_of_method(method: str) -> list[Setting]:
    """Return the settings that a method reads, with the values of its default recipe.

    InputError for an unknown method.
    """
    config = configure(method)
    unread = METHODS[method].unread()
    return [
        setting for setting in list_settings(config) if setting.name.partition(".")[0] not in unread
    ]


def field_docs(section: type[Any]) -> dict[str, str]:
    """Return the string under each field of a dataclass; {} if its source is not installed."""
    try:
        source = textwrap.dedent(inspect.getsource(section))
    except OSError:
        return {}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for assignment, below in zip(definition.body, definition.body[1:], strict=False):
        match assignment, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(text))):
                docs[name] = " ".join(text.split())
    return docs


def _settings_of(section: Any, at: str) -> Iterator[Setting]:
    docs = field_docs(type(section))
    for name, hint in field_types(type(section)).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            yield from _settings_of(value, f"{at}{name}.")
        else:
            yield Setting(
                name=f"{at}{name}",
                type=_type_in_words(hint),
                default=value,
                bounds=bounds_of(hint),
                doc=docs.get(name, ""),
            )


def _type_in_words(hint: Any) -> str:
    origin, arms = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _type_in_words(arms[0])
    if origin is Literal:
        return " | ".join(map(str, arms))
    if origin is tuple:
        length = "" if Ellipsis in arms else f"{len(arms)} "
        return f"list of {length}{_type_in_words(arms[0])}"
    if origin is dict:
        return "mapping"
    if dataclasses.is_dataclass(hint):
        return "section"
    if arms:
        return " | ".join(_type_in_words(arm) for arm in arms)
    return "null" if hint is type(None) else str(hint.__name__).replace("str", "text")
