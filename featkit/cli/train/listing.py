"""`featkit train --list` and `--settings`: every method and when to use it; every setting."""

from typing import Annotated

from cyclopts import Parameter

from featkit.cli.console import print_json, print_table, stdout
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit_train.method_list import list_methods


def print_methods(
    *,
    list_: Annotated[bool, Parameter(name="--list", negative=())] = False,
    settings: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    json_: bool = False,
) -> None:
    """Train a self-distilled backbone on your own images; each method is a command.

    Example: featkit train --list

    Parameters
    ----------
    list_
        Print every method with what it needs and when to use it.
    settings
        Print every setting with its default and what it does. Name a method, as in --settings dino,
        for the settings that it reads and the values of its default recipe.
    json_
        Print the list as JSON.
    """
    if settings is not None:
        print_settings(settings, json_=json_)
        return
    if not (list_ or json_):
        raise InputError(
            "featkit train needs a method, such as `featkit train dino images/ --out run/`;"
            " --list shows them."
        )
    columns = ("method", "needs", "when")
    cards = list_methods().values()
    if json_:
        print_json(
            [
                {"method": card.name, "needs": card.needs, "when": card.when, "paper": card.paper}
                for card in cards
            ]
        )
        return
    print_table("Methods", columns, [(card.name, card.needs, card.when) for card in cards])
    stdout().print("Next: featkit train METHOD --help")


def print_settings(methods: list[str], *, json_: bool) -> None:
    """Print every setting, or those that one method reads. InputError for several methods."""
    need_extra("train", "torch", "safetensors", "yaml", "tensorboard")
    from featkit_train.setting_docs import list_settings, settings_of_method

    if len(methods) > 1:
        raise InputError(f"--settings takes one method, not {' and '.join(methods)}.")
    settings = settings_of_method(methods[0]) if methods else list_settings()
    if json_:
        print_json([setting.to_dict() for setting in settings])
        return
    print_table(
        f"Settings of {methods[0]}, by its default recipe" if methods else "Settings",
        ("setting", "default", "values", "meaning"),
        [(each.name, each.default_text, each.values, each.doc) for each in settings],
    )
    stdout().print("Change one with --set, such as --set optim.lr=0.002.")
