"""A row of an Arrow table as an image: which column holds it, its bytes, and the other columns as
what is known of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pyarrow as pa

from featkit.errors import InputError
from featkit.images import ImageLimits, printable
from featkit.sources.base import Metadata, Source
from featkit.sources.failures import NoImages
from featkit.wording import one_line

# what pyarrow raises for files that are not what they say
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
FIRST_CHOICE = ("image", "jpg", "img", "picture")
MIN_FIXED_BYTES = 65  # fixed-size values up to 64 bytes are digests and ids
EMBEDDINGS_COLUMNS = {"key", "thumbnail", "embedding", "error"}  # of a shard that featkit wrote


@dataclass(frozen=True)
class Columns:
    """The column of images, the columns of text and numbers, and what the numbers of class labels
    are called.

    others: columns that could hold the images too.
    """

    image: str
    plain: list[str]
    label_names: dict[str, list[str]]
    others: list[str]

    @property
    def note(self) -> str | None:
        """Say which column was chosen among several; None if there was only one."""
        if not self.others:
            return None
        return (
            f"Images are read from the column {self.image}; --column can choose"
            f" {' or '.join(self.others)} instead."
        )


def find_columns(schema: pa.Schema, where: Path | str, *, column: str | None = None) -> Columns:
    """Choose the image's column: `column` if given, else a {bytes, path} struct before plain
    binary values.

    Among equals `image`, `jpg`, `img` and `image` come first, then the schema's order. Values may
    be any binary type, and dictionaries of one. InputError naming `where` when columns have damaged
    names, and when `column` holds no images; NoImages when there is no such column.
    """
    try:
        return _find_columns(schema, printable(str(where)), column)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} has columns whose names are no text: {one_line(error)}."
        ) from error


def _find_columns(schema: pa.Schema, where: str, column: str | None) -> Columns:
    # others cannot be asked for by name
    single = [field for field in schema if schema.names.count(field.name) == 1]
    ranked = sorted(
        (rank, i) for i, field in enumerate(single) if (rank := _rank(field)) is not None
    )
    names = [single[i].name for _, i in ranked]
    found = [name for name in names if not _is_digest(schema.field(name).type)]
    if column is not None:
        if column not in names:  # the same letters may be written by other code points
            column = next(
                (name for name in names if normalize("NFC", name) == normalize("NFC", column)),
                column,
            )
        if column not in names:
            raise InputError(_wrong_column(schema, where, column, found))
        found = [column, *(name for name in found if name != column)]
    elif set(schema.names) >= EMBEDDINGS_COLUMNS:
        raise NoImages(
            f"{where} is a shard of an embeddings folder; name the images, or --column thumbnail."
        )
    if not found:
        nested = [field for field in schema if _is_nested(field.type)]
        if nested:
            raise InputError(
                f"{where} has {_kind_of(nested[0].type)} in its column {nested[0].name}, which is"
                " not read; write one encoded image a row, as binary or {bytes, path}."
            )
        if (
            double := next(
                (field.name for field in schema if field not in single and _rank(field)), None
            )
        ) is not None:
            raise InputError(
                f"{where} has the column {double} more than once; write it again with other names."
            )
        raise NoImages(
            f"{where} has no column of images ({{bytes, path}} or binary) among:"
            f" {', '.join(schema.names)}."
        )
    plain = [field.name for field in single if _is_plain(field.type)]
    labels = {name: names for name, names in _label_names(schema).items() if name in plain}
    return Columns(found[0], plain, labels, found[1:])


def _wrong_column(schema: pa.Schema, where: str, column: str, found: list[str]) -> str:
    instead = f"choose {' or '.join(found)}" if found else "none of its columns does"
    if column not in schema.names:
        return f"{where} has no column {column}; {instead}."
    if schema.names.count(column) > 1:
        return f"{where} has the column {column} more than once; {instead}."
    return (
        f"{where} has {_kind_of(schema.field(column).type)} in its column {column}, not encoded"
        f" images; {instead}."
    )


def _rank(field: pa.Field) -> tuple[int, int] | None:
    """How well a column suits as that of the images, the best first; None if it cannot be."""
    name = FIRST_CHOICE.index(field.name) if field.name in FIRST_CHOICE else len(FIRST_CHOICE)
    if pa.types.is_struct(field.type):
        return (
            (0, name)
            if [_is_binary(part.type) for part in field.type if part.name == "bytes"] == [True]
            else None
        )
    return (1, name) if _is_binary(field.type) else None


def _is_digest(kind: pa.DataType) -> bool:
    """Whether these are digests or ids by their size."""
    return bool(pa.types.is_fixed_size_binary(kind) and kind.byte_width < MIN_FIXED_BYTES)


def _is_nested(kind: pa.DataType) -> bool:
    """Whether these are lists of images or of pixels."""
    inner = kind
    while _is_list(inner):
        inner = inner.value_type
    if inner is kind:
        return False
    encoded = pa.types.is_struct(inner) and any(
        part.name == "bytes" and _is_binary(part.type) for part in inner
    )
    pixels = pa.types.is_uint8(inner) or (
        _is_list(kind.value_type) and _is_list(kind.value_type.value_type)
    )
    return encoded or _is_binary(inner) or pixels


def _is_list(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
    )
    return any(test(kind) for test in tests)


def _kind_of(kind: pa.DataType) -> str:
    """A type as words."""
    if _is_list(kind):
        inner = kind.value_type
        while _is_list(inner):
            inner = inner.value_type
        return (
            "lists of images"
            if pa.types.is_struct(inner) or _is_binary(inner)
            else "lists of numbers"
        )
    return f"values of type {kind}"


def columns_of(source: Source) -> Sequence[Columns]:
    """Return the choice of columns for each table that a source reads; none for files and archives."""
    columns: Sequence[Columns] = getattr(source, "columns", ())
    return columns


def image_column(source: Source) -> str:
    """Return the name of the column that the images are read from, "" where there is none;
    several with commas."""
    return ", ".join(dict.fromkeys(columns.image for columns in columns_of(source)))


def column_notes(source: Source) -> list[str]:
    """Return a line for each choice of a column among several."""
    return list(
        dict.fromkeys(columns.note for columns in columns_of(source) if columns.note is not None)
    )


def read_image(
    rows: pa.Table | pa.RecordBatch, place: int, columns: Columns, *, key: str, limits: ImageLimits
) -> bytes:
    """The bytes of the image in one row; InputError naming `key` where it has none or too many."""
    value = rows[columns.image][place]
    if value.is_valid and pa.types.is_struct(value.type):
        value = value["bytes"]
    data = value.as_py()
    if data is None and (path := image_path(rows, place, columns)) is not None:
        raise InputError(
            f"{key} has no image in its column {columns.image}. The row names the file"
            f" {printable(path)}; name its folder instead, or a list of such files."
        )
    if data is None:
        raise InputError(f"{key} has no image in its column {columns.image}.")
    if len(data) > limits.max_bytes:
        raise InputError(
            f"{key} has {len(data):,} bytes, more than the limit of {limits.max_bytes:,}."
        )
    return bytes(data)


def read_metadata(
    rows: pa.Table | pa.RecordBatch, place: int, columns: Columns, *, key: str
) -> Metadata:
    """Columns of text and numbers, `label_name` beside a class label, and the image's `path`
    where the layout has one.

    InputError for damaged text.
    """
    found: Metadata = {}
    try:
        for column in columns.plain:
            value = rows[column][place].as_py()
            if value is not None:
                found[column] = int(value) if isinstance(value, bool) else value
        if (path := image_path(rows, place, columns)) is not None:
            found.setdefault("path", path)
    except UnicodeDecodeError as error:  # Arrow does not look at text before it is asked for
        raise InputError(f"{key} has metadata that is no text: {one_line(error)}.") from error
    for column, names in columns.label_names.items():
        number = found.get(column)
        if isinstance(number, int) and 0 <= number < len(names):
            found.setdefault(f"{column}_name", names[number])
    return found


def image_path(rows: pa.Table | pa.RecordBatch, place: int, columns: Columns) -> str | None:
    """What the {bytes, path} layout says of where the image came from."""
    if columns.image not in rows.schema.names:
        return None
    kind = rows.schema.field(columns.image).type
    if not pa.types.is_struct(kind) or [field.name for field in kind].count("path") != 1:
        return None
    value = rows[columns.image][place]
    path = value["path"].as_py() if value.is_valid else None
    return path if isinstance(path, str) else None


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    fixed = pa.types.is_fixed_size_binary(kind)
    return bool(
        fixed
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _is_plain(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(
        text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names by column, from the note that the datasets library leaves in what it writes; nothing
    where there is none."""
    note = (schema.metadata or {}).get(b"huggingface")
    try:
        found: Any = json.loads(note)["info"]["features"] if note is not None else {}
        labels = {
            name: feature["names"]
            for name, feature in found.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # anyone may write that note
        return {}
    return {
        name: names
        for name, names in labels.items()
        if isinstance(names, list) and all(isinstance(one, str) for one in names)
    }
