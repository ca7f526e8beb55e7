"""The page of a command: usage, description, examples and options, as `--help` has them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_origin

from cyclopts import App
from cyclopts.argument import Argument

from featkit.cli.app import COMMANDS, make_app
from from_code.markdown import code, prose, table

GROUPS = {"Make": "Make a model and an index", "Use": "Use them", "Look": "Measure and inspect"}


def command_list() -> str:
    """All commands with their one-line help, linked to their pages."""
    parts = []
    for group, title in GROUPS.items():
        rows = [
            (f"[`featkit {name}`](commands/{name}.md)", line)
            for kind, name, _, line in COMMANDS
            if kind == group
        ]
        parts.append(f"## {title}\n\n{table(('command', 'what it does'), rows)}")
    return "\n\n".join(parts)


def command_page(name: str) -> str:
    """Describe the parameters of a command, or of each subcommand after the options they share."""
    command = make_app(name)[name]
    subcommands = [each for each in command if not each.startswith("-")]
    if not subcommands:
        return _one_command(f"featkit {name}", command, _arguments(command))
    arguments = {each: _arguments(command[each]) for each in subcommands}
    shared = _shared_options(arguments)
    parts = [_overview(command)]
    if command.default_command is not None and (own := _arguments(command)):
        parts.append(_options(own))
    titles = [_whose(names, subcommands) for names in shared]
    for each in subcommands:
        others = [one for names, group in shared.items() if each in names for one in group]
        rest = [one for one in arguments[each] if not _has(one, others)]
        links = [
            f"[options of {title}](#{name}-options-{number})"
            for number, (names, title) in enumerate(zip(shared, titles, strict=True))
            if each in names
        ]
        parts.append(f"## featkit {name} {each}")
        parts.append(_one_command(f"featkit {name} {each}", command[each], rest, others))
        if links:
            parts.append(f"It also takes the {' and the '.join(links)}.")
    for number, (title, group) in enumerate(zip(titles, shared.values(), strict=True)):
        parts += [f"({name}-options-{number})=", f"## Options of {title}", _options(group)]
    return "\n\n".join(parts)


def _whose(names: Sequence[str], subcommands: Sequence[str]) -> str:
    if len(names) == len(subcommands):
        return "every subcommand"
    *most, last = map(code, names)
    return f"{', '.join(most)} and {last}"


def _shared_options(
    arguments: Mapping[str, Sequence[Argument]],
) -> dict[tuple[str, ...], list[Argument]]:
    """Options that several subcommands share, by the subcommands; those of most come first."""
    shared: dict[tuple[str, ...], list[Argument]] = {}
    for group in arguments.values():
        for one in group:
            names = tuple(each for each, others in arguments.items() if _has(one, others))
            if len(names) > 1 and one.index is None and not _has(one, shared.get(names, [])):
                shared.setdefault(names, []).append(one)
    return dict(sorted(shared.items(), key=lambda item: -len(item[0])))


def _arguments(command: App) -> list[Argument]:
    return [
        each for each in command.assemble_argument_collection(parse_docstring=True) if each.show
    ]


def _has(argument: Argument, others: Sequence[Argument]) -> bool:
    """Return whether `others` has an option with the same names and help."""
    return any(
        (argument.names, argument.parameter.help) == (each.names, each.parameter.help)
        for each in others
    )


def _overview(command: App) -> str:
    text, examples = _described(command)
    return "\n\n".join([text, *examples])


def _one_command(
    usage: str, command: App, arguments: Sequence[Argument], others: Sequence[Argument] = ()
) -> str:
    words = [usage]
    words += [_positional(each) for each in arguments if each.index is not None]
    required = [each for each in (*arguments, *others) if each.index is None and each.required]
    words += [f"{each.name} {_value(each)}" for each in required]
    text, examples = _described(command)
    parts = [f"```text\n{' '.join(words)} [OPTIONS]\n```", text, *examples]
    if arguments:
        parts.append(_options(arguments))
    return "\n\n".join(parts)


def _described(command: App) -> tuple[str, list[str]]:
    """The prose of a command's help, and its examples as blocks of code."""
    text = inspect.cleandoc(command.help or "").split("\nParameters\n---")[0]
    paragraphs = [re.sub(r"\s+", " ", each).strip() for each in text.split("\n\n")]
    commands = [
        each.removeprefix("Example: ") for each in paragraphs if each.startswith("Example: ")
    ]
    described = "\n\n".join(
        prose(each) for each in paragraphs if each and not each.startswith("Example: ")
    )
    return described, [f"```sh\n{chr(10).join(commands)}\n```"] if commands else []


def _options(arguments: Sequence[Argument]) -> str:
    rows = [
        (
            _names(each),
            prose(each.parameter.help or ""),
            "required" if each.required else _default(each),
        )
        for each in arguments
    ]
    return table(("option", "meaning", "default"), rows)


def _names(argument: Argument) -> str:
    if argument.index is not None:
        return code(_positional(argument))
    spelled = [each for each in argument.names if each not in argument.negatives]
    value = _value(argument)
    return ", ".join(code(each) for each in spelled) + (f" {code(value)}" if value else "")


def _positional(argument: Argument) -> str:
    name = argument.name.strip("-").upper()
    many = get_origin(argument.hint) in (list, tuple)
    text = f"{name}..." if many else name
    return text if argument.required else f"[{text}]"


def _value(argument: Argument) -> str:
    """Return the text after an option's name: its choices or the kind of value; "" for a switch."""
    if argument.hint is bool:
        return ""
    if choices := argument.get_choices():
        return "|".join(choices)
    kinds = [
        *re.findall(r"\b(int|float|Path|str)\b", str(argument.hint)),
        getattr(argument.hint, "__name__", ""),
    ]
    words = {"int": "N", "float": "X", "Path": "PATH", "str": "TEXT"}
    return next((words[each] for each in kinds if each in words), "VALUE")


def _default(argument: Argument) -> str:
    value: Any = argument.field_info.default
    if value in (None, False, "", (), inspect.Parameter.empty):
        return ""
    if value is True:
        return "on"
    if isinstance(value, tuple):
        return code(" ".join(str(each) for each in value))
    return code(f"{value:,}" if isinstance(value, int) and value >= 100_000 else str(value))
