"""The list of training methods: each one's description, read from its file without importing it.

Importing a method imports torch, which takes seconds and may not be installed. `featkit train
--list`, `featkit train --help` and `featkit report` need only the descriptions.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "methods"
IMAGES_ALONE = "images alone"  # methods that need nothing else come first


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """The description of a method: its class attributes (see `methods/base.py`) and the name of its
    class."""

    name: str
    title: str
    paper: str
    needs: str
    when: str
    module: str
    class_name: str


@functools.cache
def list_methods() -> dict[str, MethodCard]:
    """Return every method by name; methods that need images alone come first."""
    cards = [card for path in FOLDER.glob("*.py") for card in read_cards(path)]
    cards.sort(key=lambda card: (card.needs != IMAGES_ALONE, card.needs, card.name))
    return {card.name: card for card in cards}


def read_cards(path: Path) -> list[MethodCard]:
    """Return a card for each class of a module that defines `name`.

    ValueError if one of the attributes is missing or not a literal.
    """
    cards = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            values = {
                item.target.id: item.value
                for item in node.body
                if isinstance(item, ast.AnnAssign)
                and isinstance(item.target, ast.Name)
                and item.value is not None
            }
            if "name" in values:
                try:
                    words = {
                        attribute: ast.literal_eval(values[attribute])
                        for attribute in ("name", "title", "paper", "needs", "when")
                    }
                except (KeyError, ValueError) as error:
                    raise ValueError(
                        f"{path}: {node.name} needs name, title, paper, needs and when as literal"
                        " class attributes"
                    ) from error
                cards.append(MethodCard(**words, module=path.stem, class_name=node.name))
    return cards
