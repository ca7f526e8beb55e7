"""Every setting of a training run: the fields of TrainConfig with their defaults and docs."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from typing import Any

from featkit_train.config import TrainConfig
from from_code.markdown import code, table


def settings_page() -> str:
    """The settings of a run as a whole, then those of each section."""
    fields = dataclasses.fields(TrainConfig)
    types = typing.get_type_hints(TrainConfig)
    sections = [each for each in fields if dataclasses.is_dataclass(types[each.name])]
    whole = [each for each in fields if each not in sections]
    parts = ["## The run as a whole", _fields(TrainConfig, whole)]
    for section in sections:
        config = types[section.name]
        parts += [
            f"## {section.name}",
            _first_paragraph(config),
            _fields(config, dataclasses.fields(config)),
        ]
        for field, nested in _nested(config):
            parts += [f"### {section.name}.{field}", _first_paragraph(nested)]
            parts.append(_fields(nested, dataclasses.fields(nested)))
    return "\n\n".join(parts)


def field_docs(config: type[Any]) -> dict[str, str]:
    """The string under each field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(text))):
                docs[name] = inspect.cleandoc(text)
    return docs


def _fields(config: type[Any], fields: typing.Sequence[dataclasses.Field[Any]]) -> str:
    docs, types = field_docs(config), typing.get_type_hints(config)
    rows = [
        (code(each.name), _type(types[each.name]), _default(each), docs.get(each.name, ""))
        for each in fields
    ]
    return table(("setting", "type", "default", "meaning"), rows)


def _nested(config: type[Any]) -> list[tuple[str, type[Any]]]:
    """Fields that are sections themselves, such as a projection head."""
    nested = []
    for name, hint in typing.get_type_hints(config).items():
        for each in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(each) and isinstance(each, type):
                nested.append((name, each))
    return nested


def _first_paragraph(config: type[Any]) -> str:
    return inspect.getdoc(config).split("\n\n")[0] if config.__doc__ else ""  # type: ignore[union-attr]


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(code(str(each)) for each in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = [each for each in typing.get_args(hint) if each is not Ellipsis]
        return f"list of {_type(inner[0])}"
    if arguments := typing.get_args(hint):
        return " or ".join(_type(each) for each in arguments)
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "see below"
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default == "":
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if value is None or isinstance(value, bool):
        return code({None: "null", True: "true", False: "false"}[value])  # as YAML spells them
    return code(f"{value:g}" if isinstance(value, float) else str(value))
