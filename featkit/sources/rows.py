"""Rows of an Arrow table as images: which column holds the image, its bytes, and the other columns
as metadata."""

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

# What pyarrow raises for damaged files.
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
FIRST_CHOICE = ("image", "jpg", "img", "picture")
MIN_FIXED_BYTES = 65  # fixed-size values up to 64 bytes are digests and ids
EMBEDDINGS_COLUMNS = {"key", "thumbnail", "embedding", "error"}  # of a shard that featkit wrote


@dataclass(frozen=True)
class Columns:
    """The columns of a table.

    image: the one that holds the images. plain: those of text and numbers. label_names: the class
    names by column of labels. others: the other columns that could hold the images.
    """

    image: str
    plain: list[str]
    label_names: dict[str, list[str]]
    others: list[str]

    @property
    def note(self) -> str | None:
        """A sentence about the column that was chosen among several; None if there was only one."""
        if not self.others:
            return None
        return (
            f"Images are read from the column {self.image}; --column can choose"
            f" {' or '.join(self.others)} instead."
        )


def find_columns(schema: pa.Schema, where: Path | str, *, column: str | None = None) -> Columns:
    """Choose the column of images: `column` if given, otherwise a {bytes, path} struct before plain
    binary values.

    Among equals, the names in FIRST_CHOICE come first, then the order of the schema decides. Values
    may have any binary type, also as a dictionary. InputError naming `where` if columns have
    damaged names, or if `column` holds no images. NoImages if no column holds any.
    """
    try:
        return _find_columns(schema, printable(str(where)), column)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} has columns whose names are not valid text: {one_line(error)}."
        ) from error


def _find_columns(schema: pa.Schema, where: str, column: str | None) -> Columns:
    # A name that occurs twice cannot be used to ask for a column.
    single = [field for field in schema if schema.names.count(field.name) == 1]
    binary = _by_rank(single)
    candidates = [name for name in binary if not _is_digest(schema.field(name).type)]
    if column is not None:
        chosen = _as_in(binary, column)
        if chosen is None:
            raise InputError(_wrong_column(schema, where, column, candidates))
        candidates = [chosen, *(name for name in candidates if name != chosen)]
    elif not candidates or set(schema.names) >= EMBEDDINGS_COLUMNS:
        raise _no_images(schema, where)
    plain = [field.name for field in single if _is_plain(field.type)]
    labels = {name: names for name, names in _label_names(schema).items() if name in plain}
    return Columns(candidates[0], plain, labels, candidates[1:])


def _by_rank(fields: list[pa.Field]) -> list[str]:
    """Return the names of the columns that may hold images, the best first."""
    ranked = [(rank, i) for i, field in enumerate(fields) if (rank := _rank(field)) is not None]
    return [fields[i].name for _, i in sorted(ranked)]


def _as_in(names: list[str], name: str) -> str | None:
    """Return the name as the table spells it, since different code points can look the same."""
    if name in names:
        return name
    normal = normalize("NFC", name)
    return next((other for other in names if normalize("NFC", other) == normal), None)


def _no_images(schema: pa.Schema, where: str) -> InputError:
    """Return the error for a table without a column of images."""
    if set(schema.names) >= EMBEDDINGS_COLUMNS:
        return NoImages(
            f"{where} is a shard of an embeddings folder; name the images, or --column thumbnail."
        )
    nested = next((field for field in schema if _is_nested(field.type)), None)
    if nested is not None:
        return InputError(
            f"{where} has {_kind_of(nested.type)} in its column {nested.name}, which cannot be"
            " read; write one encoded image per row, as binary or {bytes, path}."
        )
    repeated = next(
        (
            field.name
            for field in schema
            if schema.names.count(field.name) > 1 and _rank(field) is not None
        ),
        None,
    )
    if repeated is not None:
        return InputError(
            f"{where} has the column {repeated} more than once; write it again with other names."
        )
    return NoImages(
        f"{where} has no column of images ({{bytes, path}} or binary) among:"
        f" {', '.join(schema.names)}."
    )


def _wrong_column(schema: pa.Schema, where: str, column: str, candidates: list[str]) -> str:
    instead = (
        f"choose {' or '.join(candidates)}" if candidates else "none of its columns has images"
    )
    if column not in schema.names:
        return f"{where} has no column {column}; {instead}."
    if schema.names.count(column) > 1:
        return f"{where} has the column {column} more than once; {instead}."
    return (
        f"{where} has {_kind_of(schema.field(column).type)} in its column {column}, not encoded"
        f" images; {instead}."
    )


def _rank(field: pa.Field) -> tuple[int, int] | None:
    """Return the sort key of a column, the best first; None if it cannot hold images."""
    name = FIRST_CHOICE.index(field.name) if field.name in FIRST_CHOICE else len(FIRST_CHOICE)
    if pa.types.is_struct(field.type):
        return (
            (0, name)
            if [_is_binary(part.type) for part in field.type if part.name == "bytes"] == [True]
            else None
        )
    return (1, name) if _is_binary(field.type) else None


def _is_digest(kind: pa.DataType) -> bool:
    """Return whether values of this type are digests or ids, by their size."""
    return bool(pa.types.is_fixed_size_binary(kind) and kind.byte_width < MIN_FIXED_BYTES)


def _is_nested(kind: pa.DataType) -> bool:
    """Return whether values of this type are lists of images or of pixels."""
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
    """Return a type in words."""
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
    """Return the columns of each table that a source reads; none for files and archives."""
    columns: Sequence[Columns] = getattr(source, "columns", ())
    return columns


def image_column(source: Source) -> str:
    """Return the names of the columns that images are read from, separated by commas; ""
    for a source without columns."""
    return ", ".join(dict.fromkeys(columns.image for columns in columns_of(source)))


def column_notes(source: Source) -> list[str]:
    """Return a sentence for each column that was chosen among several."""
    return list(
        dict.fromkeys(columns.note for columns in columns_of(source) if columns.note is not None)
    )


def read_image(
    rows: pa.Table | pa.RecordBatch, i: int, columns: Columns, *, key: str, limits: ImageLimits
) -> bytes:
    """Return the image in one row. InputError naming `key` if it has none, or too many bytes."""
    value = rows[columns.image][i]
    if value.is_valid and pa.types.is_struct(value.type):
        value = value["bytes"]
    data = value.as_py()
    if data is None and (path := image_path(rows, i, columns)) is not None:
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
    rows: pa.Table | pa.RecordBatch, i: int, columns: Columns, *, key: str
) -> Metadata:
    """Return the text and numbers of one row. Add `label_name` for a class label, and the image's
    `path` if the layout has one. InputError for damaged text."""
    metadata: Metadata = {}
    try:
        for column in columns.plain:
            value = rows[column][i].as_py()
            if value is not None:
                metadata[column] = int(value) if isinstance(value, bool) else value
        if (path := image_path(rows, i, columns)) is not None:
            metadata.setdefault("path", path)
    except UnicodeDecodeError as error:  # Arrow does not check text before it is used
        raise InputError(
            f"{key} has metadata that is not valid text: {one_line(error)}."
        ) from error
    for column, names in columns.label_names.items():
        label = metadata.get(column)
        if isinstance(label, int) and 0 <= label < len(names):
            metadata.setdefault(f"{column}_name", names[label])
    return metadata


def image_path(rows: pa.Table | pa.RecordBatch, i: int, columns: Columns) -> str | None:
    """Return the path that the {bytes, path} layout gives for the image of one row, if any."""
    if columns.image not in rows.schema.names:
        return None
    kind = rows.schema.field(columns.image).type
    if not pa.types.is_struct(kind) or [field.name for field in kind].count("path") != 1:
        return None
    value = rows[columns.image][i]
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
    """Return class names by column, from the schema metadata that the datasets library writes;
    empty without it."""
    note = (schema.metadata or {}).get(b"huggingface")
    try:
        features: Any = json.loads(note)["info"]["features"] if note is not None else {}
        labels = {
            name: feature["names"]
            for name, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # the metadata may come from anyone
        return {}
    return {
        name: names
        for name, names in labels.items()
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }
