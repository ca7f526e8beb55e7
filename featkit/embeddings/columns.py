"""The columns of a shard: the fixed ones, and those for the source's metadata."""

from __future__ import annotations

from typing import TypeAlias

from featkit.errors import InputError
from featkit.sources import Source

COLUMNS = ("key", "width", "height", "thumbnail", "embedding", "error")

Metadata: TypeAlias = dict[str, str | int | float]  # by column


def column_name(name: str) -> str:
    """Return the column for a metadata field: its own name, or `width_` if the field is called
    `width`."""
    return f"{name}_" if name.rstrip("_") in COLUMNS else name


def common_kind(kind: str | None, value: str | int | float) -> str:
    """Return the narrowest of "int64", "double" and "string" that holds `value` and all earlier
    values. kind: the type that holds the earlier values; None before the first."""
    if (
        isinstance(value, str)
        or kind == "string"
        or (isinstance(value, int) and not -(2**63) <= value < 2**63)
    ):
        return "string"
    return "double" if isinstance(value, float) or kind == "double" else "int64"


def metadata_of(source: Source, item: int) -> Metadata:
    """Return an item's metadata by column, as valid text. InputError if the source cannot read
    it."""
    return {
        column_name(as_text(name)): as_text(value) if isinstance(value, str) else value
        for name, value in source.metadata(item).items()
    }


def metadata_columns(source: Source) -> dict[str, str]:
    """Return the name and type of each column that the source's metadata needs.

    Reads the metadata of every item once, when a folder is begun: all shards have the same columns,
    so no later item can add one. An item whose metadata cannot be read will be a row with
    an error.
    """
    kinds: dict[str, str] = {}
    for item in range(len(source)):
        try:
            metadata = metadata_of(source, item)
        except InputError:
            continue
        for column, value in metadata.items():
            kinds[column] = common_kind(kinds.get(column), value)
    return dict(sorted(kinds.items()))


def as_text(text: str) -> str:
    """Return valid UTF-8: file names, and messages that quote them, may hold bytes that are not
    text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
