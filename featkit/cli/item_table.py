"""Items of an index in tables and as JSON, for the commands that print them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featkit.index import Hit, Item

MAX_METADATA_SHOWN = 60  # characters in a table


def in_json(item: Item | Hit) -> dict[str, object]:
    """Return an item or a hit for JSON, which has no NaN and infinity."""
    from featkit.index.records import in_json

    return asdict(item) | {
        "metadata": {name: in_json(value) for name, value in item.metadata.items()}
    }


def shown_size(item: Item | Hit) -> str:
    """Return the width and height of an item as text; empty if they are not known."""
    return f"{item.width}×{item.height}" if item.width and item.height else ""


def shown_metadata(item: Item | Hit) -> str:
    """Return the metadata of an item as text, shortened for a table."""
    text = ", ".join(f"{name}={value}" for name, value in item.metadata.items())
    return text if len(text) <= MAX_METADATA_SHOWN else text[: MAX_METADATA_SHOWN - 1] + "…"
