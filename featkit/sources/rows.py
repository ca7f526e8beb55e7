"""A row of an Arrow table as a picture: which column holds it, its bytes, and the other columns as what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from featkit.errors import InputError
from featkit.images import ImageLimits
from featkit.sources.base import Metadata
from featkit.sources.failures import NoPictures

DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)  # what pyarrow raises for files that are not what they say
FIRST_CHOICE = ("image", "jpg", "img", "picture")


@dataclass(frozen=True)
class Columns:
    """The column of pictures, the columns of text and numbers, and what the numbers of class labels are called."""

    picture: str
    plain: list[str]
    label_names: dict[str, list[str]]


def find_columns(schema: pa.Schema, where: Path | str) -> Columns:
    """The picture is a struct with `bytes`, or binary; `image`, `jpg`, `img` or `picture` first when there are several.

    InputError naming `where` when there is none, and when columns have damaged names.
    """
    try:
        return _find_columns(schema, where)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} has columns whose names are no text: {reason(error)}.") from error


def _find_columns(schema: pa.Schema, where: Path | str) -> Columns:
    single = [field for field in schema if schema.names.count(field.name) == 1]  # others cannot be asked for by name
    found = [field.name for field in single if _holds_pictures(field.type)]
    if not found:
        raise NoPictures(f"{where} has no column of pictures ({{bytes, path}} or binary) among: {', '.join(schema.names)}.")
    picture = next((name for name in FIRST_CHOICE if name in found), found[0])
    plain = [field.name for field in single if _is_plain(field.type)]
    return Columns(picture, plain, {name: names for name, names in _label_names(schema).items() if name in plain})


def read_picture(rows: pa.Table | pa.RecordBatch, place: int, columns: Columns, *, key: str, limits: ImageLimits) -> bytes:
    """The bytes of the picture in one row; InputError naming `key` where it has none or too many."""
    value = rows[columns.picture][place]
    if value.is_valid and pa.types.is_struct(value.type):
        value = value["bytes"]
    data = value.as_py()
    if data is None:
        raise InputError(f"{key} has no picture in its column {columns.picture}.")
    if len(data) > limits.max_bytes:
        raise InputError(f"{key} has {len(data):,} bytes, more than the limit of {limits.max_bytes:,}.")
    return bytes(data)


def read_metadata(rows: pa.Table | pa.RecordBatch, place: int, columns: Columns, *, key: str) -> Metadata:
    """Columns of text and numbers, `label_name` beside a class label, and the picture's `path` where the layout has one.

    InputError for damaged text.
    """
    found: Metadata = {}
    try:
        for column in columns.plain:
            value = rows[column][place].as_py()
            if value is not None:
                found[column] = int(value) if isinstance(value, bool) else value
        if (path := picture_path(rows, place, columns)) is not None:
            found.setdefault("path", path)
    except UnicodeDecodeError as error:  # Arrow does not look at text before it is asked for
        raise InputError(f"{key} has metadata that is no text: {reason(error)}.") from error
    for column, names in columns.label_names.items():
        number = found.get(column)
        if isinstance(number, int) and 0 <= number < len(names):
            found.setdefault(f"{column}_name", names[number])
    return found


def picture_path(rows: pa.Table | pa.RecordBatch, place: int, columns: Columns) -> str | None:
    """What the {bytes, path} layout says of where the picture came from."""
    kind = rows.schema.field(columns.picture).type
    if not pa.types.is_struct(kind) or [field.name for field in kind].count("path") != 1:
        return None
    value = rows[columns.picture][place]
    path = value["path"].as_py() if value.is_valid else None
    return path if isinstance(path, str) else None


def reason(error: Exception) -> str:
    """What a library has to say, which may be several lines, as the end of a sentence."""
    return " ".join(str(error).split()).rstrip(".")


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return [_is_binary(field.type) for field in kind if field.name == "bytes"] == [True]
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_plain(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names by column, from the note that the datasets library leaves in what it writes; nothing where there is none."""
    note = (schema.metadata or {}).get(b"huggingface")
    try:
        found: Any = json.loads(note)["info"]["features"] if note is not None else {}
        labels = {name: feature["names"] for name, feature in found.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):  # anyone may write that note
        return {}
    return {
        name: names for name, names in labels.items() if isinstance(names, list) and all(isinstance(one, str) for one in names)
    }
